"""Train and evaluate every variant of the ablation, from BM25 to the fusion kinds, and compare them in one table."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmfusion.ablation import AblationSettings, run_ablation, with_bases
from mmfusion.evaluation.perturb import Perturbation
from mmfusion.files import absolute_place
from mmfusion.stages import Optimization


@dataclass(frozen=True)
class Config(AblationSettings):
    """Settings of `mmfusion ablation`.

    Attributes:
        fusions: Fusion kinds to compare in addition to text_only and concat, which have their own variants;
            weighted_mean is three variants: text's share fixed at 0.9, at 0.1, and learned.
        stage1_optimization: Learning rates and schedule of stage 1. An encoder whose rate is 0 is frozen and its
            features are cached. The defaults suit tiny encoders trained from scratch.
        keep_working_files: Whether checkpoints and copies of the catalogue stay in the folders of finished trainings.
        dry_run: Whether to print the commands and do nothing.
        table_only: Whether to write the table of what is finished and run nothing, e.g. while another process runs the
            rest.
    """

    output: Path = Path("outputs/ablation")
    fusions: tuple[str, ...] = ("image_only", "weighted_mean", "bilinear", "moe", "cross_attention", "gated")
    stage1_optimization: Optimization = field(default_factory=lambda: Optimization(1e-3, 1e-3, 1e-3))
    stage2_optimization: Optimization = field(default_factory=lambda: Optimization(1e-3, 3e-4, 3e-4))
    perturbations: tuple[Perturbation, ...] = (
        "misleading_titles",
        "typos",
        "photos_dropped",
        "text_dropped",
        "photos_shuffled",
    )
    keep_working_files: bool = False
    dry_run: bool = False
    table_only: bool = False


def main(config: Config) -> None:
    """Writes ablation.<split>.md, .json, .csv and .png; run again to continue where it stopped.

    Each variant is trained and evaluated by other commands, as processes with logs next to their folders.
    """
    places = {name: getattr(config, name) for name in ("catalogue", "base", "larger_base")}
    absolute: dict[str, Any] = {name: absolute_place(place) for name, place in places.items() if place is not None}
    if config.feature_cache is not None:
        absolute["feature_cache"] = config.feature_cache.absolute()
    settings = replace(config, output=config.output.absolute(), **absolute)
    run_ablation(
        with_bases(settings),
        keep_working_files=config.keep_working_files,
        dry_run=config.dry_run,
        table_only=config.table_only,
    )
