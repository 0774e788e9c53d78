"""Thresholds by measured precision: how surely a finding is right is told from titles that are made wrong."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmfusion.audit.views import Flags, Floats

LEAST = 10
"""Products above a threshold, at least, that its precision is told from."""
_DRAWS, _PHOTO_DRAWS = 20, 5
_LEAST_RECALL, _MOST_ERRORS = 0.2, 0.6
# Standard errors that are added where few are above a threshold, so that a dip by chance is not taken for the least.
_CAUTION = 0.25
_TITLES = 2048


@dataclass(frozen=True)
class Threshold:
    """A score from which findings are listed, and what was measured with it.

    Attributes:
        score: Lowest score; None where no score reaches the precision that was asked for.
        precision: Share of the findings that are right, in [0, 1].
        recall: Share of what is wrong that is found, in [0, 1].
        errors: Share of the products that can be wrong and are, in [0, 1], found or not.
    """

    score: float | None
    precision: float = 0.0
    recall: float = 0.0
    errors: float = 0.0

    def reached(self, scores: Floats) -> Flags:
        """(N,) bool, where a score is at least the threshold; nowhere, if there is none."""
        return np.zeros(len(scores), dtype=bool) if self.score is None else scores >= self.score


def threshold_for(scores: Floats, made_wrong: Floats, precision: float) -> Threshold:
    """The lowest score whose findings have a precision, so that most is found.

    A share e of the products is wrong. Of these a threshold finds the share R, which is known of products that were
    made wrong; of all products, it finds the share n. So its precision is e R / n, and e is at most n / R at any
    threshold. The least n / R is taken for e: the surest findings are held to be right. Without any mistake in
    a catalogue, a few are listed nevertheless. (The method is ours; it is measured in docs/benchmarks/audit.md.)

    Args:
        scores: (N,) of products as they are; one of 0 or less is never a finding.
        made_wrong: (M,) of such products after they were made wrong.
        precision: In (0, 1).

    Returns:
        No threshold where too few are found to tell, or where most would be wrong: then photos do not show it.
    """
    ordered, wrong = np.sort(scores)[::-1], np.sort(made_wrong)
    counts = np.arange(1, len(ordered) + 1)
    recall = 1 - np.searchsorted(wrong, ordered, side="left") / max(1, len(wrong))
    # Equal scores are found together.
    last = np.append(ordered[1:] < ordered[:-1], True)[: len(ordered)]
    told = np.flatnonzero(last & (ordered > 0) & (counts >= LEAST) & (recall >= _LEAST_RECALL))
    ratios = counts[told] / len(ordered) / recall[told]
    errors = float((ratios * (1 + _CAUTION / np.sqrt(counts[told]))).min(initial=1.0))
    if errors > _MOST_ERRORS:
        return Threshold(None)
    at = np.flatnonzero(errors >= precision * ratios)[-1]
    share = min(1.0, float(errors / ratios[at]))
    return Threshold(float(ordered[told[at]]), share, float(recall[told[at]]), errors)


def sureness_for(sureness: Floats, right: Flags, errors: float, precision: float) -> Threshold:
    """The lowest probability of a photo's value at which it is right often enough.

    Args:
        sureness: (N,) probabilities, of products whose titles name a value.
        right: (N,) bool, whether it is the title's.
        errors: Share of these titles that are wrong, which are allowed for.
        precision: In (0, 1).
    """
    order = np.argsort(-sureness, kind="stable")
    ordered, counts = sureness[order], np.arange(1, len(sureness) + 1)
    shares = np.minimum(1, np.cumsum(right[order]) / counts / (1 - errors))
    last = np.append(ordered[1:] < ordered[:-1], True)[: len(ordered)]
    good = np.flatnonzero(last & (counts >= LEAST) & (shares >= precision))
    if not len(good):
        return Threshold(None)
    return Threshold(float(ordered[good[-1]]), float(shares[good[-1]]), float(counts[good[-1]] / len(sureness)), errors)


def disagreement(log_shares: Floats, named: Flags) -> Floats:
    """How much surer the photo's value is than the best of those that the title names, (N,) float32.

    It is 0 where the photo's value is one of them.

    Args:
        log_shares: (N, K) log-probabilities.
        named: (N, K) bool, what titles name; -inf where they name nothing.
    """
    own = np.where(named, log_shares, -np.inf).max(1)
    return np.where(named.any(1), log_shares.max(1) - own, -np.inf).astype(np.float32)


def wrong_word_threshold(log_shares: Floats, named: Flags, precision: float, seed: int) -> Threshold:
    """The threshold of `disagreement`, told from titles in which another value stands in place of what they name.

    Args:
        log_shares: (N, K) of products that these were not learned from.
        named: (N, K) bool, what their titles name.
        precision: In (0, 1).
        seed: Of the values that are put in.
    """
    log_shares, named = log_shares[named.any(1)], named[named.any(1)]
    rng, places, wrong = np.random.default_rng(seed), np.arange(named.shape[1]), [np.zeros(0, np.float32)]
    for _ in range(_DRAWS):
        # The largest of random numbers is a fair draw among the values that are not named.
        others = np.where(named, -1.0, rng.random(named.shape)).argmax(1)
        wrong.append(disagreement(log_shares, places == others[:, None]))
    return threshold_for(disagreement(log_shares, named), np.concatenate(wrong), precision)


def strangeness(text: Floats, photo: Floats, sample: Floats) -> Floats:
    """How much less a photo looks like its own text than like others, (N,) float32 in standard deviations.

    Args:
        text: (N, D) vectors of texts.
        photo: (N, D) vectors of the photos beside them.
        sample: (S, D) vectors of texts to compare with.
    """
    found = np.empty(len(text), dtype=np.float32)
    for start in range(0, len(text), _TITLES):
        block = slice(start, start + _TITLES)
        others = photo[block] @ sample.T
        own = (text[block] * photo[block]).sum(1)
        found[block] = (others.mean(1) - own) / np.maximum(others.std(1), 1e-6)
    return found


def sample_of(vectors: Floats, seed: int) -> Floats:
    """At most 2,048 of the vectors."""
    chosen = np.random.default_rng(seed).permutation(len(vectors))[:_TITLES]
    return vectors[np.sort(chosen)]


def wrong_photo_threshold(text: Floats, photo: Floats, sample: Floats, precision: float, seed: int) -> Threshold:
    """The threshold of `strangeness`, told from products whose photos were exchanged among them.

    Args:
        text: (N, D) vectors of texts.
        photo: (N, D) vectors of the photos beside them.
        sample: (S, D) vectors of texts to compare with.
        precision: In (0, 1).
        seed: Of the exchange.
    """
    rng, wrong = np.random.default_rng(seed), [np.zeros(0, np.float32)]
    for _ in range(_PHOTO_DRAWS):
        shown = rng.permutation(len(text))
        own = shown == np.arange(len(text))
        wrong.append(strangeness(text[~own], photo[shown[~own]], sample))
    return threshold_for(strangeness(text, photo, sample), np.concatenate(wrong), precision)
