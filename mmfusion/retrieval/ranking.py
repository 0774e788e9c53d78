"""How a search ranks products: by vectors, words or both, with boosts, a lowest score, and one hit per group."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.model.errors import MMFusionError
from mmfusion.retrieval.vectors import FloatArray, IntArray

Mode = Literal["vectors", "words", "hybrid"]
CALIBRATED = "calibrated"
# Of reciprocal rank fusion: Cormack, Clarke and Büttcher, Reciprocal Rank Fusion outperforms Condorcet and individual
# Rank Learning Methods, SIGIR 2009.
RRF_K = 60
# Products that each list holds at first, of hybrid searches and of others; four times as many when that was too few.
FUSED_DEPTH, FIRST_DEPTH = 1000, 100


class RankingError(MMFusionError):
    """A search asks for a ranking that does not exist, or that the index cannot give."""


@dataclass(frozen=True)
class Ranking:
    """What a search ranks by, and which of what it finds it shows.

    Attributes:
        mode: "vectors" ranks by the inner product of query and product. "words" ranks by BM25 over the words of the
            index, as a share of what the query's words could give at most, in [0, 1); products without a word of the
            query are no hits. "hybrid" fuses both.
        weight: Of vectors in "hybrid", in [0, 1]: the score is weight x inner product + (1 - weight) x share of words.
            None fuses by reciprocal rank, 1 / (60 + rank) in each list, divided by what the first place in both gives.
        group_by: Column whose values are shown once each, with the best product that has it, such as item_group_id. A
            product without a value is a group of its own.
        boosts: Numeric columns with weights in [0, 1]. Each adds its weight times the share of the products with a
            value in the column whose value is lower, which is 0 for the lowest and 1 for the highest; a missing value
            adds nothing.
        min_score: Lowest score of a hit before boosts; products below it are left out. In "vectors" and "hybrid" it is
            the inner product that counts, in "words" the share. "calibrated" takes the one that was measured when the
            index was built.

    Raises:
        RankingError: A value is out of range, or does not go with the mode.
    """

    mode: Mode = "vectors"
    weight: float | None = None
    group_by: str | None = None
    boosts: Mapping[str, float] = field(default_factory=dict)
    min_score: float | Literal["calibrated"] | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise RankingError(f"mode is {self.mode!r}; give one of {', '.join(get_args(Mode))}.")
        if self.weight is not None:
            _check_number("weight", self.weight, 0)
            if self.mode != "hybrid":
                raise RankingError(
                    f"weight {self.weight} is for mode 'hybrid', and mode is {self.mode!r}; leave it out."
                )
        if not isinstance(self.boosts, Mapping):
            raise RankingError(f"boosts is {self.boosts!r}; give columns with weights, e.g. {{'sales': 0.1}}.")
        for name, weight in self.boosts.items():
            _check_number(f"the boost of {name!r}", weight, 0)
        if self.min_score == CALIBRATED and self.mode == "words":
            raise RankingError("min_score is calibrated for vectors, and mode is 'words'; give a number.")
        if self.min_score not in (None, CALIBRATED):
            _check_number("min_score", self.min_score, 0 if self.mode == "words" else -1)

    @property
    def is_plain(self) -> bool:
        """Whether the k products with the largest inner products are the answer."""
        return self == PLAIN

    @property
    def most_boost(self) -> float:
        """What boosts add at most."""
        return float(sum(self.boosts.values()))


def _check_number(what: str, value: Any, least: int) -> None:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not least <= value <= 1:
        raise RankingError(f"{what} is {value!r}; give a number from {least} to 1.")


PLAIN = Ranking()


@dataclass(frozen=True)
class Candidates:
    """Products that may be hits of a query.

    Attributes:
        rows: int64 (n,), different rows.
        scores: float64 (n,), before boosts.
        bounded: float64 (n,), what `min_score` bounds.
        parts: What scores are made of, each (n,), NaN where a product is not in that list.
        beyond: Products that are no candidates have no higher score.
        complete: Whether all products that may be hits are among them.
    """

    rows: IntArray
    scores: np.ndarray
    bounded: np.ndarray
    parts: dict[str, np.ndarray]
    beyond: float
    complete: bool


def fused(near: IntArray, worded: IntArray) -> tuple[IntArray, np.ndarray]:
    """Reciprocal rank fusion of two lists of rows, best first.

    Returns:
        Rows that are in one of them, ascending, and scores float64 in (0, 1]: 1 for the first of both.
    """
    rows = np.union1d(near, worded)
    scores = np.zeros(len(rows))
    for found in (near, worded):
        scores[np.searchsorted(rows, found)] += 1 / (RRF_K + 1 + np.arange(len(found)))
    return rows, scores * (RRF_K + 1) / 2


def shares_below(values: np.ndarray) -> FloatArray:
    """Which share of the other values is lower, in [0, 1]; 0 for NaN.

    >>> shares_below(np.array([5.0, 1.0, np.nan, 100.0, 1.0]))
    array([0.6666667, 0.       , 0.       , 1.       , 0.       ], dtype=float32)
    """
    there = ~np.isnan(values)
    known = values[there]
    shares = np.zeros(len(values), np.float32)
    shares[there] = np.searchsorted(np.sort(known), known) / max(1, len(known) - 1)
    return shares


def numbers_of(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column as float64 (N,), NaN for null.

    Raises:
        RankingError: It holds no numbers.
    """
    kind = column.type
    types = pa.types
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)):
        raise RankingError(f"the boost names the column {name!r}, which is {kind}; name one of numbers.")
    column = column.cast(pa.int8()) if types.is_boolean(kind) else column
    return column.cast(pa.float64(), safe=False).to_numpy()


def check_groups(kind: pa.DataType, name: str) -> None:
    """Raises an error for a column of lists or structs, whose values make no groups."""
    if pa.types.is_nested(kind):
        raise RankingError(f"group_by names the column {name!r}, which is {kind}; name one of single values.")


def groups_of(column: pa.ChunkedArray, name: str) -> IntArray:
    """Numbers (N,) that are equal where the values of a column are; negative, and all different, for missing values.

    Raises:
        RankingError: It holds lists or structs.
    """
    check_groups(column.type, name)
    if pa.types.is_null(column.type):
        # Arrow does not count the values of a column without any.
        column = column.cast(pa.string())
    if column.type in (pa.string(), pa.large_string()):
        blank = pc.equal(pc.utf8_trim_whitespace(column), "")
        column = pc.if_else(blank, pa.scalar(None, column.type), column)
    encoded = column.dictionary_encode().unify_dictionaries()
    codes = [np.asarray(chunk.indices.fill_null(-1)) for chunk in encoded.chunks]
    numbers = np.concatenate([np.zeros(0, np.int64), *codes])
    return np.where(numbers < 0, -1 - np.arange(len(numbers)), numbers)


def column_of(metadata: pa.ChunkedArray | None, name: str, what: str) -> pa.ChunkedArray:
    """A column of the metadata.

    Raises:
        RankingError: There is no such column.
    """
    known = [] if metadata is None else [one.name for one in metadata.type]
    if name not in known:
        raise RankingError(f"{what} names the column {name!r}; this index has {', '.join(known) or 'no metadata'}.")
    return pc.struct_field(metadata, [known.index(name)])
