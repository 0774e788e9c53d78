"""What a model says of its modalities: whether its weights explain its scores, and what its query router weighs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmfusion.evaluation.evaluate import encode
from mmfusion.model import VIEWS

_CHUNK = 65_536


@dataclass(frozen=True)
class ModalityAgreement:
    """Spearman rank correlations, over products, of reported weights with measured changes of the score.

    The change that a modality makes to a product is the mean, over the pairs of that product, of the score with it
    minus the score without it: positive where the modality helps. A correlation is None where it is undefined: fewer
    than two products, or all weights or all changes are equal (a fixed weighted mean).

    Attributes:
        photo: Photo weight against the change that the photo makes, in [-1, 1].
        text: Text weight against the change that the text makes.
        balance: Photo weight against the photo's change minus the text's. A weight is a share, so this is the
            comparison like with like.
        num_products: Products compared, those that have both modalities and a pair.
        num_pairs: Pairs of these products.
    """

    photo: float | None
    text: float | None
    balance: float | None
    num_products: int
    num_pairs: int

    def __str__(self) -> str:
        values = {"photo": self.photo, "text": self.text, "balance": self.balance}
        parts = [f"{name} {'undefined' if value is None else format(value, '+.2f')}" for name, value in values.items()]
        return (
            f"rank correlation of weights and leave-one-out changes: {', '.join(parts)} "
            f"over {self.num_products} products ({self.num_pairs} pairs)"
        )


def modality_agreement(
    *,
    photo_weights: np.ndarray,
    present: np.ndarray,
    query_embeds: np.ndarray,
    product_embeds: np.ndarray,
    without_photo: np.ndarray,
    without_text: np.ndarray,
    pairs: np.ndarray,
) -> ModalityAgreement:
    """Correlates the reported photo weights with what leaving one modality out does to the score.

    Products that lack a modality are left out: there, weight and change are given, and would flatter the figure.

    Args:
        photo_weights: Float [P] in [0, 1], share of the photo; the text has the rest.
        present: Bool [P, 2], columns text and photo.
        query_embeds: Float [Q, D], as scored by inner product.
        product_embeds: Float [P, D] of the products with all that they have.
        without_photo: Float [P, D] of the same products with their photos dropped.
        without_text: Float [P, D] of the same products with their text dropped.
        pairs: Integer [N, 2] (query row, product row), the relevant ones.

    Returns:
        The correlations and what they were measured over.

    Raises:
        ValueError: Shapes do not fit, a row is out of range, or an embedding or weight is not finite.
    """
    photo_weights, present = np.asarray(photo_weights, np.float64), np.asarray(present, bool)
    query_embeds, product_embeds, pairs = np.asarray(query_embeds), np.asarray(product_embeds), np.asarray(pairs)
    without_photo, without_text = np.asarray(without_photo), np.asarray(without_text)
    products, width = len(product_embeds), product_embeds.shape[-1]
    for name, values, shape in (
        ("product_embeds", product_embeds, (products, width)),
        ("query_embeds", query_embeds, (len(query_embeds), width)),
        ("without_photo", without_photo, (products, width)),
        ("without_text", without_text, (products, width)),
        ("present", present, (products, 2)),
        ("photo_weights", photo_weights, (products,)),
        ("pairs", pairs, (len(pairs), 2)),
    ):
        if values.shape != shape or (name == "pairs" and values.dtype.kind not in "iu"):
            needed = f"integers {shape}" if name == "pairs" else shape
            raise ValueError(f"{name} has shape {values.shape} and type {values.dtype} where {needed} is needed")
    limits = np.array([len(query_embeds), products])
    for name, values, valid, needed in (
        ("product_embeds", product_embeds, np.isfinite(product_embeds), "finite numbers"),
        ("query_embeds", query_embeds, np.isfinite(query_embeds), "finite numbers"),
        ("without_photo", without_photo, np.isfinite(without_photo), "finite numbers"),
        ("without_text", without_text, np.isfinite(without_text), "finite numbers"),
        ("photo_weights", photo_weights, (photo_weights >= 0) & (photo_weights <= 1), "shares in [0, 1]"),
        (
            "pairs",
            pairs,
            (pairs >= 0) & (pairs < limits),
            f"a row of {limits[0]} queries and one of {products} products",
        ),
    ):
        if not valid.all():
            row = int(np.argwhere(~valid)[0, 0])
            raise ValueError(f"{name}[{row}] is {values[row].tolist()}; give {needed}")
    pairs = pairs[present[pairs[:, 1]].all(axis=1)].astype(np.int64)
    compared, photo = _mean_change(query_embeds, product_embeds, without_photo, pairs)
    _, text = _mean_change(query_embeds, product_embeds, without_text, pairs)
    weights = photo_weights[compared]
    return ModalityAgreement(
        photo=spearman(weights, photo),
        text=spearman(-weights, text),
        balance=spearman(weights, photo - text),
        num_products=len(compared),
        num_pairs=len(pairs),
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman rank correlation; tied values share their mean rank.

    Args:
        first: Float [N], finite.
        second: Float [N], finite.

    Returns:
        Correlation in [-1, 1]; None for fewer than two values or where one side is constant.
    """
    ranks = np.stack([_mean_ranks(np.asarray(first)), _mean_ranks(np.asarray(second))])
    centred = ranks - ranks.mean(axis=1, keepdims=True) if ranks.size else ranks
    norms = np.sqrt((centred**2).sum(axis=1))
    if not norms.all():
        return None
    return float(np.clip(centred[0] @ centred[1] / norms.prod(), -1.0, 1.0))


def router_weights(
    query_embeds: np.ndarray, columns: Mapping[str, Sequence[Any]] | None = None
) -> dict[str, dict[str, float]]:
    """Mean weights of the views of a product over all queries, and over those that share a value of a column.

    A routed query is its unit vector once for each view, scaled by that view's weight: the weights are the lengths.

    Args:
        query_embeds: Float [Q, 3 * D] of a model with a query router, in the order of `VIEWS`.
        columns: Values of each query by column, Q each.

    Returns:
        Weights by view, in [0, 1] and summing to 1, by "all" and "column=value".

    Raises:
        ValueError: The vectors are not views side by side, or there is no query.
    """
    if query_embeds.ndim != 2 or not len(query_embeds) or query_embeds.shape[1] % len(VIEWS):
        raise ValueError(
            f"query_embeds has shape {query_embeds.shape}; pass routed queries, {len(VIEWS)} views side by side"
        )
    weights = np.linalg.norm(query_embeds.reshape(len(query_embeds), len(VIEWS), -1), axis=2)
    groups = {"all": weights}
    for column, values in (columns or {}).items():
        labels, codes = encode(values)
        groups.update((f"{column}={label}", weights[codes == code]) for code, label in enumerate(labels))
    means = {name: group.mean(axis=0, dtype=np.float64).tolist() for name, group in groups.items()}
    return {name: dict(zip(VIEWS, group, strict=True)) for name, group in means.items()}


def _mean_ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _mean_change(
    queries: np.ndarray, full: np.ndarray, without: np.ndarray, pairs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Product rows that occur in the pairs, int64 [n], and the mean change of their scores, float64 [n]."""
    products, position = np.unique(pairs[:, 1], return_inverse=True)
    changes = np.empty(len(pairs))
    for start in range(0, len(pairs), _CHUNK):
        query, product = pairs[start : start + _CHUNK].T
        moved = full[product].astype(np.float64) - without[product]
        changes[start : start + _CHUNK] = (queries[query] * moved).sum(axis=1)
    totals = np.bincount(position, weights=changes, minlength=len(products))
    return products, totals / np.bincount(position, minlength=len(products))
