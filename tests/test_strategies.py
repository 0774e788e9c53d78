"""Strategies of training: one and two ranks go the same way, however parameters are laid out on them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
import two_ranks_curve
from safetensors.torch import load_file

from mmfusion.data.embedded import write_embedded_catalogue
from mmfusion.training.hardware import Hardware, lightning_strategy

# Relative, of what is logged in ten steps, and absolute, of the weights after them. In double precision ranks differ by
# the order of their sums alone, which AdamW magnifies where a gradient is close to 0.
CURVE_TOLERANCE, WEIGHT_TOLERANCE = 1e-6, 1e-8
# What is logged of a rank's own queries and products.
OF_ONE_RANK = ("train/image_weight", "train/query_weight")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, int], Path]:
    """Trains a stage with a strategy on some ranks, once, and gives the path of what it saved without suffix."""
    folder = tmp_path_factory.mktemp("strategies")
    catalogue = write_embedded_catalogue(folder / "catalogue", num_products=80)

    @cache
    def train(stage: str, strategy: str, devices: int) -> Path:
        run(sys.executable, two_ranks_curve.__file__, catalogue, folder, stage, strategy, devices)
        return folder / f"{stage}-{strategy}-{devices}"

    return train


def run(*command: object) -> str:
    # Lightning takes these for the marks of a cluster's launcher.
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "LOCAL_RANK"))}
    environment = {**own, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
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
        (Hardware(strategy="fsdp", precision="16-mixed"), "gradient scaler knows no shards; give bf16-mixed"),
        (Hardware(strategy="fsdp", devices=-1), "devices is -1; the strategy fsdp needs their number"),
    ],
)
def test_what_fsdp_cannot_do_is_refused(hardware: Hardware, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lightning_strategy(hardware)
