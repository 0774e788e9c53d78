"""What an ablation is run with: one budget, one set of seeds and one catalogue for every variant."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmfusion.evaluation.perturb import Perturbation
from mmfusion.model import FUSIONS
from mmfusion.model.errors import MMFusionError
from mmfusion.stages import Optimization
from mmfusion.training import Hardware


class AblationError(MMFusionError):
    """An ablation cannot be run as it is asked for."""


@dataclass(frozen=True)
class AblationSettings:
    """Settings of an ablation; every variant shares them. Folders are absolute, as steps run as processes.

    Attributes:
        output: Folder for everything that is written.
        catalogue: Folder, fsspec URL or Hub id; default: the toy catalogue, drawn into the output folder.
        base: Folder or Hub id of an mmfusion model; default: tiny encoders built in the output folder.
        larger_base: The same with a larger generic vision encoder; None: that variant is not run.
        vision_blocks: Blocks of the base's vision encoder, to evaluate from the cached features of the frozen whole;
            None where that is not known: photos are read.
        larger_vision_blocks: The same of the larger base.
        embedding_dim: Components of the base's vectors, a third of which routed_equal_bytes keeps of each view; None
            where that is not known: it is not run.
        variants: Names of the variants to run; None: all.
        seeds: Random seeds for training, all different; at least one.
        fusions: Fusion kinds to compare in addition to `text_only` and `concat`, which are variants of their own.
        default_fusion: The one of them that is perturbed, routed and trained in one stage.
        stage1_steps: Optimizer steps of stage 1.
        stage2_steps: Optimizer steps of stage 2; variants without a stage 1 have the sum of both.
        batch_size: Pairs per batch of stage 1, and of training in one stage.
        stage2_batch_size: Pairs per batch of stage 2, and of variants over frozen encoders.
        extra_products: Further products per batch of stage 2, as negatives.
        photo_views: Views of each photo to train with, in variants that see.
        stage1_optimization: Learning rates and schedule of stage 1.
        stage2_optimization: The same of stage 2.
        stage1_options: Further flags of mmfusion stage1, for every variant.
        stage2_options: Further flags of mmfusion stage2, for every variant.
        freeze_vision_blocks: Lowest vision blocks that are frozen where the vision encoder is trained.
        feature_cache: Folder that all runs share; default: in the output folder.
        validate_every: Optimizer steps between validations.
        checkpoint_every: Optimizer steps between checkpoints.
        hardware: Devices, precision and workers.
        split: Queries that the table is about.
        perturbations: Perturbed evaluations of the default fusion and of text only.
        product_slices: Product columns whose values slice Recall.
        label_source: Who or what judged.
        num_products: Size of the toy catalogue.

    Raises:
        AblationError: A value is out of range, or names a variant or a fusion that there is not.
    """

    output: Path
    catalogue: str | None = None
    base: str | None = None
    larger_base: str | None = None
    vision_blocks: int | None = None
    larger_vision_blocks: int | None = None
    embedding_dim: int | None = None
    variants: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    fusions: tuple[str, ...] = ("gated",)
    default_fusion: str = "gated"
    stage1_steps: int = 400
    stage2_steps: int = 200
    batch_size: int = 64
    stage2_batch_size: int = 64
    extra_products: int = 0
    photo_views: int = 1
    stage1_optimization: Optimization = field(default_factory=Optimization)
    stage2_optimization: Optimization = field(default_factory=Optimization)
    stage1_options: dict[str, Any] = field(default_factory=dict)
    stage2_options: dict[str, Any] = field(default_factory=dict)
    freeze_vision_blocks: int = 0
    feature_cache: Path | None = None
    validate_every: int = 100
    checkpoint_every: int = 100
    hardware: Hardware = field(default_factory=Hardware)
    split: Literal["train", "val", "test"] = "val"
    perturbations: tuple[Perturbation, ...] = ()
    product_slices: tuple[str, ...] = ()
    label_source: str = ""
    num_products: int = 2000

    def __post_init__(self) -> None:
        unknown = next((name for name in self.fusions if name not in FUSIONS), "")
        # A fusion kind of the name of a variant of its own would overwrite it.
        own = next((name for name in self.fusions if name in ("text_only", "concat")), "")
        lists = {name: getattr(self, name) or () for name in ("variants", "fusions", "perturbations", "product_slices")}
        twice = {name: next((v for v in values if values.count(v) > 1), "") for name, values in lists.items()}
        valid_seeds = self.seeds and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0
        problems = {
            f"seeds is {list(self.seeds)}; give at least one, each once and none below 0": not valid_seeds,
            f"stage1_steps is {self.stage1_steps}; give at least 1": self.stage1_steps < 1,
            f"stage2_steps is {self.stage2_steps}; give at least 1": self.stage2_steps < 1,
            f"fusions names {unknown!r}; the kinds are {', '.join(FUSIONS)}": unknown,
            f"fusions names {own!r}, which is a variant of its own already; leave it out": own,
            "default_fusion is 'weighted_mean', which is three variants; choose a fusion of one variant": (
                self.default_fusion == "weighted_mean"
            ),
            f"default_fusion is {self.default_fusion!r}, which is not among the fusions {list(self.fusions)}; name it "
            "there, or choose one of them": self.default_fusion not in self.fusions,
            **{f"{name} names {value!r} twice; name each once": value for name, value in twice.items()},
        }
        for problem, found in problems.items():
            if found:
                raise AblationError(f"{problem}.")

    @property
    def catalogue_source(self) -> str:
        return self.catalogue or str(self.output / "toy_catalogue")

    @property
    def base_source(self) -> str:
        return self.base or str(self.output / "base")

    @property
    def caches(self) -> Path:
        return self.feature_cache or self.output / "feature_cache"

    @property
    def results(self) -> Path:
        """Folder of the evaluations. Splits have a folder each, so that a val table never shows a test number."""
        return self.output / self.split

    @property
    def all_steps(self) -> int:
        return self.stage1_steps + self.stage2_steps
