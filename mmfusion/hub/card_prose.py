"""The sentences of a card that depend on what is known: labels, data, limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from huggingface_hub import ModelCardData

from mmfusion.hub.card_ablation import Ablation
from mmfusion.hub.card_facts import ModelFacts
from mmfusion.hub.card_private import public_text
from mmfusion.hub.card_results import NOT_STATED
from mmfusion.hub.card_tables import Measured
from mmfusion.hub.card_training import TrainingRun, catalogues_of, seeds_of
from mmfusion.markdown import cell

_MADE_BY_PROGRAM = ("synthetic", "generated", "derived", "no human")


def summary(facts: ModelFacts, data: ModelCardData) -> str:
    """The model in a list."""
    config = facts.config
    shorter = ", ".join(map(str, config.matryoshka_dims)) or "none was trained"
    similarity = (
        "inner product (a query router weighs three views)" if config.query_router else "inner product = cosine"
    )
    bases = data.get("base_model")
    return "\n".join(
        [
            f"- fusion: `{config.fusion}`; text encoder: `{config.text_config.model_type}`; vision encoder: "
            f"`{config.vision_config.model_type}`",
            f"- base models: {', '.join(bases) if bases else 'not stated'}",
            f"- parameters: {facts.parameters:,}",
            f"- vectors: {config.vector_dim} components, {facts.vector_bytes:,} bytes a product in float32; "
            f"to compare by {similarity}",
            f"- shorter widths: {shorter}",
            f"- product text: `{config.product_template}`",
        ]
    )


def label_notice(measured: Sequence[Measured], ablations: Sequence[Ablation]) -> str:
    """What stands above all numbers: who made the labels."""
    sources = _sources(measured, ablations)
    if not sources:
        return "**Not measured.** No results were given for this card."
    lines = []
    for place, source in sources:
        if not source:
            lines.append(f"**Who made the labels of {place} is not stated**; read those figures as unverified.")
        elif any(word in source.lower() for word in _MADE_BY_PROGRAM):
            lines.append(f"**Labels of {place} are synthetic**: {source}.")
        else:
            lines.append(f"Labels of {place}: {source}.")
    return "\n\n".join(lines)


def data_section(measured: Sequence[Measured], ablations: Sequence[Ablation], runs: Sequence[TrainingRun]) -> str:
    """Where the data came from and how labels were made."""
    trained = catalogues_of(runs)
    lines = [
        f"Trained on: {', '.join(public_text(cell(name)) for name in trained)}."
        if trained
        else "Trained on: not stated."
    ]
    for part in measured:
        evaluation = part.own.evaluation
        grades = ", ".join(
            f"{count} of grade {grade}" for grade, count in sorted(evaluation.judgements_by_grade.items())
        )
        source = public_text(cell(evaluation.label_source)) or NOT_STATED
        lines.append(
            f"- {part.own.title}: {evaluation.num_queries} queries over {evaluation.num_products} products; "
            f"judgements: {grades}. How labels were made: {source}"
        )
    if not measured:
        lines += [
            f"- {place}: how labels were made: {source or NOT_STATED}" for place, source in _sources((), ablations)
        ]
    return "\n".join([lines[0], "", *lines[1:]]).rstrip()


def limits_section(
    measured: Sequence[Measured], ablations: Sequence[Ablation], runs: Sequence[TrainingRun], data: ModelCardData
) -> str:
    """What the numbers do not say."""
    return "\n".join(f"- {line}" for line in _limits(measured, ablations, runs, data))


def _limits(
    measured: Sequence[Measured], ablations: Sequence[Ablation], runs: Sequence[TrainingRun], data: ModelCardData
) -> Iterator[str]:
    language = data.get("language")
    stated = ", ".join([language] if isinstance(language, str) else language or []) or "not stated"
    yield f"Languages of queries and titles: {stated}. Others were not measured."
    yield "Categories, photo styles and sellers other than those of the data sets below were not measured."
    if any(
        source and any(word in source.lower() for word in _MADE_BY_PROGRAM)
        for _, source in _sources(measured, ablations)
    ):
        yield (
            "Labels that a program made miss what their source did not write down, and favour models that read the "
            "same words; how people judge these results was not measured."
        )
    seeds = seeds_of(runs)
    if len(seeds) == 1:
        yield (
            f"The weights are of one training seed ({seeds[0]}); intervals are over queries and know nothing of "
            "another."
        )
    yield (
        "The model orders products by likeness to those it was trained on. Products with sparse titles or poor photos, "
        "and brands that it has seldom seen, may be ranked below what they deserve; slices above show what was "
        "measured of it."
    )
    yield "Fairness towards sellers, brands, or persons shown in photos was not measured."
    if not any(part.own.agreement for part in measured):
        yield "Whether the reported modality weights explain a score was not measured."


def _sources(measured: Sequence[Measured], ablations: Sequence[Ablation]) -> list[tuple[str, str]]:
    found = [(part.own.title, part.own.evaluation.label_source) for part in measured]
    if not found:
        found = [(f"the ablation's {ablation.split} split", ablation.labels) for ablation in ablations]
    return [(public_text(cell(place)), public_text(cell(source))) for place, source in dict.fromkeys(found)]
