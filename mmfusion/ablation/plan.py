"""The commands of a variant for a seed, and of the whole ablation in the order in which they run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mmfusion.ablation.settings import AblationSettings
from mmfusion.ablation.variants import (
    ROUTED,
    ROUTED_EQUAL_BYTES,
    TEXT_ONLY,
    PlannedVariant,
    all_variants,
    reasons_not_run,
)
from mmfusion.evaluation.perturb import Perturbation
from mmfusion.model import VIEWS
from mmfusion.stages import Optimization

Recipe = Literal["base", "stage1", "stage2", "evaluate"]

TOY_ENCODERS = "toy_encoders"
# Width of the toy text encoder, so that projections start as identity; said here as the plan needs it beforehand.
TOY_EMBEDDING_DIM = 64

NO_PHOTO_TERMS = {"query_image_weight": 0, "title_image_weight": 0}
NO_SINGLE_VIEWS = {"query_text_weight": 0, "query_image_weight": 0}


@dataclass(frozen=True)
class AblationStep:
    """One sub-process.

    Attributes:
        recipe: Name of the recipe.
        flags: Its flags in their order, values as they are on the command line.
        variant: Variant that asked for it first.
        seed: Of training; None where no seed plays a part.
        folder: Run folder of a training; folder of the results of an evaluation.
        name: Name of the result of an evaluation; "" for a training.
        model: Folder or Hub id of the model that it reads; None where it reads none.
        perturbation: Of an evaluation.
    """

    recipe: Recipe
    flags: tuple[tuple[str, str], ...]
    variant: str
    seed: int | None
    folder: Path
    name: str = ""
    model: str | None = None
    perturbation: Perturbation = "none"

    @property
    def stem(self) -> Path:
        """Path without ending of its log and its record, next to a run folder, as a command needs that for itself."""
        return self.folder / self.name if self.name else self.folder

    @property
    def kind(self) -> str:
        """Name of the same step for any seed; what its time is guessed from."""
        return f"{self.recipe} {self.variant} {self.folder.name if not self.name else self.perturbation}"

    @property
    def title(self) -> str:
        seed = "" if self.seed is None else f", seed {self.seed}"
        perturbed = "" if self.perturbation == "none" else f" under {self.perturbation}"
        return f"{self.variant}{seed}: {self.recipe}{perturbed}"

    @property
    def arguments(self) -> list[str]:
        """The command line after the interpreter and the script."""
        return [part for name, value in self.flags for part in (f"--{name}", value)]

    def command(self) -> str:
        """The command as it can be pasted into a shell."""
        return shlex.join(["mmfusion", self.recipe, *self.arguments])


@dataclass(frozen=True)
class _Trained:
    """A model, and from what its vision encoder can be fed.

    Attributes:
        folder: Folder or Hub id.
        cache: Name of the cache of the features that its last training kept frozen; None: it read photos.
        blocks: Vision blocks below those features; None where they are not known.
        all_blocks: Blocks of the whole vision encoder; None where they are not known.
        moved: Whether any training since the base has changed the vision encoder.
    """

    folder: str
    cache: str | None
    blocks: int | None
    all_blocks: int | None
    moved: bool = False


def plan_ablation(settings: AblationSettings) -> list[AblationStep]:
    """All steps, each once: seed by seed, in each from the first variant up, so that one seed gives a whole table.

    Raises:
        AblationError: A name is not that of a variant.
    """
    skipped = reasons_not_run(settings)
    chosen = [variant for variant in all_variants(settings) if variant.name not in skipped]
    steps: dict[Path, AblationStep] = {}
    for seed in settings.seeds:
        for variant in chosen:
            for step in _Planner(settings, variant, None if variant.deterministic else seed).steps():
                steps.setdefault(step.stem, step)
    return list(steps.values())


def toy_base_flags(settings: AblationSettings) -> dict[str, Any]:
    """Flags of the command `base` for the toy model."""
    folder = settings.output / TOY_ENCODERS
    config = {"fusion_hidden_size": 128, "embedding_dim": TOY_EMBEDDING_DIM}
    return {"text": str(folder / "text"), "vision": str(folder / "vision"), "model_config": config, "seed": 0}


class _Planner:
    """The steps of one variant for one seed, those that it shares with other variants included."""

    def __init__(self, settings: AblationSettings, variant: PlannedVariant, seed: int | None) -> None:
        self.settings, self.variant, self.seed = settings, variant, seed
        blocks = settings.vision_blocks
        self.base = _Trained(settings.base_source, "frozen_vision", blocks, blocks)

    def steps(self) -> Iterator[AblationStep]:
        if self.settings.base is None:
            flags = {**toy_base_flags(self.settings), "output": self.settings.base_source}
            yield AblationStep("base", _flags(flags), self.variant.name, None, Path(self.settings.base_source))
        training = list(self._training())
        yield from (step for _, step in training)
        trained = training[-1][0] if training else self.base
        for perturbation in ("none", *self.settings.perturbations):
            # Photos mean nothing to a tower that reads text alone.
            of_text = self.variant.name == TEXT_ONLY and "photos" not in perturbation
            if perturbation == "none" or of_text or self.variant.name == self.settings.default_fusion:
                yield self._evaluation(trained, perturbation)

    def _training(self) -> Iterator[tuple[_Trained, AblationStep]]:
        settings, name, default = self.settings, self.variant.name, self.settings.default_fusion
        first, second = settings.stage1_optimization, settings.stage2_optimization
        match name:
            case "bm25":
                return
            case "text_only":
                blind = replace(first, vision_learning_rate=0.0), replace(second, vision_learning_rate=0.0)
                yield (aligned := self._train("stage1", self.base, "stage1_text", blind[0], NO_PHOTO_TERMS))
                yield self._train("stage2", aligned[0], name, blind[1], {**NO_SINGLE_VIEWS, "fusion": name})
            case "naive_concat" | "larger_generic":
                larger = str(settings.larger_base), "larger_frozen_vision", settings.larger_vision_blocks
                base = self.base if name == "naive_concat" else _Trained(*larger, settings.larger_vision_blocks)
                frozen = replace(second, text_learning_rate=0.0, vision_learning_rate=0.0)
                whole = {"fusion": "concat", "steps": settings.all_steps}
                yield self._train("stage2", base, name, frozen, {**NO_SINGLE_VIEWS, **whole})
            case "one_stage":
                # The encoders get as much as in the staged run: a rate that only one of its stages has counts as well.
                rates = replace(
                    first,
                    text_learning_rate=max(first.text_learning_rate, second.text_learning_rate),
                    vision_learning_rate=max(first.vision_learning_rate, second.vision_learning_rate),
                )
                # Batches of stage 2 are large because frozen encoders are cached; here they are trained, as in stage 1.
                small = {"fusion": default, "batch_size": settings.batch_size, "extra_products": 0}
                yield self._train("stage2", self.base, name, rates, {**small, "steps": settings.all_steps})
            case _:
                routed = name in (ROUTED, ROUTED_EQUAL_BYTES)
                config = dict(self.variant.fusion_config)
                own: dict[str, Any] = {"query_router": True} if routed else {"fusion_config": config} if config else {}
                folder, fusion = (ROUTED, default) if routed else (name, self.variant.fusion or name)
                yield (aligned := self._train("stage1", self.base, "stage1", first, {}))
                yield self._train("stage2", aligned[0], folder, second, {**own, "fusion": fusion})

    def _train(
        self,
        recipe: Recipe,
        base: _Trained,
        name: str,
        optimization: Optimization,
        own: Mapping[str, Any],
    ) -> tuple[_Trained, AblationStep]:
        settings, folder = self.settings, self.settings.output / f"seed{self.seed}" / name
        if recipe == "stage1":
            options = settings.stage1_options
            budget: dict[str, Any] = {"steps": settings.stage1_steps, "batch_size": settings.batch_size}
        else:
            options = settings.stage2_options
            budget = {"fusion": "", "steps": settings.stage2_steps, "batch_size": settings.stage2_batch_size}
            budget["extra_products"] = settings.extra_products
        # A cache rejects the features of another encoder, so that each state of the encoder needs its own folder.
        if optimization.vision_learning_rate > 0:
            lower = settings.freeze_vision_blocks
            cache, blocks = (f"lower_{lower}_blocks", lower) if lower else (None, None)
            trained = replace(base, folder=str(folder), cache=cache, blocks=blocks, moved=True)
        else:
            # What stage 1 has trained is frozen whole in stage 2: features that the later runs of this seed share.
            cache = "_".join(Path(base.folder).parts[-2:]) if base.moved else base.cache
            trained = replace(base, folder=str(folder), cache=cache, blocks=base.all_blocks)
        flags = {
            "catalogue": settings.catalogue_source,
            "base": base.folder,
            "output": str(folder),
            **budget,
            **_dotted("optimization", optimization),
            # Not a difference between towers that see and the one that reads: it has no photo to look at.
            **({} if self.variant.name == TEXT_ONLY else {"photo_views": settings.photo_views}),
            "freeze_vision_blocks": settings.freeze_vision_blocks,
            "feature_cache": str(settings.caches / (trained.cache or "photos")),
            "checkpoint_every": settings.checkpoint_every,
            "validate_every": settings.validate_every,
            **_dotted("hardware", settings.hardware),
            **options,
            **own,
            "seed": self.seed,
        }
        return trained, AblationStep(recipe, _flags(flags), self.variant.name, self.seed, folder, model=base.folder)

    def _evaluation(self, trained: _Trained, perturbation: Perturbation) -> AblationStep:
        settings = self.settings
        name = ".".join([self.variant.name, *(() if self.seed is None else (f"seed{self.seed}",))])
        name = name if perturbation == "none" else f"{name}.{perturbation}"
        flags: dict[str, Any] = {
            "catalogue": settings.catalogue_source,
            "base": trained.folder,
            "output": str(settings.results),
            "name": name,
            "split": settings.split,
            "perturb": perturbation,
            "seed": self.seed or 0,
        }
        optional = {"product_slices": list(settings.product_slices), "label_source": settings.label_source}
        flags |= {name: value for name, value in optional.items() if value}
        if self.variant.name == ROUTED_EQUAL_BYTES and settings.embedding_dim is not None:
            # What an equal number of bytes costs is the question, whether or not the model was trained for it.
            flags |= {"truncate_dim": settings.embedding_dim // len(VIEWS), "allow_untrained_width": True}
        if self.variant.name == "bm25":
            flags["ranker"] = "bm25"
        elif trained.blocks and trained.cache and (self.variant.name != TEXT_ONLY or perturbation == "text_dropped"):
            flags["freeze_vision_blocks"] = trained.blocks
            flags["feature_cache"] = str(settings.caches / trained.cache / f"{settings.split}_pool")
        return AblationStep(
            "evaluate",
            _flags(flags),
            self.variant.name,
            self.seed,
            settings.results,
            name=name,
            model=trained.folder,
            perturbation=perturbation,
        )


def _dotted(prefix: str, settings: Any) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in asdict(settings).items()}


def _flags(flags: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """As they are written on a command line: texts as they are, everything else as JSON."""
    return tuple((name, value if isinstance(value, str) else json.dumps(value)) for name, value in flags.items())
