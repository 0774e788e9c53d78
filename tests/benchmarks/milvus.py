"""Compares Milvus with FAISS Flat on an embedded catalogue, in one run; by hand, see --help

Queries are embedded with the model that embedded the products. Searches of the two take turns, a query at a time, so
that what else the machine does meets both. Of products with equal scores, such as those with the same text, either
engine chooses which ones get the last places; so overlap is also counted with products that score as the last one does.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.retrieval import Hit, MilvusIndex, ProductIndex, Searcher
from mmfusion.retriever import Retriever
from mmfusion.training import load_base

PLACES = 100
Search = Callable[[np.ndarray], list[list[Hit]]]


def metadata(catalogue: Path, embedded: EmbeddedCatalogue, columns: list[str]) -> pa.Table:
    """Columns of the catalogue in the order of the vectors."""
    table = pq.read_table(catalogue / "products.parquet", columns=["product_id", *columns])
    names = table.column("product_id").combine_chunks()
    return table.select(columns).take(pc.index_in(embedded.column("product_id").cast(names.type), value_set=names))


def interleaved(queries: np.ndarray, searches: list[Search]) -> tuple[np.ndarray, list[list[list[Hit]]]]:
    """Milliseconds (searches, Q) and hits of each search, one query at a time."""
    spent = np.zeros((len(searches), len(queries)))
    hits: list[list[list[Hit]]] = [[] for _ in searches]
    for row in range(len(queries)):
        for place in np.roll(np.arange(len(searches)), row).tolist():
            start = perf_counter()
            hits[place] += searches[place](queries[row : row + 1])
            spent[place, row] = 1000 * (perf_counter() - start)
    return spent, hits


def overlap(found: list[Hit], exact: list[Hit], tolerance: float) -> float:
    """Share of hits that are among the exact ones, or, with a tolerance from 0, score as their last one does."""
    names, least = {hit.product_id for hit in exact}, exact[-1].score
    equal = [tolerance >= 0 and hit.score >= least - tolerance for hit in found]
    return float(np.mean([hit.product_id in names or even for hit, even in zip(found, equal, strict=True)]))


def compare(name: str, queries: np.ndarray, flat: ProductIndex, milvus: MilvusIndex, filter: Any) -> None:
    searches: list[Search] = [
        lambda one: flat.search(one, PLACES, filter=filter),
        lambda one: milvus.search(one, PLACES, filter=filter),
    ]
    interleaved(queries[:5], searches)
    spent, (theirs, mine) = interleaved(queries, searches)
    pairs = list(zip(mine, theirs, strict=True))
    same = np.mean([a.product_id == b.product_id for pair in pairs for a, b in zip(*pair, strict=True)])
    print(f"{name}:")
    for label, tolerance in (("", -1.0), (", equal scores being equal", 1e-6)):
        shares = [overlap(*pair, tolerance) for pair in pairs]
        print(f"  overlap@{PLACES}{label}: mean {np.mean(shares):.4f}, least {min(shares):.2f}")
    print(f"  places with the same product: {same:.2%}")
    for label, level in (("median", 0.5), ("95 %", 0.95)):
        of_flat, of_milvus = np.quantile(spent, level, axis=1)
        ratio = of_milvus / of_flat
        print(f"  {label}: FAISS Flat {of_flat:.1f} ms, Milvus {of_milvus:.1f} ms, ratio {ratio:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--catalogue", required=True, type=Path, help="folder with products.parquet and queries.parquet"
    )
    parser.add_argument("--embeddings", required=True, help="folder that recipes/embed.py wrote")
    parser.add_argument("--base", required=True, help="folder of the model that embedded them")
    parser.add_argument("--uri", help="file or server; default: a temporary file")
    parser.add_argument("--index_type", help="kind of index in Milvus; default: FLAT in a file")
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument(
        "--columns", nargs="+", default=["title", "category", "split"], help="metadata; the second is filtered"
    )
    arguments = parser.parse_args()
    embedded = EmbeddedCatalogue.open(arguments.embeddings)
    table = metadata(arguments.catalogue, embedded, arguments.columns)
    ids = embedded.column("product_id").to_pylist()
    options: dict[str, Any] = {
        "model_fingerprint": embedded.manifest.provenance.model_fingerprint,
        "metadata": table,
        "modality_weights": embedded.modality_weights(),
    }
    flat = ProductIndex.build(embedded.vectors(), ids, **options)
    texts = pq.read_table(arguments.catalogue / "queries.parquet", columns=["query"]).column("query").to_pylist()
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(arguments.queries, len(texts))).astype(int)).tolist()
    searcher = Searcher(Retriever(*load_base(arguments.base)), flat)
    queries = np.concatenate([searcher.embed([texts[row]]) for row in chosen])
    field = arguments.columns[1]
    counts = pc.value_counts(table.column(field).drop_null()).to_pylist()
    commonest = max(counts, key=lambda count: count["counts"])["values"]
    with tempfile.TemporaryDirectory() as folder:
        uri, start = arguments.uri or str(Path(folder) / "benchmark.db"), perf_counter()
        options |= {"uri": uri, "collection": "benchmark", "index_type": arguments.index_type, "overwrite": True}
        with MilvusIndex.build(embedded.vectors(), ids, **options) as milvus:
            seconds = perf_counter() - start
            print(f"{len(flat):,} products of dimension {flat.description.dimension}, {len(queries)} queries")
            print(f"upload: {seconds:.1f} s, {len(flat) / seconds:,.0f} products/s ({milvus.description.index_type})")
            compare("no filter", queries, flat, milvus, None)
            compare(f"{field} = {commonest!r}", queries, flat, milvus, [(field, "=", commonest)])


if __name__ == "__main__":
    main()
