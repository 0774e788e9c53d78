"""Runs stage 1 and writes down which products each step of it was given; run by test_stream_recipe.py as a script.

Usage: STREAM_LOG=LOG stream_training.py [FLAGS OF stage1.py]; a line of LOG.RANK is a JSON list of step, epoch and
product rows.
"""

import json
import os
from typing import Any

import flaky_files  # noqa: F401
from torch import Tensor

from mmfusion.commands import run_command
from mmfusion.commands.stage1 import main
from mmfusion.stages import Stage1


def write_down(path: str) -> None:
    step = Stage1.training_step

    def training_step(stage: Stage1, batch: Any, batch_idx: int) -> Tensor:
        line = json.dumps([stage.trainer.fit_loop.total_batch_idx, stage.current_epoch, batch["product_rows"].tolist()])
        with open(f"{path}.{os.environ.get('LOCAL_RANK', '0')}", "a") as log:
            log.write(f"{line}\n")
        return step(stage, batch, batch_idx)

    Stage1.training_step = training_step


if __name__ == "__main__":
    write_down(os.environ["STREAM_LOG"])
    run_command(main)
