"""Whether the modality weights that a model reports say what the modalities do to its scores."""

from dataclasses import dataclass

import numpy as np

_CHUNK = 65_536


@dataclass(frozen=True)
class ModalityAgreement:
    """Spearman rank correlations, over products, of reported weights with measured changes of the score.

    The change that a modality makes to a product is the mean, over the pairs of that product, of the score with it
    minus the score without it: positive where the modality helps. A correlation is None where it is undefined: fewer
    than two products, or all weights or all changes are equal (a fixed weighted mean).

    Attributes:
        photo: photo weight against the change that the photo makes, in [-1, 1].
        text: text weight against the change that the text makes.
        balance: photo weight against the photo's change minus the text's. A weight is a share, so this is the
            comparison like with like.
        num_products: products compared, those that have both modalities and a pair.
        num_pairs: pairs of these products.
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
    """Correlate the reported photo weights with what leaving one modality out does to the score.

    Products that lack a modality are left out: there, weight and change are given, and would flatter the figure.

    Args:
        photo_weights: float [P] in [0, 1], share of the photo; the text has the rest.
        present: bool [P, 2], columns text and photo.
        query_embeds: float [Q, D], as scored by inner product.
        product_embeds: float [P, D] of the products with all that they have.
        without_photo: float [P, D] of the same products with their photos dropped.
        without_text: float [P, D] of the same products with their text dropped.
        pairs: integer [N, 2] (query row, product row), the relevant ones.

    Returns:
        The correlations and what they were measured over.

    Raises:
        ValueError: shapes do not fit, a row is out of range, or an embedding or weight is not finite.
    """
    photo_weights, present = np.asarray(photo_weights, np.float64), np.asarray(present, bool)
    query_embeds, product_embeds = np.asarray(query_embeds), np.asarray(product_embeds)
    without_photo, without_text, pairs = np.asarray(without_photo), np.asarray(without_text), np.asarray(pairs)
    num_products = len(product_embeds)
    shape = (num_products, *query_embeds.shape[1:])
    _check_embeds("query_embeds", query_embeds, (len(query_embeds), *product_embeds.shape[1:]))
    _check_embeds("product_embeds", product_embeds, shape)
    _check_embeds("without_photo", without_photo, shape)
    _check_embeds("without_text", without_text, shape)
    _check_shape("present", present, (num_products, 2))
    _check_shape("photo_weights", photo_weights, (num_products,))
    valid = (photo_weights >= 0) & (photo_weights <= 1)
    if not valid.all():
        row = int(np.flatnonzero(~valid)[0])
        raise ValueError(f"photo_weights[{row}] is {photo_weights[row]}; give shares in [0, 1]")
    _check_pairs(pairs, len(query_embeds), num_products)

    pairs = pairs[present[pairs[:, 1]].all(axis=1)].astype(np.int64)
    products, photo = _mean_change(query_embeds, product_embeds, without_photo, pairs)
    _, text = _mean_change(query_embeds, product_embeds, without_text, pairs)
    weights = photo_weights[products]
    return ModalityAgreement(
        photo=spearman(weights, photo),
        text=spearman(-weights, text),
        balance=spearman(weights, photo - text),
        num_products=len(products),
        num_pairs=len(pairs),
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman rank correlation; tied values share their mean rank.

    Args:
        first: float [N], finite.
        second: float [N], finite.

    Returns:
        Correlation in [-1, 1]; None for fewer than two values or where one side is constant.
    """
    ranks = np.stack([_mean_ranks(np.asarray(first)), _mean_ranks(np.asarray(second))])
    if ranks.shape[1] < 2:
        return None
    centred = ranks - ranks.mean(axis=1, keepdims=True)
    norms = np.sqrt((centred**2).sum(axis=1))
    if not norms.all():
        return None
    return float(np.clip(centred[0] @ centred[1] / norms.prod(), -1.0, 1.0))


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


def _check_embeds(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.ndim != 2:
        raise ValueError(f"{name} has shape {values.shape}; give rows of embeddings, two axes")
    _check_shape(name, values, shape)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(1))[0])
        raise ValueError(f"{name} is not finite in row {row}; look at what was embedded there")


def _check_shape(name: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape} where {shape} is needed; pass one row for each product")


def _check_pairs(pairs: np.ndarray, num_queries: int, num_products: int) -> None:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(
            f"pairs has shape {pairs.shape} and type {pairs.dtype}; give integers [N, 2], query row and product row"
        )
    outside = (pairs < 0) | (pairs >= np.array([num_queries, num_products]))
    if outside.any():
        row = int(np.flatnonzero(outside.any(1))[0])
        raise ValueError(
            f"pairs[{row}] is {pairs[row].tolist()}, but there are {num_queries} queries and {num_products} products"
        )
