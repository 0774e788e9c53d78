"""A table of mined hard negatives: written by mmfusion mine, read by the data module."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.data.catalogue import BaseCatalogue
from mmfusion.files import replace_text, sha256_of, whole_file
from mmfusion.model.errors import MMFusionError

TABLE, MANIFEST = "hard_negatives.parquet", "hard_negatives.json"
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("product_id", pa.string()),
        ("rank", pa.int32()),
        ("score", pa.float32()),
        ("positive_score", pa.float32()),
    ]
)
_VERSION = 1

IntArray = npt.NDArray[np.int64]


class HardNegativesError(MMFusionError):
    """A table of hard negatives cannot be used with this catalogue."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; mine again with mmfusion mine")


class HardNegatives:
    """Hard negatives of train queries.

    Attributes:
        digest: SHA-256 (hex) of all pairs; what a checkpoint remembers of the table.
    """

    def __init__(self, queries: IntArray, products: IntArray) -> None:
        """Takes (n,) query rows and the (n,) product rows that are their negatives; the order of a query's is kept."""
        order = np.argsort(queries, kind="stable")
        self._queries, self._products = queries[order], products[order]
        self.digest = hashlib.sha256(self._queries.tobytes() + self._products.tobytes()).hexdigest()

    def __len__(self) -> int:
        return len(self._queries)

    def of(self, query: int) -> IntArray:
        """Product rows of a query row, int64 (n,), hardest first; none for a query without."""
        first, last = np.searchsorted(self._queries, [query, query + 1])
        return self._products[first:last]

    @classmethod
    def load(cls, folder: str | Path, catalogue: BaseCatalogue) -> "HardNegatives":
        """Reads a table and checks it against the catalogue.

        Args:
            folder: What mmfusion mine wrote.
            catalogue: The one that it was mined from.

        Raises:
            FileNotFoundError: There is no such table.
            HardNegativesError: It is damaged, of another catalogue, or holds an id that is not one of a train query and
                a train product, or a product that is judged at the best grade of its query.
        """
        folder = Path(folder)
        for name in (MANIFEST, TABLE):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"hard_negatives: {folder} is not a folder of mined negatives: {name} is missing; make one with "
                    "mmfusion mine"
                )
        table = _read_table(folder, catalogue)
        queries = _rows(folder, table, "query_id", catalogue.queries, catalogue.query_rows("train"))
        products = _rows(folder, table, "product_id", catalogue.products, catalogue.product_rows("train"))
        qrels = catalogue.split_qrels("train")
        best = np.zeros(len(catalogue.queries), dtype=np.int64)
        np.maximum.at(best, qrels.query, qrels.grade)
        wrong = qrels.grades_of(queries, products[:, None])[:, 0] >= np.maximum(best[queries], 1)
        if wrong.any():
            at = int(wrong.argmax())
            query, product = (table.column(name)[at].as_py() for name in ("query_id", "product_id"))
            raise HardNegativesError(
                f"{folder / TABLE}, row {at}: product {product!r} is judged at the best grade of query {query!r}, so "
                "it is not a negative"
            )
        return cls(queries, products)


def write_hard_negatives(folder: Path, table: pa.Table, catalogue: BaseCatalogue, **facts: Any) -> dict[str, Any]:
    """Writes a table (`SCHEMA`) and then its manifest, each whole or not at all, and returns the manifest.

    Args:
        folder: Folder that exists.
        table: Rows grouped by query, hardest first.
        catalogue: What it was mined from.
        facts: Further facts for the manifest, JSON values; `counts` is added to.
    """
    with whole_file(folder / TABLE) as file:
        pq.write_table(table, file)
    counts = {**facts.pop("counts", {}), "negatives": len(table)}
    manifest = {
        "schema_version": _VERSION,
        "catalogue": catalogue.name,
        "catalogue_contents": catalogue.contents_digest(),
        "sha256": sha256_of(folder / TABLE),
        **facts,
        "counts": counts,
    }
    replace_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")
    return manifest


def _read_table(folder: Path, catalogue: BaseCatalogue) -> pa.Table:
    """The table of a folder, which must be whole and of this catalogue."""
    path = folder / TABLE
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        version, contents, source = (manifest[name] for name in ("schema_version", "catalogue_contents", "catalogue"))
        count = manifest["counts"]["negatives"]
    except (ValueError, KeyError, TypeError) as error:
        raise HardNegativesError(f"{folder / MANIFEST} is damaged ({error!r})") from error
    if version != _VERSION:
        raise HardNegativesError(f"{folder / MANIFEST} has schema version {version}, this mmfusion reads {_VERSION}")
    found, expected = sha256_of(path), manifest.get("sha256")
    # Manifests of before there were checksums have none.
    if expected not in (None, found):
        raise HardNegativesError(
            f"{path} is damaged: it has the checksum {found[:12]}…, and {MANIFEST} says {expected[:12]}…"
        )
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise HardNegativesError(f"{path} is damaged ({error})") from error
    problem = None
    if not table.schema.equals(SCHEMA):
        problem = f"{path} has the columns {table.schema.names}, not {SCHEMA.names}"
    elif contents != catalogue.contents_digest():
        problem = (
            f"{folder} was mined from another catalogue ({source}) than {catalogue.source}: ids, splits or judgements "
            "differ; give that catalogue"
        )
    elif len(table) != count:
        problem = f"{path} has {len(table)} rows, but {MANIFEST} says {count}"
    if problem:
        raise HardNegativesError(problem)
    return table


def _rows(folder: Path, table: pa.Table, column: str, owner: Any, train: IntArray) -> IntArray:
    """Rows of ids in the catalogue's table."""
    known = owner.data.column(column).combine_chunks()
    ids = table.column(column).cast(known.type)
    rows: IntArray = pc.fill_null(pc.index_in(ids, value_set=known), -1).to_numpy().astype(np.int64)
    kind = column.removesuffix("_id")
    for wrong, what in ((rows < 0, "is not in the catalogue"), (~np.isin(rows, train), "is not in the train split")):
        if wrong.any():
            at = int(wrong.argmax())
            raise HardNegativesError(
                f"{folder / TABLE}, row {at}: {kind} {ids[at].as_py()!r} {what} ({int(wrong.sum())} such rows)"
            )
    return rows
