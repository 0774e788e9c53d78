"""Compares titles with photos: where they disagree, what titles leave out, and photos that several titles share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from mmfusion.audit.photo_words import Naming, labels_of_queries, log_shares, naming, word_vectors
from mmfusion.audit.same_photos import same_photos
from mmfusion.audit.thresholds import (
    Threshold,
    disagreement,
    sample_of,
    strangeness,
    sureness_for,
    wrong_photo_threshold,
    wrong_word_threshold,
)
from mmfusion.audit.views import Flags, Floats, Views
from mmfusion.audit.vocabulary import Attribute, folded
from mmfusion.data.qrels import Qrels
from mmfusion.model.errors import MMFusionError

WRONG_WORD: Final = "wrong word"
WRONG_PHOTO: Final = "wrong photo"
SAME_PHOTO: Final = "same photo"
MISSING_WORD: Final = "missing word"
KINDS: Final = (WRONG_WORD, WRONG_PHOTO, SAME_PHOTO, MISSING_WORD)


class AuditError(MMFusionError):
    """A catalogue or a setting cannot be audited; the message names the value, its place and the remedy."""


@dataclass(frozen=True)
class Settings:
    """How an audit decides.

    Attributes:
        precision: Share of the findings of a kind that shall be right, in (0, 1); it is measured, and what does not
            reach it is not listed.
        photo_distance: Difference between two photos in proportion to their contrast, in (0, 1), up to which they are
            the same; see `same_photos`.
        seed: Of everything that is drawn.
    """

    precision: float = 0.8
    photo_distance: float = 0.06
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("precision", "photo_distance"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise AuditError(f"--{name} is {value}; give a share between 0 and 1")


class Texts(NamedTuple):
    """The queries that are learned from.

    Attributes:
        queries: Their texts.
        vectors: (Q, D) float32 of them.
        qrels: Judgements between these queries and the products, both by row.
    """

    queries: Sequence[str]
    vectors: Floats
    qrels: Qrels


@dataclass(frozen=True)
class Finding:
    """One thing to look at.

    Attributes:
        kind: One of `KINDS`.
        row: Of the product, among those that were looked at.
        attribute: That it is about; "" for photos as a whole.
        title_says: Values that the title names.
        photo_says: Value that the photo shows.
        score: How sure it is: the probability of the photo's value in [0, 1], or standard deviations for a wrong photo.
        others: Rows of further products that show the same photo.
    """

    kind: str
    row: int
    attribute: str = ""
    title_says: tuple[str, ...] = ()
    photo_says: str = ""
    score: float = 0.0
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What is known of one attribute.

    Attributes:
        attribute: Its values and words.
        naming: What titles name, by product.
        log_shares: (P, K) float32, log-probabilities of what photos show.
        wrong: Threshold for a wrong word, by `disagreement`.
        missing: Threshold for a missing word, by the probability of the photo's value, told from titles that name one.
    """

    attribute: Attribute
    naming: Naming
    log_shares: Floats
    wrong: Threshold
    missing: Threshold

    @property
    def best(self) -> tuple[Floats, list[str]]:
        """Probability of the photo's value (P,), and its name."""
        values = list(self.attribute.values)
        return np.exp(self.log_shares.max(1)), [values[place] for place in self.log_shares.argmax(1)]


@dataclass(frozen=True)
class Audit:
    """What was found.

    Attributes:
        findings: By kind, and the surest first.
        judged: By attribute.
        wrong_photo: Threshold of `strangeness`.
        audited: (P,) bool, the products that were audited.
        has_photo: (P,) bool.
    """

    findings: list[Finding]
    judged: list[Judged]
    wrong_photo: Threshold
    audited: Flags
    has_photo: Flags

    def photo_says(self, row: int) -> list[str]:
        """The values that a photo shows, as far as they are sure enough."""
        found = []
        for one in self.judged:
            sureness, values = one.best
            if self.has_photo[row] and one.missing.reached(sureness[row : row + 1])[0]:
                found.append(values[row])
        return found


def judge(
    attribute: Attribute,
    titles: Sequence[str],
    views: Views,
    learned: Flags,
    audited: Flags,
    texts: Texts,
    settings: Settings,
) -> Judged:
    """What photos show of an attribute, and from which score on it is to be believed.

    Args:
        attribute: Two values or more.
        titles: Of P products.
        views: Of the same products.
        learned: (P,) bool, products whose titles are learned from, and the queries that they answer.
        audited: (P,) bool, products on whose titles thresholds are measured.
        texts: Queries to learn from.
        settings: How to decide.
    """
    of_titles, of_queries = naming(attribute, titles), naming(attribute, texts.queries)
    votes = labels_of_queries(of_queries, texts.qrels, len(titles))
    labels = np.where(votes >= 0, votes, of_titles.labels)
    words = word_vectors(
        len(attribute.values),
        np.concatenate([np.where(learned, of_titles.labels, -1), of_queries.labels]),
        np.concatenate([np.asarray(views.text), texts.vectors]),
    )
    found = log_shares(views.photo, words, np.where(learned & views.has_photo, labels, -1), seed=settings.seed)
    rows = audited & views.has_photo
    wrong = wrong_word_threshold(found[rows], of_titles.named[rows], settings.precision, settings.seed)
    rows = rows & (of_titles.labels >= 0)
    right = found[rows].argmax(1) == of_titles.labels[rows]
    missing = sureness_for(np.exp(found[rows].max(1)), right, wrong.errors, settings.precision)
    return Judged(attribute, of_titles, found, wrong, missing)


def audit(
    attributes: Sequence[Attribute],
    titles: Sequence[str],
    views: Views,
    *,
    learned: Flags,
    audited: Flags,
    texts: Texts,
    settings: Settings,
) -> Audit:
    """Audits products.

    Args:
        attributes: What to look for.
        titles: Of P products.
        views: Of the same products.
        learned: (P,) bool, products that are learned from.
        audited: (P,) bool, products to audit; they may be learned from as well.
        texts: Queries to learn from.
        settings: How to decide.

    Raises:
        AuditError: No product has a photo, or none a text, so that there is nothing to compare.
    """
    for what, there in (("photo that can be read", views.has_photo), ("title", views.has_text)):
        if not there[audited].any():
            raise AuditError(
                f"none of the {audited.sum():,} products has a {what}: an audit compares titles with photos"
            )
    judged = [judge(attribute, titles, views, learned, audited, texts, settings) for attribute in attributes]
    both = views.has_photo & views.has_text
    rows = audited & both
    sample = sample_of(np.asarray(views.text[audited & views.has_text]), settings.seed)
    wrong_photo = wrong_photo_threshold(views.text[rows], views.photo[rows], sample, settings.precision, settings.seed)
    findings = []
    for one in judged:
        findings += _of_attribute(one, audited & views.has_photo)
    strange = np.full(len(titles), -np.inf, dtype=np.float32)
    strange[rows] = strangeness(views.text[rows], views.photo[rows], sample)
    findings += [
        Finding(WRONG_PHOTO, int(row), score=float(strange[row]))
        for row in np.flatnonzero(wrong_photo.reached(strange))
    ]
    for group in same_photos(views.tiny, views.has_photo & audited, settings.photo_distance):
        if len({folded(titles[row]) for row in group}) > 1:
            findings.append(Finding(SAME_PHOTO, group[0], score=float(len(group)), others=tuple(group[1:])))
    findings.sort(key=lambda found: (KINDS.index(found.kind), -found.score, found.row))
    return Audit(findings, judged, wrong_photo, audited, views.has_photo)


def _of_attribute(one: Judged, rows: Flags) -> list[Finding]:
    """Wrong and missing words of one attribute."""
    sureness, photo_says = one.best
    nothing = ~one.naming.named.any(1)
    wrong = rows & one.wrong.reached(disagreement(one.log_shares, one.naming.named))
    missing = rows & nothing & one.missing.reached(sureness)
    values = np.array(list(one.attribute.values))
    return [
        Finding(
            WRONG_WORD if wrong[row] else MISSING_WORD,
            int(row),
            one.attribute.name,
            tuple(values[one.naming.named[row]].tolist()),
            photo_says[row],
            float(sureness[row]),
        )
        for row in np.flatnonzero(wrong | missing)
    ]


def counts(found: Audit) -> dict[str, int]:
    """Number of findings by kind."""
    counted = Counter(finding.kind for finding in found.findings)
    return {kind: counted[kind] for kind in KINDS}
