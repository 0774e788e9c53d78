"""What `mmfusion quickstart` runs: the recipes in sequence, on the embedded catalogue."""

from __future__ import annotations

from pathlib import Path

from .steps import Step

DEFAULT_OUTPUT = Path("outputs")


def quickstart_steps(output: Path) -> list[Step]:
    """The main job from training to one search; every step writes below `output` only.

    Args:
        output: Absolute folder for whatever the recipes write.
    """
    return [
        Step("stage 1: domain fine-tuning and alignment", ("recipes/stage1.py", "--output", f"{output / 'stage1'}")),
        Step(
            "stage 2: fusion",
            ("recipes/stage2.py", "--base", f"{output / 'stage1'}", "--output", f"{output / 'stage2'}"),
        ),
        Step(
            "evaluation",
            ("recipes/evaluate.py", "--base", f"{output / 'stage2'}", "--output", f"{output / 'evaluation'}"),
        ),
        Step("index", ("recipes/index.py", "--base", f"{output / 'stage2'}", "--output", f"{output / 'index'}")),
        Step("search", ("recipes/search.py", "red floral summer dress", "--index", f"{output / 'index'}")),
    ]
