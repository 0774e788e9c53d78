"""Search an index by text."""

from typing import Any

from mmfusion.retrieval import Searcher, TorchQueryEncoder
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.training import run_command
from mmfusion.training.built_index import index_record, open_built_index


def main(
    query: str,
    index: str = "outputs/index",
    base: str | None = None,
    k: int = 10,
    filter: list[Any] | None = None,
    verify: bool = False,
) -> None:
    """Prints the k best products with score, modality weights and title.

    Args:
        query: What to search for.
        index: Folder that index.py wrote; where it built into Milvus, the collection is searched (with the token in the
            environment variable MILVUS_TOKEN).
        base: Folder or Hub id of the model; default: the one that the index was built with.
        k: Number of products, at least 1.
        filter: Conditions on columns of the catalogue, e.g. [["price", "<", 50], ["category", "in", ["dress"]]]; a
            list of such lists finds what fulfils one of them.
        verify: Whether all bytes of a FAISS index are compared with their checksums first, which reads it once. Of
            files above 64 MiB, only the size and both ends are compared otherwise.
    """
    record = index_record(index)
    model, processor = load_query_tower(base or record["base"])
    searcher = Searcher(TorchQueryEncoder(model, processor), open_built_index(index, record, verify=verify))
    hits = searcher.search(query, k, filter=filter)
    print(f"{'rank':>4}  {'score':>6}  {'text':>5} {'photo':>5}  product")
    for hit in hits:
        weights = hit.modality_weights or {}
        title = hit.metadata.get("title") or "(no title)"
        shares = " ".join(f"{weights.get(name, float('nan')):5.2f}" for name in ("text", "image"))
        print(f"{hit.rank:>4}  {hit.score:6.3f}  {shares}  {hit.product_id}  {title}")


if __name__ == "__main__":
    run_command(main, as_positional=True)
