"""The dry run of a training: its numbers, its refusals, and that it leaves nothing behind."""

import importlib
import json
import multiprocessing.util
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import command, config_of
from processes import run_to_end

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.datamodule import MMFusionDataModule
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.stages import Optimization
from mmfusion.training import Hardware, RunError, dry_run, load_base, open_run, recorded_arguments, starting_base
from mmfusion.training.dry_run import OutOfMemoryError
from mmfusion.training.largest_batch import LargestBatch
from mmfusion.training.memory import HostMemory, in_words, is_out_of_memory

CHECKOUT = Path(__file__).resolve().parents[2]
LIMITED = CHECKOUT / "tests" / "limited_memory.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A catalogue of 200 products, and a model that stage 1 has made from it."""
    folder = tmp_path_factory.mktemp("preflight")
    write_toy_catalogue(folder / "catalogue", num_products=200)
    command("stage1")(catalogue=str(folder / "catalogue"), output=str(folder / "stage1"), steps=1, batch_size=8)
    return folder


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has steps taken where what a test replaces is replaced."""
    monkeypatch.setattr(dry_run, "_in_child", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(Path, "write_text", _but_not_the_score(Path.write_text))


def _but_not_the_score(write: Callable[..., int]) -> Callable[..., int]:
    # A kernel without memory should not end the tests first.
    return lambda path, *text, **options: 0 if path.name == "oom_score_adj" else write(path, *text, **options)


@pytest.fixture(autouse=True)
def temporary_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where dry runs put what goes with them."""
    # Python keeps its folder for sockets as long as this process lives, and a deep one is too long for their names.
    multiprocessing.util.get_temp_dir()
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(place))
    return place


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


class Plan(dict[str, str]):
    """Lines of a printed plan by their names."""

    def __init__(self, printed: str) -> None:
        super().__init__(re.findall(r"^(\w[\w ,-]{0,18}\w) {1,}(.+)$", printed, re.M))

    def numbers(self, name: str) -> list[float]:
        return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", self[name])]


def dry(name: str, capsys: pytest.CaptureFixture[str], **arguments: Any) -> Plan:
    capsys.readouterr()
    command(name)(dry_run=True, **arguments)
    return Plan(capsys.readouterr().out)


def everything_below(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_the_plan_has_the_numbers_that_counting_gives(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    plan = dry(
        "stage1",
        capsys,
        catalogue=str(folder / "catalogue"),
        output=str(tmp_path / "run"),
        steps=30,
        batch_size=8,
        extra_products=4,
        accumulate=3,
        validate_every=10,
        hardware=Hardware(devices=2, num_nodes=2),
    )
    model, processor = load_base(starting_base(None, tmp_path / "base"))
    model.fusion.requires_grad_(False)
    parts = {"text": ("text_model.",), "vision": ("vision_model.",)}
    counts = {part: [0, 0] for part in ("text", "vision", "head")}
    for name, value in model.named_parameters():
        part = next((part for part, prefix in parts.items() if name.startswith(prefix)), "head")
        counts[part][not value.requires_grad] += value.numel()
    for part, numbers in counts.items():
        assert plan.numbers(f"parameters, {part}") == numbers and sum(numbers) > 0
    trained = [value for value in model.parameters() if value.requires_grad]
    # Two moments of each, and the step number of each tensor, in float32.
    state = 4 * (2 * sum(value.numel() for value in trained) + len(trained))
    assert f"({state:,} bytes)" in plan["optimizer"]
    assert plan.numbers("batch") == [8, 12, 32, 48, 3]
    assert "measured on one, without communication" in plan["devices"] and plan["devices"].startswith("4 x ")

    catalogue = Catalogue.load(folder / "catalogue", cache_dir=tmp_path / "cache")
    batches = list(batches_of_all_ranks(MMFusionDataModule(catalogue, processor, batch_size=8, extra_products=4), 4))
    found = [contents(batch) for batch in batches]
    assert plan.numbers("epoch")[:2] == [-(-len(batches) // 4 // 3), len(batches) // 4]
    assert plan.numbers("epoch")[2:] == np.sum(found, axis=0).tolist()
    largest = plan.numbers("largest batch")[:3]
    assert [8, 12, *largest] in found
    assert plan.numbers("step, at most") == [12 * number for number in (8, 12, *largest)]
    text, photos = np.array(found)[:, 3], np.array(found)[:, 4]
    assert largest[1] / text.mean() + largest[2] / photos.mean() >= np.median(
        text / text.mean() + photos / photos.mean()
    )
    assert plan.numbers("training") == [30, round(30 * 3 / (len(batches) // 4), 1)]
    assert "3 validations" in plan["ETA"]
    assert plan["other memory"] and plan["memory, measured"] and "3 checkpoints" in plan["disk"]


def batches_of_all_ranks(data: MMFusionDataModule, ranks: int) -> Any:
    class Ranks:
        world_size = ranks
        global_rank = 0

    for rank in range(ranks):
        Ranks.global_rank = rank
        data.trainer = Ranks()  # type: ignore[assignment]
        yield from data.train_dataloader()


def contents(batch: dict[str, torch.Tensor]) -> list[float]:
    masks = [batch["query_attention_mask"], batch["product_attention_mask"]]
    return [
        len(batch["query_rows"]),
        len(batch["product_rows"]),
        sum(int(mask.sum()) for mask in masks),
        sum(mask.numel() for mask in masks),
        int(batch["photo_mask"].sum()),
    ]


def test_the_largest_batch_is_the_largest(folder: Path, tmp_path: Path) -> None:
    catalogue = Catalogue.load(folder / "catalogue", cache_dir=tmp_path / "cache")
    _, processor = load_base(str(folder / "stage1"))
    data = MMFusionDataModule(catalogue, processor, batch_size=4, photos=False)
    padded = [contents({**batch, "photo_mask": torch.zeros(1)})[3] for batch in batches_of_all_ranks(data, 2)]
    largest = LargestBatch(data, 2)
    rows = largest.find()
    # Characters choose the few that are tokenised: those decide.
    assert largest.count(rows).padded >= np.quantile(padded, 0.9) > np.median(padded)


@pytest.mark.parametrize("name", ["stage1", "stage2"])
def test_nothing_is_left_and_the_training_starts_as_without_it(
    name: str, folder: Path, tmp_path: Path, temporary_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"catalogue": str(folder / "catalogue"), "base": str(folder / "stage1"), "steps": 2}
    options |= {"batch_size": 8, "validate_every": 2}
    before = everything_below(folder)
    dry(name, capsys, output=str(tmp_path / "dry"), **{**options, "batch_size": 16})
    assert everything_below(folder) == before and not (tmp_path / "dry").exists()
    assert not left_in(temporary_folders)
    for output in ("dry", "plain"):
        command(name)(output=str(tmp_path / output), **options)
        if output == "dry":
            before = everything_below(tmp_path / output)
            capsys.readouterr()
            command(name)(output=str(tmp_path / output), dry_run=True, **options)
            assert "is complete" in capsys.readouterr().out and everything_below(tmp_path / output) == before
    losses = [json.loads((tmp_path / o / "run.json").read_text())["metrics"]["train/loss"] for o in ("dry", "plain")]
    assert losses[0] == losses[1]


def test_the_random_state_is_left_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    module = importlib.import_module("mmfusion.commands.stage")
    real = module.preflight

    def watched(*arguments: Any, **options: Any) -> None:
        states.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))
        real(*arguments, **options)
        states.append((torch.get_rng_state(), np.random.get_state()[1].tolist()))

    monkeypatch.setattr(module, "preflight", watched)
    dry("stage2", capsys, base=str(folder / "stage1"), output=str(tmp_path / "run"), steps=2, batch_size=8)
    (torch_before, numpy_before), (torch_after, numpy_after) = states
    assert torch.equal(torch_before, torch_after) and numpy_before == numpy_after


def test_an_unfinished_run_is_planned_from_where_it_is(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    options: dict[str, Any] = {"base": str(folder / "stage1"), "steps": 40, "batch_size": 8}
    run = open_run(
        tmp_path / "run",
        "stage2",
        json.loads(json.dumps(recorded("stage2", options))),
    )
    run.checkpoints.mkdir()
    (run.checkpoints / "step=30.ckpt").touch()
    before = everything_below(tmp_path / "run")
    plan = dry("stage2", capsys, output=str(tmp_path / "run"), **options)
    assert plan.numbers("training")[:2] == [40, 30] and "10 steps" in plan["ETA"]
    with pytest.raises(RunError, match="steps was 40, now 50"):
        command("stage2")(output=str(tmp_path / "run"), dry_run=True, **{**options, "steps": 50})
    assert everything_below(tmp_path / "run") == before


def recorded(name: str, options: dict[str, Any]) -> dict[str, Any]:
    return recorded_arguments(config_of(name, **options))


def test_frozen_encoders_are_read_for_one_batch_and_their_caches_are_counted(
    folder: Path, tmp_path: Path, temporary_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frozen = Optimization(text_learning_rate=0, vision_learning_rate=0)
    options: dict[str, Any] = {"base": str(folder / "stage1"), "steps": 2, "batch_size": 8, "optimization": frozen}
    features = tmp_path / "features"
    plan = dry("stage2", capsys, output=str(tmp_path / "run"), feature_cache=str(features), **options)
    assert plan.numbers("parameters, text")[0] == plan.numbers("parameters, vision")[0] == 0
    assert "caches of frozen features" in plan["ETA"] and "photo products per second" in plan["ETA"]
    told = re.search(r"caches ([\d.]+) (\w+)", plan["disk"])
    assert told and not features.exists() and not left_in(temporary_folders)
    command("stage2")(output=str(tmp_path / "run"), feature_cache=str(features), **options)
    needed = sum(path.stat().st_size for path in features.rglob("*") if path.is_file())
    size = float(told[1]) * {"KiB": 2**10, "MiB": 2**20}[told[2]]
    assert size == pytest.approx(needed, rel=0.2)
    again = dry("stage2", capsys, output=str(tmp_path / "again"), feature_cache=str(features), **options)
    assert "caches" not in again["ETA"] and "caches" not in again["disk"]


def test_a_tower_that_reads_no_photos_is_planned_without(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    options: dict[str, Any] = {"base": str(folder / "stage1"), "steps": 2, "batch_size": 8}
    plan = dry("stage2", capsys, output=str(tmp_path / "run"), fusion="text_only", micro_batch=4, **options)
    assert plan.numbers("largest batch")[2] == 0 and plan.numbers("epoch")[-1] == 0
    assert plan["micro-batch"] == "4 rows" and "with --micro_batch 4" in plan["memory, measured"]


def test_a_run_of_the_hub_is_not_planned(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--dry_run writes nothing.*without --dry_run"):
        command("stage1")(output=str(tmp_path / "run"), resume="hub:org/run", dry_run=True)


def test_a_stream_is_not_planned(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot look ahead in batches of a StreamSampler; .*without --stream"):
        command("stage1")(
            catalogue=str(folder / "catalogue"), output=str(tmp_path / "run"), stream=True, batch_size=8, dry_run=True
        )
    assert not (tmp_path / "run").exists()


def peak_of(count: int) -> int:
    """Peak of a process that allocates, and frees, so many numbers."""
    np.ones(count)
    return HostMemory().peak()


def end_by_the_kernel() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_peak_of_main_memory_is_that_of_the_work() -> None:
    few, many = (dry_run._in_child(peak_of, count) for count in (0, 30 * 2**20))
    assert many - few == pytest.approx(8 * 30 * 2**20, rel=0.1)
    memory = HostMemory()
    left, bound_by = memory.left()
    assert memory.used() > 0 and 0 < left < 2**50 and bound_by


def test_a_child_that_the_system_ends_is_a_step_that_does_not_fit() -> None:
    assert dry_run._in_child(end_by_the_kernel) is None


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_what_does_not_fit_under_a_limit_is_an_error_that_is_recognised() -> None:
    memory = HostMemory()
    with memory.limited(memory.used() + 2**27):
        for allocate in (lambda: torch.ones(2**27), lambda: np.ones(2**27)):
            with pytest.raises((RuntimeError, MemoryError)) as caught:
                allocate()
            assert is_out_of_memory(caught.value)
    assert len(torch.ones(2**27)) == 2**27
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert [in_words(size) for size in (2**31, 3 * 2**19, 512)] == ["2.0 GiB", "1.5 MiB", "0.5 KiB"]


@pytest.mark.parametrize("micro_batch", [0, 8])
def test_a_step_that_fails_for_memory_is_a_refusal_that_names_what_to_lower(
    micro_batch: int,
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: None,
) -> None:
    from mmfusion.stages import Stage1

    real = Stage1.training_step

    def training_step(self: Any, batch: Any, index: int) -> Any:
        if len(batch["query_rows"]) == 16 and not 1 <= self.micro_batch <= 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return real(self, batch, index)

    monkeypatch.setattr(Stage1, "training_step", training_step)
    options: dict[str, Any] = {"catalogue": str(folder / "catalogue"), "output": str(tmp_path / "run"), "steps": 2}
    options |= {"batch_size": 16, "micro_batch": micro_batch, "dry_run": True}
    asked = f"--micro_batch {micro_batch}" if micro_batch else "--batch_size 16"
    with pytest.raises(
        OutOfMemoryError, match=f"a step with {asked} needs more than .*--micro_batch 2 fits: .* was taken"
    ):
        command("stage1")(**options)
    plan = Plan(capsys.readouterr().out)
    assert "with --micro_batch 2" in plan["memory, measured"] and plan["micro-batch"] == "2 rows"
    assert not (tmp_path / "run").exists()

    def never(self: Any, batch: Any, index: int) -> Any:
        raise MemoryError

    monkeypatch.setattr(Stage1, "training_step", never)
    with pytest.raises(OutOfMemoryError, match=r"No micro-batch fits.*smaller --batch_size.*--image_size"):
        command("stage1")(**options)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_the_micro_batch_that_it_names_trains_under_the_limit_that_the_batch_does_not(tmp_path: Path) -> None:
    catalogue = write_toy_catalogue(tmp_path / "catalogue", num_products=2000)
    options = ["--catalogue", str(catalogue), "--batch_size", "512", "--steps", "2"]

    def train(output: str, *more: str) -> subprocess.CompletedProcess[str]:
        # 350 MiB beyond what Python, torch and the package take.
        command = [sys.executable, str(LIMITED), "350", "stage1", "--output", str(tmp_path / output), *options, *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return run_to_end(command, env=environment, timeout=1200, fresh=True)

    dry_run_first = train("run", "--dry_run", "true")
    last = dry_run_first.stderr.strip().splitlines()[-1]
    assert dry_run_first.returncode == 1 and "Traceback" not in dry_run_first.stderr, dry_run_first.stderr
    named = re.fullmatch(
        r"OutOfMemoryError: out of memory: .* needs more than (.*) MiB .*--micro_batch (\d+) fits.*", last
    )
    assert named, last
    assert not (tmp_path / "run").exists()
    whole = train("whole")
    assert whole.returncode != 0 and re.search("can't allocate memory|could not create|MemoryError", whole.stderr)
    fits = train("run", "--micro_batch", named[2])
    assert fits.returncode == 0, fits.stderr[-2000:]
