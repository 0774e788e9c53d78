"""Train, evaluate, index and search on the toy catalogue, and compare with a text-only tower."""

import sys
from dataclasses import dataclass
from pathlib import Path

from mmfusion.steps import Steps, run_steps

STAGE1_STEPS, STAGE2_STEPS = 250, 240
# Photos say nothing of brands and materials, which fusion learns from products that are alike otherwise. Of 64 products
# in a mixed batch five have the query's category, and photos were noise to queries of brand and material, which lost 14
# points of nDCG@10. Stage 1 needs mixed batches: it has the categories to learn.
_BATCHES = {"group_by": "category"}
LABELS = "synthetic: a program drew the products, wrote the queries and graded them by what it had drawn"


@dataclass
class Config:
    """Settings of `mmfusion quickstart`.

    Attributes:
        output: Folder for all results.
    """

    output: Path = Path("outputs")


def main(config: Config) -> None:
    """Runs the commands from training to one search on the toy catalogue, one after the other, and ends the process.

    A text-only tower of the same encoder, steps, batches and queries is trained for comparison. The last command writes
    hits.html, a page of what one query finds, and names the address of the search page.
    """
    sys.exit(run_steps(quickstart_steps(config.output.expanduser().resolve())))


def quickstart_steps(output: Path) -> Steps:
    """The commands in their order.

    Args:
        output: Absolute folder for whatever the commands write.
    """
    stage1, text_stage1, evaluation = output / "stage1", output / "text_only_stage1", output / "evaluation"
    first, second = {"steps": STAGE1_STEPS}, {"steps": STAGE2_STEPS, **_BATCHES}
    no_photos = {"query_image_weight": 0, "title_image_weight": 0}
    toy_catalogue, embeddings = stage1 / "toy_catalogue", output / "embeddings"
    measured = {"output": evaluation, "label_source": LABELS}
    compared = {**measured, "compare": "[text_only]"}
    # No toy query says "summer", so that the word would be noise.
    query = ("-m", "mmfusion", "search", "red floral dress")
    return {
        "stage 1: align queries, titles and photos": _command("stage1", output=stage1, **first),
        "stage 2: fusion": _command("stage2", base=stage1, output=output / "stage2", **second),
        "text only, stage 1": _command("stage1", catalogue=toy_catalogue, output=text_stage1, **first, **no_photos),
        "text only, stage 2": _command(
            "stage2", base=text_stage1, output=output / "text_only", fusion="text_only", **second
        ),
        "evaluate text only": _command("evaluate", base=output / "text_only", **measured),
        "embed the catalogue": _command("embed", base=output / "stage2", output=embeddings),
        "index it": _command("index", embeddings=embeddings, output=output / "index", lexical=True),
        "evaluate fusion, and compare": _command("evaluate", base=output / "stage2", **compared),
        "search": (*query, "--index", str(output / "index"), "--html", str(output / "hits.html")),
    }


def _command(command: str, **flags: object) -> tuple[str, ...]:
    arguments = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return ("-m", "mmfusion", command, *arguments)
