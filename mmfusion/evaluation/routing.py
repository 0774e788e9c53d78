"""What a query router looks at: mean weights of the views of a product, by kind of query."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmfusion.evaluation.evaluation import Evaluation
from mmfusion.evaluation.slices import encode
from mmfusion.markdown import table
from mmfusion.model import VIEWS

ALL_QUERIES = "all"
PROVENANCE = "router_weights"


def router_weights(
    query_embeds: np.ndarray, columns: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, dict[str, float]]:
    """Mean weights of the views over all queries, and over those that share a value of a column.

    A routed query is its unit vector once for each view, scaled by that view's weight: the weights are the lengths.

    Args:
        query_embeds: float [Q, 3 * D] of a model with a query router, in the order of `VIEWS`.
        columns: values of each query by column, Q each.

    Returns:
        Weights by view, in [0, 1] and summing to 1, by "all" and "column=value".

    Raises:
        ValueError: the vectors are not views side by side, or there is no query.
    """
    if query_embeds.ndim != 2 or not len(query_embeds) or query_embeds.shape[1] % len(VIEWS):
        raise ValueError(
            f"query_embeds has shape {query_embeds.shape}; pass routed queries, {len(VIEWS)} views side by side"
        )
    weights = np.linalg.norm(query_embeds.reshape(len(query_embeds), len(VIEWS), -1), axis=2)
    found = {ALL_QUERIES: _means(weights)}
    for column, values in (columns or {}).items():
        labels, codes = encode(values)
        found.update((f"{column}={label}", _means(weights[codes == code])) for code, label in enumerate(labels))
    return found


def format_router_weights(evaluations: Sequence[Evaluation]) -> str:
    """Markdown table of the weights in per cent, means over the evaluations (other seeds); empty without a router."""
    routed = [found for e in evaluations if (found := e.provenance.get(PROVENANCE))]
    if not routed:
        return ""
    rows = [["queries", *VIEWS]]
    for name in routed[0]:
        means = (np.mean([found[name][view] for found in routed]) for view in VIEWS)
        rows.append([name, *(f"{100 * mean:.1f}" for mean in means)])
    return table(rows)


def _means(weights: np.ndarray) -> dict[str, float]:
    return dict(zip(VIEWS, weights.mean(axis=0, dtype=np.float64).tolist(), strict=True))
