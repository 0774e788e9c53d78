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

Split = Literal["train", "val", "test"]

# The post's own variants have these names; a fusion kind among --fusions would overwrite them.
_OWN_VARIANTS = ("text_only", "concat")


class AblationError(MMFusionError):
    """An ablation cannot be run as it is asked for."""


@dataclass(frozen=True)
class AblationSettings:
    """Settings of an ablation; every variant shares them.

    Attributes:
        output: Absolute folder for everything that is written.
        catalogue: Absolute folder, fsspec URL or Hub id; None: the toy catalogue, drawn into the output folder.
        base: Absolute folder or Hub id of an mmfusion model; None: tiny encoders built in the output folder.
        larger_base: The same with a larger generic vision encoder; None: that variant is not run.
        vision_blocks: Blocks of the base's vision encoder, to evaluate from the cached features of the frozen whole;
            None where that is not known: photos are read.
        larger_vision_blocks: The same of the larger base.
        embedding_dim: Components of the base's vectors, a third of which routed_equal_bytes keeps of each view; None
            where that is not known: it is not run.
        variants: Names of the variants to run; None: all.
        seeds: Of training; different, at least one.
        fusions: Fusion kinds to compare beside `text_only` and `concat`, which are variants of their own.
        default_fusion: The one of them that is perturbed, routed and trained in one stage.
        stage1_steps: Optimizer steps of stage 1.
        stage2_steps: Optimizer steps of stage 2; variants without a stage 1 have the sum of both.
        batch_size: Pairs per batch of stage 1, and of training in one stage.
        stage2_batch_size: Pairs per batch of stage 2, and of variants over frozen encoders.
        extra_products: Further products per batch of stage 2, as negatives.
        photo_views: Views of each photo to train with, in variants that see.
        stage1_optimization: Learning rates and schedule of stage 1.
        stage2_optimization: The same of stage 2.
        stage1_options: Further flags of stage1.py, for every variant alike.
        stage2_options: Further flags of stage2.py, for every variant alike.
        freeze_vision_blocks: Lowest vision blocks that are frozen where the vision encoder is trained.
        feature_cache: Absolute folder that all runs share.
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
    split: Split = "val"
    perturbations: tuple[Perturbation, ...] = ()
    product_slices: tuple[str, ...] = ()
    label_source: str = ""
    num_products: int = 2000

    def __post_init__(self) -> None:
        self._check_seeds()
        self._check_fusions()
        for name in ("stage1_steps", "stage2_steps"):
            if getattr(self, name) < 1:
                raise AblationError(f"{name} is {getattr(self, name)}; give at least 1.")
        for name in ("variants", "perturbations", "product_slices"):
            values = getattr(self, name) or ()
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise AblationError(f"{name} names {twice!r} twice; name each once.")

    def _check_seeds(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise AblationError(f"seeds is {list(self.seeds)}; give at least one, each once and none below 0.")

    def _check_fusions(self) -> None:
        unknown = [name for name in self.fusions if name not in FUSIONS]
        if unknown:
            raise AblationError(f"fusions names {unknown[0]!r}; the kinds are {', '.join(FUSIONS)}.")
        own = [name for name in self.fusions if name in _OWN_VARIANTS]
        if own:
            raise AblationError(f"fusions names {own[0]!r}, which is a variant of its own already; leave it out.")
        if len(set(self.fusions)) < len(self.fusions):
            raise AblationError(f"fusions is {list(self.fusions)}; name each kind once.")
        if self.default_fusion == "weighted_mean":
            raise AblationError(
                "default_fusion is 'weighted_mean', which is three variants; choose a fusion of one variant."
            )
        if self.default_fusion not in self.fusions:
            raise AblationError(
                f"default_fusion is {self.default_fusion!r}, which is not among the fusions {list(self.fusions)}; "
                "name it there, or choose one of them."
            )

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
