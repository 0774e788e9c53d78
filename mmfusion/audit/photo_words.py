"""What photos show of an attribute: a probability for each of its values, learned from what titles and queries say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from mmfusion.audit.views import Flags, Floats
from mmfusion.audit.vocabulary import Attribute
from mmfusion.data.qrels import Qrels

Labels = npt.NDArray[np.int64]

FOLDS = 5
_MOST_LABELS = 50_000
# Of the squared weights, for inputs of length 1 that are scaled by _SCALE: found on train products of bench/fpi.
_PENALTY, _SCALE, _WORD_SCALE, _STEPS = 5.0, 10.0, 3.0, 60


class Naming(NamedTuple):
    """Which values of an attribute P texts name.

    Attributes:
        named: (P, K) bool, by value in the order of the attribute.
        labels: (P,) int64, the value where a text names one alone, otherwise -1.
    """

    named: Flags
    labels: Labels


def naming(attribute: Attribute, texts: Sequence[str]) -> Naming:
    """Looks for the values of an attribute in texts."""
    place = {value: number for number, value in enumerate(attribute.values)}
    named = np.zeros((len(texts), len(place)), dtype=bool)
    for row, text in enumerate(texts):
        named[row, [place[value] for value in attribute.named_in(text)]] = True
    return Naming(named, np.where(named.sum(1) == 1, named.argmax(1), -1))


def labels_of_queries(queries: Naming, qrels: Qrels, num_products: int) -> Labels:
    """The value that the queries for which a product has the highest grade name, (num_products,) int64, -1 unless one.

    Args:
        queries: Of all queries, by row.
        qrels: Judgements to learn from.
        num_products: Products of the catalogue.
    """
    votes = np.zeros((num_products, queries.named.shape[1]), dtype=bool)
    best = (qrels.grade == qrels.grade.max(initial=1)) & (queries.labels[qrels.query] >= 0)
    votes[qrels.product[best], queries.labels[qrels.query[best]]] = True
    return np.where(votes.sum(1) == 1, votes.argmax(1), -1)


def word_vectors(num_values: int, labels: Labels, vectors: Floats) -> Floats:
    """A direction (K, D) for each value: the mean of the texts that name it alone, less the mean of these means.

    Args:
        num_values: K.
        labels: (N,) of texts, -1 for those that do not count.
        vectors: (N, D) of the same texts. A value that no text names gets 0.
    """
    means = np.zeros((num_values, vectors.shape[1]), dtype=np.float32)
    known = np.unique(labels[labels >= 0])
    for value in known:
        means[value] = vectors[labels == value].mean(0)
    means[known] -= means[known].mean(0)
    return means / np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-9)


def log_shares(photos: Floats, words: Floats, labels: Labels, *, seed: int) -> Floats:
    """Log-probabilities (P, K) float32 of the values on photos.

    A multinomial logistic regression with a Gaussian prior over the photo's vector and its cosines with the words.
    Products with a label are judged by a model that learned from the other four fifths of them, so that no title is
    judged by what it says itself (the out-of-sample probabilities of Northcutt et al., "Confident Learning", 2021).

    Args:
        photos: (P, D) vectors, L2-normalised; a row of zeros is no photo.
        words: (K, D) directions of the words.
        labels: (P,) int64 in [0, K), -1 for products without one.
        seed: Of the folds.
    """
    rng = np.random.default_rng(seed)
    known = np.flatnonzero(labels >= 0)
    known = rng.permutation(known)[:_MOST_LABELS]
    fold = np.full(len(labels), -1)
    fold[known] = np.arange(len(known)) % FOLDS
    centre = photos[known].mean(0, keepdims=True) if len(known) else np.zeros((1, 1), dtype=np.float32)
    inputs = torch.from_numpy(
        _SCALE * np.concatenate([_WORD_SCALE * photos @ words.T, photos - centre], axis=1)
    ).float()
    inputs = F.pad(inputs, (0, 1), value=1.0)
    targets, found = torch.from_numpy(labels), torch.zeros(len(labels), len(words))
    for held_out in range(-1, FOLDS):
        learned = torch.from_numpy((fold >= 0) & (fold != held_out))
        weights = _fitted(inputs[learned], targets[learned], len(words))
        judged = torch.from_numpy(fold == held_out)
        found[judged] = F.log_softmax(inputs[judged] @ weights, dim=1)
    return found.numpy()


def _fitted(inputs: torch.Tensor, targets: torch.Tensor, values: int) -> torch.Tensor:
    """Weights (features, K) of the regression; the cosines with the words have a start of their own."""
    # Where no title has a label for a value, the word's own direction is all that is known of it.
    start = torch.zeros(inputs.shape[1], values)
    start[range(values), range(values)] = 0.2
    weights = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([weights], max_iter=_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(inputs @ weights, targets, reduction="sum") if len(targets) else weights.sum() * 0
        value = value + _PENALTY * (weights - start).square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()
