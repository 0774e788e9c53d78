"""Bars of steps become parts of one bar, which says how long the rest takes."""

import io
import sys
from collections.abc import Callable

import pytest
from tqdm.std import tqdm

from mmfusion import progress
from mmfusion.progress import JobProgress, progress_bar


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets seconds pass."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_what_is_left_is_guessed_and_then_measured(wait: Callable[[float], None]) -> None:
    job = JobProgress({"read": ("reading", 10.0), "train": ("Stage", 30.0)}, io.StringIO())
    assert job.seconds_left() == 40
    with job.step("read"):
        bar = progress_bar(total=4, desc="reading rows", mininterval=0, miniters=1)
        wait(5)
        bar.update(1)
        # A quarter took 5 seconds rather than 2.5: all takes twice as long as guessed.
        assert job.seconds_left() == pytest.approx(15 + 60)
        wait(15)
        bar.update(3)
        bar.close()
    assert job.seconds_left() == pytest.approx(60)
    with job.step("train"):
        other = progress_bar(range(2), desc="caching", mininterval=0, miniters=1)
        assert list(other) == [0, 1] and job.seconds_left() == pytest.approx(60)
        # What comes before the steps is not what they take.
        wait(1000)
        bar = progress_bar(total=10, desc="Stage1", mininterval=0, miniters=1)
        wait(4)
        bar.update(1)
        assert job.seconds_left() == pytest.approx(36)
        bar.close()
    assert job.seconds_left() == 0


def test_the_bar_is_drawn_as_time_passes_though_it_gets_no_further(wait: Callable[[float], None]) -> None:
    drawn = io.StringIO()
    job = JobProgress({"train": ("Stage", 1000.0)}, drawn)
    with job.step("train"):
        for row in progress_bar(range(3), desc="caching", mininterval=0, miniters=1):
            wait(6)
            assert row or "caching" not in drawn.getvalue()
    assert "train (caching 67%)" in drawn.getvalue()


def test_one_bar_is_drawn_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = io.StringIO()
    job = JobProgress({"train": ("Stage", 30.0)}, drawn)
    with job.step("train"), progress_bar(total=2, desc="Stage1", unit="step") as bar:
        bar.set_postfix({"loss": 1}, refresh=True)
        bar.update(2)
    job.close()
    captured = capsys.readouterr()
    assert captured.err == captured.out == "" and "100%" in drawn.getvalue() and "train" in drawn.getvalue()


def test_outside_of_a_job_a_bar_is_tqdms_own() -> None:
    job = JobProgress({"fails": ("", 1.0)}, io.StringIO())
    with pytest.raises(KeyError), job.step("fails"):
        raise KeyError
    bar = progress_bar(total=2, file=io.StringIO())
    assert isinstance(bar, tqdm) and "tqdm" in sys.modules and type(bar).__module__.startswith("tqdm")
    bar.close()
