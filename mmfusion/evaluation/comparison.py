"""Several evaluations of the same queries side by side: an ablation of models."""

from collections.abc import Sequence

from mmfusion.evaluation.bootstrap import paired_bootstrap
from mmfusion.evaluation.evaluation import Evaluation
from mmfusion.evaluation.report import format_product_slices, format_table

_METRICS = ("recall@100", "ndcg@10")


def format_comparison(evaluations: Sequence[Evaluation], *, slice_by: str = "kind") -> str:
    """Markdown: a table, product slices, and differences with 95 % paired bootstrap intervals over queries.

    Args:
        evaluations: at least one, in the order of the ablation; each is compared with the one before, and the last with
            each, also on every value of `slice_by`.
        slice_by: query column.

    Raises:
        ValueError: they differ in queries, pool, relevant grade or gain.
    """
    *others, last = evaluations
    parts = [format_table(evaluations, slice_by=slice_by), format_product_slices(evaluations)]
    steps = [_difference(after, before) for before, after in zip(others, evaluations[1:-1], strict=False)]
    parts.append("\n".join([*steps, *(line for other in others for line in _differences(last, other, slice_by))]))
    return "\n".join(part for part in parts if part) + "\n"


def _differences(first: Evaluation, second: Evaluation, column: str) -> list[str]:
    values = sorted({part.value for part in first.slices if part.table == "query" and part.column == column})
    return [_difference(first, second), *(_difference(first, second, (column, value)) for value in values)]


def _difference(first: Evaluation, second: Evaluation, where: tuple[str, str] | None = None) -> str:
    pairs = [paired_bootstrap(first, second, metric, where=where) for metric in _METRICS]
    among = "" if where is None else f", {where[0]} {where[1]}"
    return f"- {first.name} against {second.name}{among}: {'; '.join(map(str, pairs))}"
