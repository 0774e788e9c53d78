"""The best model of a training is its result where that is asked for, and a training that gets no better ends."""

import json
from pathlib import Path
from typing import Any

import pytest
from commands import command
from training_runs import assert_same_weights

from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.stages import Optimization, Stage
from mmfusion.training import RunError

STEPS = {"steps": 6, "batch_size": 8, "validate_every": 1, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_catalogue(tmp_path_factory.mktemp("best") / "catalogue", num_products=100)


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Scores of validations by step, instead of those that the model has."""
    given: dict[int, float] = {}

    def rank(stage: Stage, *_: Any) -> dict[str, float]:
        return {"recall@100": 0.5, "ndcg@10": given[stage.global_step]}

    monkeypatch.setattr(Stage, "_rank", rank)
    return given


def train(catalogue: Path, output: Path, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"optimization": Optimization(1e-2, 1e-2, 1e-2), **STEPS, **options}
    command("stage1")(catalogue=str(catalogue), output=str(output), **settings)
    record: dict[str, Any] = json.loads((output / "run.json").read_text())
    return record


def test_the_model_folder_holds_the_best_model(catalogue: Path, scores: dict[int, float], tmp_path: Path) -> None:
    scores |= {1: 0.1, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.3, 6: 0.1}
    record = train(catalogue, tmp_path / "best", keep="best")
    assert record["best"] == {"step": 3, "metric": "val/mean/ndcg@10", "value": pytest.approx(0.4)}
    assert record["metrics"]["val/mean/ndcg@10"] == pytest.approx(0.4) and record["steps"] == 6
    train(catalogue, tmp_path / "last")
    # The third step of a schedule of six.
    kept = tmp_path / "best" / "best"
    assert [path.name for path in kept.iterdir()] == ["step=3"]
    assert_same_weights(tmp_path / "best", kept / "step=3")
    with pytest.raises(AssertionError):
        assert_same_weights(tmp_path / "best", tmp_path / "last")


def test_training_ends_where_so_many_validations_are_no_better(
    catalogue: Path, scores: dict[int, float], tmp_path: Path
) -> None:
    scores |= {1: 0.1, 2: 0.4, 3: 0.3, 4: 0.4, 5: 0.9, 6: 0.9}
    record = train(catalogue, tmp_path, keep="best", patience=2)
    assert (record["steps"], record["best"]["step"], record["complete"]) == (4, 2, True)


def test_an_extension_is_given_new_patience_and_keeps_what_is_still_the_best(
    catalogue: Path, scores: dict[int, float], tmp_path: Path
) -> None:
    scores |= {1: 0.4, 2: 0.3, 3: 0.3, 4: 0.3, 5: 0.2, 6: 0.1, 7: 0.1}
    assert train(catalogue, tmp_path, keep="best", patience=2)["steps"] == 3
    record = train(catalogue, tmp_path, keep="best", patience=2, steps=8)
    assert record["extensions"] == [{"at": 3, "steps": 6}]
    assert (record["steps"], record["best"]["step"]) == (5, 1)


def test_what_cannot_be_extended_is_an_error(catalogue: Path, tmp_path: Path) -> None:
    record = train(catalogue, tmp_path, steps=2)
    for options in ({"steps": 1}, {"steps": 4, "batch_size": 16}):
        with pytest.raises(RunError, match=r"other arguments .*--steps may be raised"):
            train(catalogue, tmp_path, **options)
    assert json.loads((tmp_path / "run.json").read_text()) == record


@pytest.mark.parametrize("options", [{"keep": "best", "validate_every": 7}, {"patience": 3, "validate_every": 7}])
def test_the_best_needs_validations(catalogue: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"there are none: .* --validate_every 7 of --steps 6\. Give --dev_fraction"):
        train(catalogue, tmp_path, **options)


def test_patience_is_at_least_one(catalogue: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="patience is 0; give at least 1 validation"):
        train(catalogue, tmp_path, patience=0)
