"""Results in a card: this model beside others, its slices, perturbed inputs, and what its weights explain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mmfusion.evaluation import Evaluation, format_table, paired_bootstrap
from mmfusion.evaluation.numbers import interval, metric_title, percent
from mmfusion.evaluation.report import format_product_slices
from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_private import public_text
from mmfusion.hub.card_results import METRICS, NOT_MEASURED, Result
from mmfusion.markdown import table

_PERTURBATIONS = {
    "misleading_titles": "a wrong colour word is put into each title",
    "photos_dropped": "no product has a photo",
    "text_dropped": "no product has a text",
    "typos": "one slip of the keyboard in each query with a word of four letters or more",
    "photos_shuffled": "the control: each product shows the photo of another one",
}
_ALL: tuple[str, str] | None = None


@dataclass(frozen=True)
class Measured:
    """This model on one split of one data set.

    Attributes:
        own: The evaluation over unchanged inputs and whole vectors.
        others: Other models and baselines under the same conditions, lowest nDCG@10 first.
        changed: This model over perturbed inputs or shortened vectors, under the same conditions.
    """

    own: Result
    others: tuple[Result, ...]
    changed: tuple[Result, ...]


def sort_results(results: Sequence[Result], fingerprint: str, vector_bytes: int) -> tuple[list[Measured], list[Result]]:
    """Tells this model's results from those of others.

    Args:
        results: All results.
        fingerprint: Of this model.
        vector_bytes: Size of its whole vectors in float32.

    Returns:
        One entry for each data set, split and pool that this model was measured on, and the results that share their
        conditions with none of them.

    Raises:
        CardError: None is of this model; two of this model are of one data set, split and pool; or a result of this
            model does not say how long its vectors were.
    """
    own = [result for result in results if result.model == fingerprint and _ranks_by_vectors(result)]
    whole = [result for result in own if result.clean and result.bytes_per_product == vector_bytes]
    if results and not whole:
        found = ", ".join(sorted({f"{result.path.name}: {result.model[:12] or 'no model'}" for result in results})[:6])
        raise CardError(
            f"none of {len(results)} results is of this model over unchanged inputs (its fingerprint begins "
            f"{fingerprint[:12]}; they have {found})",
            f"{results[0].path.parent}, field 'provenance.model'",
            "evaluate it: recipes/evaluate.py --base FOLDER, with the folder that the card is for",
        )
    seen: dict[tuple[str, str, str], Result] = {}
    for result in whole:
        if not result.dataset:
            raise CardError(
                "the field is missing, and no --dataset was given",
                f"{result.path}, field 'provenance.catalogue'",
                "give --dataset NAME, the name of the catalogue that these results are of",
            )
        key = (result.dataset, result.split, result.evaluation.pool)
        if key in seen:
            raise CardError(
                f"{seen[key].path} has numbers of this model for the same data set, split and pool",
                str(result.path),
                "give only one of the two files",
            )
        seen[key] = result
    measured = [_measured(result, results, own) for result in whole]
    placed = {id(one) for part in measured for one in (part.own, *part.others, *part.changed)}
    return measured, [result for result in results if id(result) not in placed]


def results_section(measured: Sequence[Measured], left_out: Sequence[Result]) -> str:
    """This model beside the others, with intervals, for each data set and split."""
    if not measured:
        return NOT_MEASURED
    parts = [_results(part) for part in measured]
    if left_out:
        names = ", ".join(f"{result.evaluation.name} ({result.title})" for result in left_out)
        parts.append(f"Given, but measured under other conditions or over changed inputs, and not shown: {names}.")
    return public_text("\n\n".join(parts))


def slices_section(measured: Sequence[Measured]) -> str:
    """The same by kind of query and by product."""
    parts = [text for part in measured for text in _slices(part)]
    return public_text("\n\n".join(parts)) if parts else NOT_MEASURED


def perturbed_section(measured: Sequence[Measured]) -> str:
    """This model over inputs made worse, and over shortened vectors; "" if there is neither."""
    return public_text("\n\n".join(text for part in measured for text in _perturbed(part)))


def weights_section(measured: Sequence[Measured]) -> str:
    """How far the reported modality weights explain the scores."""
    found = [(part.own, part.own.agreement) for part in measured if part.own.agreement is not None]
    lines = [f"- {result.title}: {agreement}" for result, agreement in found]
    if not lines:
        return NOT_MEASURED
    explanation = (
        "Spearman rank correlation, over products, of the reported weight of a modality with what leaving that "
        "modality out does to the scores. 1 would be an explanation, 0 is none."
    )
    return public_text("\n".join([explanation, "", *lines]))


def _ranks_by_vectors(result: Result) -> bool:
    # A result without the field is of a version that had no shortened vectors, and marked no baseline, either.
    if result.bytes_per_product is not None:
        return True
    if "bytes_per_product" not in result.evaluation.provenance:
        raise CardError(
            "the field is missing, so that a baseline cannot be told from the model",
            f"{result.path}, field 'provenance.bytes_per_product'",
            "evaluate again with recipes/evaluate.py",
        )
    return False


def _measured(own: Result, results: Sequence[Result], ours: Sequence[Result]) -> Measured:
    alike = [result for result in results if result.conditions == own.conditions and result is not own]
    others = [result for result in alike if result.clean and result not in ours]
    others.sort(key=lambda result: result.evaluation.means["ndcg@10"] or 0.0)
    return Measured(own, tuple(others), tuple(result for result in alike if result in ours))


def _results(part: Measured) -> str:
    head = ["", *map(metric_title, METRICS), *(f"this model against it, {metric_title(metric)}" for metric in METRICS)]
    rows = [head]
    for other in part.others:
        means = [percent(other.evaluation.means[metric]) for metric in METRICS]
        rows.append([_name(other), *means, *(_difference(part.own, other, metric) for metric in METRICS)])
    rows.append(
        ["**this model**", *(f"**{percent(part.own.evaluation.means[metric])}**" for metric in METRICS), "–", "–"]
    )
    note = (
        "Per cent; differences in points with 95 % intervals of a paired bootstrap over queries, which knows nothing "
        "of another training seed."
    )
    return "\n\n".join([f"### {part.own.title}", table(rows), note, f"{_conditions(part.own)}."])


def _slices(part: Measured) -> Iterator[str]:
    evaluations = [*(other.evaluation for other in part.others), _named(part.own, "this model")]
    columns = dict.fromkeys(piece.column for piece in part.own.evaluation.slices if piece.table == "query")
    products = format_product_slices(evaluations).rstrip()
    if not columns and not products:
        return
    yield f"### {part.own.title}"
    for column in columns:
        yield format_table(evaluations, slice_by=column).split("\n\n")[0]
        if part.others:
            yield _differences_by(part, column)
    if products:
        yield products


def _differences_by(part: Measured, column: str) -> str:
    pieces = [piece for piece in part.own.evaluation.slices if (piece.table, piece.column) == ("query", column)]
    rows = [
        ["this model against", *(f"{piece.value}, {metric_title(metric)}" for piece in pieces for metric in METRICS)]
    ]
    for other in part.others:
        cells = [_difference(part.own, other, metric, (column, piece.value)) for piece in pieces for metric in METRICS]
        rows.append([_name(other), *cells])
    return table(rows)


def _perturbed(part: Measured) -> Iterator[str]:
    changed = [result for result in part.changed if not result.clean]
    if changed:
        yield f"### {part.own.title}"
        yield table([_changed_head(), ["as they are", *_values(part.own), "–", "–"], *(_row(part, r) for r in changed)])
        words = [f"*{r.perturbation}*: {_PERTURBATIONS.get(r.perturbation, 'not described')}" for r in changed]
        yield f"{'; '.join(dict.fromkeys(words))}."
    shorter = [result for result in part.changed if result.clean]
    if shorter:
        yield f"### Shortened vectors, {part.own.title}"
        rows = [[f"{r.bytes_per_product} bytes a product", *_row(part, r)[1:]] for r in shorter]
        whole = f"{part.own.bytes_per_product} bytes a product (whole)"
        yield table([_changed_head(), [whole, *_values(part.own), "–", "–"], *rows])


def _changed_head() -> list[str]:
    return ["inputs", *map(metric_title, METRICS), *(f"change of {metric_title(metric)}" for metric in METRICS)]


def _row(part: Measured, result: Result) -> list[str]:
    return [result.perturbation, *_values(result), *(_difference(result, part.own, metric) for metric in METRICS)]


def _values(result: Result) -> list[str]:
    return [percent(result.evaluation.means[metric]) for metric in METRICS]


def _difference(first: Result, second: Result, metric: str, where: tuple[str, str] | None = _ALL) -> str:
    try:
        return interval(paired_bootstrap(first.evaluation, second.evaluation, metric, where=where))
    except ValueError as error:
        if "is defined for no query" in str(error):
            return "–"
        raise CardError(str(error), f"{first.path} and {second.path}", "evaluate both alike, or give one") from error


def _name(result: Result) -> str:
    seeds = result.evaluation.provenance.get("seeds")
    over = f" (mean over seeds {', '.join(map(str, seeds))})" if isinstance(seeds, list) and seeds else ""
    return f"{result.evaluation.name}{over}"


def _named(result: Result, name: str) -> Evaluation:
    return replace(result.evaluation, name=name)


def _conditions(result: Result) -> str:
    evaluation = result.evaluation
    return evaluation.conditions() if evaluation.label_source else f"{evaluation.conditions()}; labels: not stated"
