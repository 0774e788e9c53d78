"""What `mmfusion quickstart` runs: the recipes in sequence, on the toy catalogue."""

from __future__ import annotations

from pathlib import Path

from .steps import Step

DEFAULT_OUTPUT = Path("outputs")

STAGE1_STEPS, STAGE2_STEPS = 250, 120


def quickstart_steps(output: Path) -> list[Step]:
    """The main job from training to one search, beside a text-only tower of the same encoder, steps and queries.

    Args:
        output: Absolute folder for whatever the recipes write.
    """
    evaluation = output / "evaluation"
    return [
        _step("stage 1: align queries, titles and photos", "stage1", output=output / "stage1", steps=STAGE1_STEPS),
        _step("stage 2: fusion", "stage2", base=output / "stage1", output=output / "stage2", steps=STAGE2_STEPS),
        _step(
            "stage 2 with the simplest fusion, to compare",
            "stage2",
            base=output / "stage1",
            output=output / "concat",
            fusion="concat",
            steps=STAGE2_STEPS,
        ),
        _step(
            "text only, stage 1",
            "stage1",
            catalogue=output / "stage1" / "toy_catalogue",
            output=output / "text_only_stage1",
            steps=STAGE1_STEPS,
            query_image_weight=0,
            title_image_weight=0,
        ),
        _step(
            "text only, stage 2",
            "stage2",
            base=output / "text_only_stage1",
            output=output / "text_only",
            fusion="text_only",
            steps=STAGE2_STEPS,
        ),
        _step("evaluate text only", "evaluate", base=output / "text_only", output=evaluation),
        _step("evaluate concat", "evaluate", base=output / "concat", output=evaluation),
        _step("embed the catalogue", "embed", base=output / "stage2", output=output / "embeddings"),
        _step("index it", "index", embeddings=output / "embeddings", output=output / "index"),
        _step(
            "evaluate fusion, and compare",
            "evaluate",
            base=output / "stage2",
            output=evaluation,
            compare='["text_only", "concat"]',
        ),
        Step("search", ("recipes/search.py", "red floral summer dress", "--index", f"{output / 'index'}")),
    ]


def _step(title: str, recipe: str, **flags: object) -> Step:
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return Step(title, (f"recipes/{recipe}.py", *arguments))
