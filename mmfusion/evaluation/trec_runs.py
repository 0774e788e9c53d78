"""Rankings as TREC run files: `query Q0 product rank score tag` by line, which trec_eval and its kin read and write."""

import gzip
import io
import itertools
import logging
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv
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
    data = _content(path)
    queries, products, scores = _columns(data, path)
    known = [pa.array([*map(str, ids)], pa.string()) for ids in (query_ids, product_ids)]
    rows, columns = (
        pc.fill_null(pc.index_in(column, value_set=ids), -1).to_numpy().astype(np.int64)
        for column, ids in zip((queries, products), known, strict=True)
    )
    asked = rows >= 0

    def number(entry: int) -> int:
        return next(itertools.islice(_lines(data, path), entry, None))[0]

    pairs = np.where(asked & (columns >= 0), rows * len(product_ids) + columns, -1 - np.arange(len(rows)))
    order = np.argsort(pairs, kind="stable")
    twice = order[1:][pairs[order[1:]] == pairs[order[:-1]]]
    if twice.size:
        query, product = (column[int(twice.min())].as_py() for column in (queries, products))
        raise RunFileError(
            f"{path}, line {number(twice.min())}: query {query!r} ranks product {product!r} twice; keep one."
        )
    if (stray := np.flatnonzero(asked & (columns < 0))).size:
        names, first = np.unique(products.take(stray).to_numpy(zero_copy_only=False), return_index=True)
        shown = ", ".join(f"{products[at].as_py()!r} in line {number(at)}" for at in np.sort(stray[first])[:_SHOWN])
        raise RunFileError(
            f"{path} ranks {len(names):,} products that do not compete here ({shown}), so that places cannot be "
            f"compared; rank the {len(product_ids):,} products of this pool, or evaluate with --pool all."
        )
    others = queries.filter(pa.array(~asked)).unique()
    ranked = len(np.unique(rows[asked]))
    if not ranked:
        seen = ", ".join(map(repr, others[:_SHOWN].to_pylist())) or "none"
        raise RunFileError(f"{path} ranks none of the {len(query_ids):,} queries of this split (it has {seen}).")
    if len(others) or ranked < len(query_ids):
        logger.warning(
            "%s: %s of %s queries are ranked, the others count 0; %s further queries are skipped",
            *(path, f"{ranked:,}", f"{len(query_ids):,}", f"{len(others):,}"),
        )
    return _in_order(rows[asked], columns[asked], scores[asked], len(query_ids), TieOrder(product_ids), k)


def _in_order(
    rows: np.ndarray, columns: np.ndarray, scores: np.ndarray, num_queries: int, order: TieOrder, k: int
) -> tuple[Tensor, Tensor]:
    """Scores and columns [Q, k] of entries [n] in any order."""
    keys = order.keys(torch.from_numpy(scores)[None].to(torch.float32), torch.from_numpy(columns)[None])[0]
    # ~ turns the order around without an overflow.
    best_first = np.lexsort((~keys.numpy(), rows))
    rows, keys = rows[best_first], keys[torch.from_numpy(best_first)]
    place = np.arange(len(rows)) - np.searchsorted(rows, np.arange(num_queries))[rows]
    kept = place < k
    cells = rows[kept], place[kept]
    found, columns_found = torch.full((num_queries, k), -torch.inf), torch.full((num_queries, k), -1, dtype=torch.int64)
    values = order.unpack(keys[torch.from_numpy(kept)][:, None], 1)
    found[cells], columns_found[cells] = (value[:, 0] for value in values)
    return found, columns_found


def _content(path: Path) -> bytes:
    """Bytes of a file in UTF-8."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        data.decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RunFileError(f"The run file {path} cannot be read ({error}); give a text file in UTF-8.") from error
    return data


def _columns(data: bytes, path: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray, np.ndarray]:
    """Queries, products and scores (float64) of all entries."""
    separator = "\t" if b"\t" in data else " "
    # Files with single separators have a fast reader; what it does not accept is read line by line, or named.
    if separator == "\t" or not any(blanks in data for blanks in (b"  ", b" \n", b" \r", b"\n ")):
        names = ["query", "Q0", "product", "rank", "score", "tag"]
        types = dict.fromkeys(names, pa.string()) | {"score": pa.float64()}
        try:
            table = csv.read_csv(
                pa.py_buffer(data),
                csv.ReadOptions(column_names=names),
                csv.ParseOptions(delimiter=separator, quote_char=False),
                csv.ConvertOptions(column_types=types, include_columns=["query", "product", "score"]),
            )
            scores = table["score"].to_numpy()
            if np.isfinite(scores).all():
                return table["query"], table["product"], scores
        except pa.ArrowInvalid:
            pass
    entries = [entry for _, entry in _lines(data, path)]
    queries, products, scores = zip(*entries, strict=True) if entries else ((), (), ())
    texts = (pa.chunked_array([pa.array(column, pa.string())]) for column in (queries, products))
    return *texts, np.array(scores, dtype=np.float64)


def _lines(data: bytes, path: Path) -> Iterator[tuple[int, tuple[str, str, float]]]:
    """(line, (query, product, score)) of the entries."""
    for number, line in enumerate(io.TextIOWrapper(io.BytesIO(data), "utf-8-sig"), 1):
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
