"""The variants of the ablation, from BM25 up, and the claims about them that stand or fall with other variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmfusion.ablation.settings import AblationError, AblationSettings
from mmfusion.evaluation.comparison import Variant
from mmfusion.model import VIEWS

# GCL weighs a photo 0.9 and its title 0.1; the opposite is common, too, so both are compared with a learned share.
WEIGHTED_MEANS: dict[str, dict[str, Any]] = {
    "weighted_mean_text_90": {"fusion_text_weight": 0.9},
    "weighted_mean_text_10": {"fusion_text_weight": 0.1},
    "weighted_mean_learned": {"fusion_text_weight": 0.5, "fusion_learned_weights": True},
}

TEXT_ONLY = "text_only"
ROUTED = "routed"
ROUTED_EQUAL_BYTES = "routed_equal_bytes"


@dataclass(frozen=True)
class PlannedVariant(Variant):
    """A variant, and how it is trained.

    Attributes:
        deterministic: True where no seed plays a part, so that it is evaluated once.
        fusion: Kind of fusion network of a variant that compares one after stage 1; "" for the others.
        fusion_config: Fields of the config in which it differs from the base.
    """

    deterministic: bool = False
    fusion: str = ""
    fusion_config: Mapping[str, Any] = field(default_factory=dict)


def all_variants(settings: AblationSettings) -> list[PlannedVariant]:
    """Every variant, whether it is run or not, first variant first."""
    default = settings.default_fusion
    kinds = sorted(settings.fusions, key=lambda kind: kind == default)
    thirds = f"routed, each view cut to a third: at most the bytes per product of {default}"
    return [
        PlannedVariant("bm25", "BM25 over product texts", None, deterministic=True),
        PlannedVariant(TEXT_ONLY, "text only, fine-tuned", "bm25"),
        PlannedVariant("naive_concat", "concatenation over frozen encoders", TEXT_ONLY),
        PlannedVariant("concat", "concatenation after stage 1 (domain fine-tuned)", "naive_concat"),
        *(variant for kind in kinds for variant in _fusions(kind, default)),
        PlannedVariant(ROUTED, f"{default} with a query router, thrice the bytes per product", default),
        PlannedVariant(ROUTED_EQUAL_BYTES, thirds, default, "either"),
        PlannedVariant("one_stage", f"{default} in one stage from the base, same number of steps", default, "below"),
        PlannedVariant("larger_generic", "concatenation over larger frozen encoders", "concat", "below"),
    ]


def reasons_not_run(settings: AblationSettings) -> dict[str, str]:
    """Why a variant is not run, by its name; variants that are run are not in it.

    Raises:
        AblationError: A name is not that of a variant.
    """
    names = [variant.name for variant in all_variants(settings)]
    wanted = names if settings.variants is None else settings.variants
    if unknown := [name for name in wanted if name not in names]:
        raise AblationError(f"variants names {unknown[0]!r}; the variants are {', '.join(names)}.")
    found = {name: "not asked for" if name not in wanted else _missing(name, settings) for name in names}
    return {name: reason for name, reason in found.items() if reason is not None}


def _missing(name: str, settings: AblationSettings) -> str | None:
    match name:
        case "larger_generic" if settings.larger_base is None:
            return "no --larger_base was given"
        case "routed" | "routed_equal_bytes" if settings.default_fusion == "image_only":
            return "image_only has a single view, so there is nothing to route"
        case "routed_equal_bytes" if (settings.embedding_dim or 0) < len(VIEWS):
            return f"the base's embedding_dim is {settings.embedding_dim}, and a third of it is needed"
    return None


def _fusions(kind: str, default: str) -> list[PlannedVariant]:
    if kind == "weighted_mean":
        return [_weighted_mean(name, fields) for name, fields in WEIGHTED_MEANS.items()]
    title = "photo only, after stage 1" if kind == "image_only" else f"fusion {kind} after stage 1"
    if kind == default and kind != "image_only":
        return [PlannedVariant(kind, f"{title}, the default", "concat", fusion=kind)]
    return [PlannedVariant(kind, title, "concat", "either", fusion=kind)]


def _weighted_mean(name: str, fields: Mapping[str, Any]) -> PlannedVariant:
    start = "learned from" if fields.get("fusion_learned_weights") else "fixed at"
    title = f"weighted mean after stage 1, text's share {start} {fields['fusion_text_weight']:.1f}"
    return PlannedVariant(name, title, "concat", "either", fusion="weighted_mean", fusion_config=fields)
