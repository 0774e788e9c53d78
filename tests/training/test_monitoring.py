"""What training says about itself: speed, waiting for data, gradient norm and in-batch accuracy, in the logs."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import matplotlib.axes
import pytest
import torch
from commands import command
from torch.utils.data import DataLoader

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.stages import Stage1
from mmfusion.training import monitoring
from mmfusion.training.monitoring import WINDOW, StepStatistics, best_products, draw_curves, read_metrics


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Loop:
    """Batches of 8 queries on two ranks, each of which waits and works for so many seconds."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.statistics = StepStatistics(self.clock)
        self.logged: dict[str, float] = {}
        self.module = SimpleNamespace(log_dict=lambda values, **_: self.logged.update(values))
        self.trainer = SimpleNamespace(world_size=2, is_global_zero=True)

    def batch(self, wait: float, work: float) -> None:
        self.trainer.train_dataloader = SimpleNamespace(last_fetch=(self.clock.now, wait))
        self.clock.now += wait + work
        self.statistics.on_train_batch_end(self.trainer, self.module, None, {"query_rows": torch.zeros(8)}, 0)
        # A validation, or a checkpoint.
        self.clock.now += 1000.0


def test_speed_and_waiting_are_those_of_steps_without_the_first_and_without_validations() -> None:
    loop = Loop()
    loop.batch(wait=500.0, work=500.0)
    assert not loop.logged
    loop.batch(wait=1.0, work=3.0)
    assert loop.logged == {"speed/samples_per_second": 16 / 4, "speed/data_wait": 1 / 4}
    loop.batch(wait=0.0, work=4.0)
    assert loop.logged == {"speed/samples_per_second": 32 / 8, "speed/data_wait": 1 / 8}
    for _ in range(WINDOW):
        loop.batch(wait=0.0, work=2.0)
    assert loop.logged == {"speed/samples_per_second": 8.0, "speed/data_wait": 0.0}


def test_waiting_for_data_is_one_warning_with_its_remedy(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    loop.batch(wait=0.0, work=1.0)
    for _ in range(WINDOW - 1):
        loop.batch(wait=1.0, work=4.0)
    assert not caplog.records
    for _ in range(WINDOW):
        loop.batch(wait=1.0, work=4.0)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "waits for data 20 % of the time" in warning and "--hardware.num_workers" in warning
    assert "--freeze_vision_blocks" in warning and "\n" not in warning


def test_waiting_for_data_a_tenth_of_the_time_is_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    loop = Loop()
    for _ in range(2 * WINDOW):
        loop.batch(wait=1.0, work=9.0)
    assert loop.logged["speed/data_wait"] == pytest.approx(0.1) and not caplog.records


class TimedLoader(DataLoader[Any]):
    last_fetch = (0.0, 0.0)


class Steep(L.LightningModule):
    """A loss whose gradient is (30, 40)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        return self.weight @ torch.tensor([30.0, 40.0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def test_the_gradient_norm_is_that_before_clipping() -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=3,
        gradient_clip_val=1.0,
        callbacks=[StepStatistics()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Steep()
    trainer.fit(module, TimedLoader([{"query_rows": torch.zeros(1)}] * 4, batch_size=None))
    assert trainer.callback_metrics["optimization/gradient_norm"] == pytest.approx(50.0)
    assert module.weight.detach().norm() == pytest.approx(3.0)
    assert 0.0 <= trainer.callback_metrics["speed/data_wait"] <= 1.0


def test_the_best_products_are_those_of_the_whole_score_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring, "_MAX_PAIRS", 3 * 11)
    generator = torch.Generator().manual_seed(0)
    queries, products = (torch.randn(count, 5, generator=generator) for count in (7, 11))
    scores = queries @ products.T
    assert torch.equal(best_products(queries, products), scores.argmax(1))
    present = torch.ones(11, dtype=torch.bool)
    present[scores.argmax(1)] = False
    without = scores.masked_fill(~present, -torch.inf)
    assert torch.equal(best_products(queries, products, present), without.argmax(1))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of 20 steps of stage 1, which was stopped after 6 and resumed."""
    folder = tmp_path_factory.mktemp("observability")
    catalogue = write_toy_catalogue(folder / "catalogue", num_products=120)

    def stop(stage: L.LightningModule, *_: Any) -> None:
        if stage.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    def train() -> None:
        command("stage1")(catalogue=str(catalogue), output=str(folder / "run"), steps=20, batch_size=6, accumulate=2)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(Stage1, "on_train_batch_end", stop)
        train()
    train()
    return folder / "run" / "logs"


def test_all_of_it_is_in_the_csv_file_of_a_run_that_was_resumed(logs: Path) -> None:
    metrics = read_metrics(logs)
    for name in ("optimization/gradient_norm", "speed/samples_per_second", "speed/data_wait"):
        assert set(metrics[name]) == {9, 19}, name
    assert set(metrics["train/in_batch_accuracy"]) == {9, 19}
    assert all(0.0 <= value <= 1.0 for value in metrics["train/in_batch_accuracy"].values())
    # Columns that were there before.
    assert {"train/loss", "train/query_text", "train/logit_scale", "lr-AdamW/text"} <= metrics.keys()


def test_curves_draw_losses_and_leave_out_shares_and_speeds(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    plot: Callable[..., Any] = matplotlib.axes.Axes.plot

    def note(axes: Any, *values: Any, **options: Any) -> Any:
        drawn.append(options["label"])
        return plot(axes, *values, **options)

    monkeypatch.setattr(matplotlib.axes.Axes, "plot", note)
    draw_curves(logs, tmp_path / "curves.png")
    assert sorted(drawn) == ["loss", "query_image", "query_text", "title_image"]
    assert (tmp_path / "curves.png").stat().st_size > 0


def test_a_line_of_the_log_that_a_kill_cut_off_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0" / "metrics.csv").write_text("epoch,step,train/loss\n0,9,2.5\n0,19,1.")
    assert read_metrics(tmp_path) == {"train/loss": {9: 2.5}}
