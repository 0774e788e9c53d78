"""Search an index by text."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmfusion.retrieval import MilvusIndex, ProductIndex, Searcher
from mmfusion.retrieval.query_tower import check_trained, load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.training.run import RunError, finished_record


@dataclass
class Config:
    """Settings of `mmfusion search`.

    Attributes:
        query: What to search for.
        index: Folder that `mmfusion index` wrote; where it built into Milvus, the collection is searched (with the
            token in the environment variable MILVUS_TOKEN).
        base: Folder or Hub id of the model; default: the one that the index was built with.
        k: Number of products, at least 1.
        filter: Conditions on columns of the catalogue, e.g. [["price", "<", 50], ["category", "in", ["dress"]]]; a
            list of such lists finds what fulfils one of them.
        mode: vectors; words (BM25 over the words of an index that was built with --lexical true); or hybrid, both.
        weight: Of vectors in hybrid, from 0 to 1; default: the two lists are fused by reciprocal rank.
        group_by: Column whose values are shown once each, with their best product, such as item_group_id.
        boosts: Columns of numbers with weights from 0 to 1, e.g. '{"sales": 0.1}': what is high there comes earlier.
        min_score: Lowest score of a product, a number or "calibrated" (by mmfusion index --calibrate); a query that
            asks for what is not there finds nothing.
        verify: Whether all bytes of a FAISS index are compared with their checksums first, which reads it once. Of
            files above 64 MiB, only the size and both ends are compared otherwise.
    """

    positional: ClassVar[bool] = True

    query: str
    index: str = "outputs/index"
    base: str | None = None
    k: int = 10
    filter: list[Any] | None = None
    mode: Literal["vectors", "words", "hybrid"] = "vectors"
    weight: float | None = None
    group_by: str | None = None
    boosts: dict[str, float] = field(default_factory=dict)
    min_score: float | Literal["calibrated"] | None = None
    verify: bool = False


def main(config: Config) -> None:
    """Prints the k best products with score, modality weights and title."""
    record = finished_record(config.index, "index", "index")
    base = config.base or record["base"]
    model, processor = load_query_tower(base)
    check_trained(model, base)
    retriever = Retriever(model, processor)
    index = open_index(config.index, record, verify=config.verify)
    ranking = {name: getattr(config, name) for name in ("mode", "weight", "group_by", "boosts", "min_score")}
    hits = Searcher(retriever, index).search(config.query, config.k, filter=config.filter, **ranking)
    print(f"{'rank':>4}  {'score':>6}  {'text':>5} {'photo':>5}  product")
    for hit in hits:
        weights = hit.modality_weights or {}
        shares = " ".join(f"{weights.get(name, float('nan')):5.2f}" for name in ("text", "image"))
        title = hit.metadata.get("title") or "(no title)"
        print(f"{hit.rank:>4}  {hit.score:6.3f}  {shares}  {hit.product_id}  {title}")
    print(f"next: mmfusion serve --index {config.index}")


def open_index(folder: str, record: Mapping[str, Any], *, verify: bool) -> ProductIndex | MilvusIndex:
    """Opens the index in a folder, or the collection that was built instead of one.

    Args:
        folder: Output folder of `mmfusion index`.
        record: Its record. The token of a Milvus server is in the environment variable `MILVUS_TOKEN`.
        verify: Compares all bytes of the files with their checksums, see [`ProductIndex.load`].

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index is damaged, or Milvus cannot be reached, or is to be verified.
    """
    uri = record.get("milvus_uri")
    if uri is None:
        return ProductIndex.load(Path(folder) / "index", verify=verify)
    if verify:
        raise RunError(f"verify is true, but {folder!r} is an index in Milvus, with files of its own; leave it out.")
    return MilvusIndex.connect(uri, record["collection"], token=os.environ.get("MILVUS_TOKEN"))
