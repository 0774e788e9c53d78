"""Strategies of training: one and two ranks go the same way, however parameters are laid out on them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from socket import socket
from typing import Any

import pytest
import torch
import two_ranks_curve
from processes import run_to_end, started
from safetensors.torch import load_file
from training_runs import assert_same_weights

from mmfusion import MMFusionModel
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.training import Run, build_trainer
from mmfusion.training.hardware import Hardware, lightning_strategy

CHECKOUT = Path(__file__).resolve().parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone")
TWO_RANKS = ("--hardware.accelerator", "cpu", "--hardware.devices", "2")

# Relative, of what is logged in ten steps, and absolute, of the weights after them. In double precision ranks differ by
# the order of their sums alone, which AdamW magnifies where a gradient is close to 0.
CURVE_TOLERANCE, WEIGHT_TOLERANCE = 1e-6, 1e-8
# What is logged of a rank's own queries and products.
OF_ONE_RANK = ("train/image_weight", "train/query_weight")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Path]:
    """Trains a stage with a strategy on some ranks, once, and gives the path of what it saved without suffix."""
    folder = tmp_path_factory.mktemp("strategies")
    catalogue = write_toy_catalogue(folder / "catalogue", num_products=80)

    @cache
    def train(stage: str, strategy: str, devices: int) -> Path:
        run(sys.executable, two_ranks_curve.__file__, catalogue, folder, stage, strategy, devices)
        return folder / f"{stage}-{strategy}-{devices}"

    return train


def environment(**marks: str) -> dict[str, str]:
    # Lightning takes these for the marks of a cluster's launcher.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LOCAL_RANK"))}
    return {**own, "OMP_NUM_THREADS": "1", **marks}


def run(*command: object) -> str:
    done = run_to_end(command, env=environment(), timeout=900, children=2)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def refusals(*script: object) -> list[str]:
    """What each of two ranks says that nobody ends when the other one has ended, as torchrun would."""
    with socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "NODE_RANK": "0"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with ExitStack() as ended:
        ranks = [
            ended.enter_context(
                started([sys.executable, *script], env=environment(LOCAL_RANK=str(rank), **meeting), **pipes)
            )
            # The one that writes comes last.
            for rank in (1, 0)
        ]
        said = [rank.communicate(timeout=900)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [1, 1], said
    return said


def recipe(name: str) -> Path:
    return CHECKOUT / "recipes" / f"{name}.py"


def as_killed_before_it_saved(finished: Path, folder: Path) -> Path:
    """A copy of a run that has checkpoints and no model yet."""
    shutil.copytree(finished, folder)
    record = (folder / "run.json").read_text()
    (folder / "run.json").write_text(record.replace('"complete": true', '"complete": false'))
    for file in ("model.safetensors", "config.json"):
        (folder / file).unlink()
    return folder


@pytest.mark.parametrize(
    ("stage", "strategy"),
    [
        ("stage1", "ddp"),
        ("stage2", "fsdp"),
        pytest.param("stage1", "fsdp", marks=pytest.mark.slow),
        pytest.param("lora", "fsdp", marks=pytest.mark.slow),
        pytest.param("stage2", "ddp", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_go_the_way_of_one_for_the_same_global_batch(
    trained: Callable[[str, str, int], Path], stage: str, strategy: str
) -> None:
    one, two = (trained(stage, *ranks) for ranks in (("auto", 1), (strategy, 2)))
    curves = [json.loads(path.with_suffix(".json").read_text()) for path in (one, two)]
    assert [len(curve) for curve in curves] == [two_ranks_curve.STEPS] * 2
    assert curves[0][0]["train/loss"] != pytest.approx(curves[0][-1]["train/loss"], rel=0.01)
    for step, (single, double) in enumerate(zip(*curves, strict=True)):
        assert single.keys() == double.keys()
        for name in single:
            if not name.startswith(OF_ONE_RANK):
                assert double[name] == pytest.approx(single[name], rel=CURVE_TOLERANCE), f"step {step}, {name}"
    assert any(name.startswith("val/") for name in curves[0][-1])
    weights = [load_file(path.with_suffix(".safetensors")) for path in (one, two)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=WEIGHT_TOLERANCE, msg=name)


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        (Hardware(strategy="fsdp", precision="16-mixed"), "gradient scaler does not support shards; give bf16-mixed"),
        (Hardware(strategy="fsdp", devices=-1), "devices is -1; the strategy fsdp needs their number"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(hardware: Hardware, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lightning_strategy(hardware)


def stage2(base: Path, output: Path) -> tuple[object, ...]:
    """Arguments of a training with dropout that validates and writes checkpoints, those of steps 3, 6 and 9."""
    steps = ("--batch_size", 6, "--steps", 9, "--checkpoint_every", 3, "--validate_every", 4)
    return "--base", base, "--output", output, *steps, "--hardware.strategy", "fsdp", *TWO_RANKS


def test_half_precision_that_cpus_lack_is_refused(tmp_path: Path) -> None:
    steps = {"steps": 1, "accumulate": 1, "checkpoint_every": 1, "validate_every": 1}
    with pytest.raises(ValueError, match=r"precision is 16-mixed, which training on CPUAccelerator.*give bf16-mixed"):
        build_trainer(Run(tmp_path, {}), Hardware(accelerator="cpu", precision="16-mixed"), **steps)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both recipes on two ranks: stage 1 with DDP, whose ranks Lightning starts, stage 2 with FSDP by torchrun."""
    folder = tmp_path_factory.mktemp("runs")
    catalogue = write_toy_catalogue(folder / "catalogue", num_products=120)
    first = ("--catalogue", catalogue, "--batch_size", 6, "--steps", 4, "--output", folder / "stage1")
    saving = ("--hardware.activation_checkpointing", "true", "--accumulate", 2)
    run(sys.executable, recipe("stage1"), *first, *saving, *TWO_RANKS)
    run(*TORCHRUN, recipe("stage2"), *stage2(folder / "stage1", folder / "stage2"))
    return folder


def test_both_recipes_train_on_two_ranks(runs: Path) -> None:
    states = [load_file(runs / name / "model.safetensors") for name in ("stage1", "stage2")]
    model = MMFusionModel.from_pretrained(runs / "stage2")
    assert [model.state_dict()[name].shape for name in states[1]] == [value.shape for value in states[1].values()]
    assert model.config.architectures == ["MMFusionModel"]
    # Scalars too, which are not sharded.
    for part in ("text_model", "vision_model", "query_projection", "fusion", "logit_scale"):
        names = [name for name in states[1] if name.startswith(part)]
        assert any(not torch.equal(states[0][name], states[1][name]) for name in names), part
    for name in ("stage1", "stage2"):
        assert json.loads((runs / name / "run.json").read_text())["complete"]


@pytest.mark.slow
def test_sharded_training_goes_on_from_a_checkpoint_with_the_same_weights(runs: Path, tmp_path: Path) -> None:
    again = as_killed_before_it_saved(runs / "stage2", tmp_path / "again")
    (again / "checkpoints" / "step=9.ckpt").unlink()
    said = run(sys.executable, recipe("stage2"), *stage2(runs / "stage1", again))
    assert "resuming from step=6.ckpt" in said
    assert_same_weights(runs / "stage2", again)
    # And when nothing but the last validation is left to do.
    done = as_killed_before_it_saved(runs / "stage2", tmp_path / "done")
    assert "resuming from step=9.ckpt" in run(sys.executable, recipe("stage2"), *stage2(runs / "stage1", done))
    assert_same_weights(runs / "stage2", done)


def test_both_ranks_refuse_a_checkpoint_of_another_architecture(runs: Path, tmp_path: Path) -> None:
    other = as_killed_before_it_saved(runs / "stage2", tmp_path / "other")
    path = other / "checkpoints" / "step=9.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["state_dict"]["model.logit_scale"]
    torch.save(checkpoint, path)
    for said in refusals(recipe("stage2"), *stage2(runs / "stage1", other)):
        assert "model.logit_scale is missing there and () in this model" in said


def test_gradient_caching_is_refused_by_both_ranks_of_fsdp(runs: Path, tmp_path: Path) -> None:
    arguments = (*stage2(runs / "stage1", tmp_path / "run"), "--micro_batch", 4)
    for said in refusals(recipe("stage2"), *arguments):
        assert "micro_batch is 4, which FSDP cannot do" in said
