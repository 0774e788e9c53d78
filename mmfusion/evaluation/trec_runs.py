"""Rankings as TREC run files: `query Q0 product rank score tag` by line, which trec_eval and its kin read and write."""

import gzip
import logging
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mmfusion.evaluation.ranking import TieOrder
from mmfusion.files import replace_text
from mmfusion.model.errors import MMFusionError

logger = logging.getLogger(__name__)

_FIELDS = 6
_SHOWN = 3


class RunFileError(MMFusionError):
    """A run file cannot be read or written, or does not fit the catalogue."""


def write_run(
    path: Path,
    query_ids: Sequence[str] | np.ndarray,
    product_ids: Sequence[str] | np.ndarray,
    scores: Tensor,
    columns: Tensor,
    tag: str,
) -> None:
    """Writes rankings whose order trec_eval finds again from the scores.

    Fields are separated by blanks; if an id holds one, by tabs, which not every program reads.

    Args:
        path: The file.
        query_ids: Q ids.
        product_ids: N ids.
        scores: float32 [Q, k], descending, as `rank` gives them.
        columns: int64 [Q, k], positions in `product_ids`, -1 after the end of a ranking.
        tag: Name of the run, without blanks.

    Raises:
        RunFileError: An id holds a tab or a line end.
    """
    ids = [*map(str, query_ids), *map(str, product_ids)]
    bad = next((name for name in ids if re.search(r"[\t\r\n]", name)), None)
    if bad is not None:
        raise RunFileError(f"The id {bad!r} holds a tab or a line end, which a run file has no place for; rename it.")
    blank = next((name for name in ids if re.search(r"\s", name)), None)
    if blank is not None:
        logger.warning("the id %r holds a blank: the fields of %s are separated by tabs", blank, path)
    separator = " " if blank is None else "\t"
    lines = []
    for query, (found, places) in zip(query_ids, zip(scores.tolist(), columns.tolist(), strict=True), strict=True):
        for rank, (score, place) in enumerate(zip(found, places, strict=True), 1):
            if place >= 0:
                # Nine digits tell any two floats of 32 bits apart.
                fields = (str(query), "Q0", str(product_ids[place]), str(rank), f"{score:.9g}", re.sub(r"\s", "_", tag))
                lines.append(separator.join(fields) + "\n")
    replace_text(path, "".join(lines))


def read_run(
    path: Path, query_ids: Sequence[str] | np.ndarray, product_ids: Sequence[str] | np.ndarray, k: int
) -> tuple[Tensor, Tensor]:
    """Reads the rankings of some queries, ordered as trec_eval orders them: by score, not by the column of ranks.

    Scores are floats of 32 bits; equal ones are ordered by product id descending. Other queries are skipped, and said.

    Args:
        path: The file, perhaps compressed (.gz).
        query_ids: Q ids of the queries to evaluate.
        product_ids: N ids of the products that compete.
        k: Places to keep, at least 1.

    Returns:
        Scores float32 [Q, k] and columns (positions in `product_ids`) int64 [Q, k], padded with -inf and -1. A query
        that the file lacks has no ranking.

    Raises:
        RunFileError: A line has other fields, or a score that is no number; a query names a product twice, or one that
            does not compete; no query of the file is among those to evaluate.
    """
    row_of = {str(name): row for row, name in enumerate(query_ids)}
    column_of = {str(name): column for column, name in enumerate(product_ids)}
    found: list[dict[int, float]] = [{} for _ in row_of]
    unknown: dict[str, int] = {}
    others: set[str] = set()
    for number, (query, product, score) in _lines(path):
        row, column = row_of.get(query), column_of.get(product)
        if row is None:
            others.add(query)
        elif column is None:
            unknown.setdefault(product, number)
        elif column in found[row]:
            raise RunFileError(f"{path}, line {number}: query {query!r} ranks product {product!r} twice; keep one.")
        else:
            found[row][column] = score
    if unknown:
        first = ", ".join(f"{name!r} in line {number}" for name, number in [*unknown.items()][:_SHOWN])
        raise RunFileError(
            f"{path} ranks {len(unknown):,} products that do not compete here ({first}), so that places cannot be "
            f"compared; rank the {len(column_of):,} products of this pool, or evaluate with --pool all."
        )
    ranked = sum(map(bool, found))
    if not ranked:
        seen = ", ".join(map(repr, [*others][:_SHOWN])) or "none"
        raise RunFileError(f"{path} ranks none of the {len(row_of):,} queries of this split (it has {seen}).")
    if others or ranked < len(row_of):
        logger.warning(
            "%s: %s of %s queries are ranked, the others count 0; %s further queries are skipped",
            *(path, f"{ranked:,}", f"{len(row_of):,}", f"{len(others):,}"),
        )
    return _in_order(found, TieOrder(product_ids), k)


def _in_order(found: list[dict[int, float]], order: TieOrder, k: int) -> tuple[Tensor, Tensor]:
    scores, columns = torch.full((len(found), k), -torch.inf), torch.full((len(found), k), -1, dtype=torch.int64)
    for row, one in enumerate(found):
        if one:
            keys = order.keys(torch.tensor([[*one.values()]]), torch.tensor([*one]))
            best = keys.sort(descending=True).values[:, :k]
            scores[row], columns[row] = (part[0] for part in order.unpack(best, k))
    return scores, columns


def _lines(path: Path) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """(line, (query, product, score)) of a file."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as lines
        ):
            for number, line in enumerate(lines, 1):
                text = line.rstrip("\r\n")
                if not text.strip():
                    continue
                fields = text.split("\t") if text.count("\t") == _FIELDS - 1 else text.split()
                if len(fields) != _FIELDS:
                    raise RunFileError(
                        f"{path}, line {number}: {len(fields)} fields where a run has {_FIELDS} (query Q0 product rank "
                        f"score tag): {text[:80]!r}. Ids with blanks need tabs between all fields."
                    )
                yield number, (fields[0], fields[2], _score(fields[4], path, number))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RunFileError(f"The run file {path} cannot be read ({error}); give a text file in UTF-8.") from error


def _score(text: str, path: Path, number: int) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise RunFileError(
            f"{path}, line {number}: the score is {text!r}; a run has finite numbers in its fifth field."
        )
    return score
