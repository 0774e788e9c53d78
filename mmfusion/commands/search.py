"""Search an index by text."""

from dataclasses import dataclass
from typing import Any, ClassVar

from mmfusion.retrieval import Searcher, TorchQueryEncoder
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.training.built_index import index_record, open_built_index


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
        verify: Whether all bytes of a FAISS index are compared with their checksums first, which reads it once. Of
            files above 64 MiB, only the size and both ends are compared otherwise.
    """

    positional: ClassVar[bool] = True

    query: str
    index: str = "outputs/index"
    base: str | None = None
    k: int = 10
    filter: list[Any] | None = None
    verify: bool = False


def main(config: Config) -> None:
    """Prints the k best products with score, modality weights and title."""
    record = index_record(config.index)
    model, processor = load_query_tower(config.base or record["base"])
    index = open_built_index(config.index, record, verify=config.verify)
    hits = Searcher(TorchQueryEncoder(model, processor), index).search(config.query, config.k, filter=config.filter)
    print(f"{'rank':>4}  {'score':>6}  {'text':>5} {'photo':>5}  product")
    for hit in hits:
        weights = hit.modality_weights or {}
        shares = " ".join(f"{weights.get(name, float('nan')):5.2f}" for name in ("text", "image"))
        title = hit.metadata.get("title") or "(no title)"
        print(f"{hit.rank:>4}  {hit.score:6.3f}  {shares}  {hit.product_id}  {title}")
