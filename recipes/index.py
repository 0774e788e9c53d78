"""Build a FAISS index of an embedded catalogue."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from mmfusion.data.catalogue import Catalogue
from mmfusion.embedding import EmbeddedCatalogue
from mmfusion.retrieval import Choice, ProductIndex, choose_index
from mmfusion.retrieval.choose import physical_memory
from mmfusion.training import load_catalogue, open_run, run_command
from mmfusion.training.run import RunError, read_record


def main(
    embeddings: str = "outputs/embeddings",
    catalogue: str | None = None,
    output: str = "outputs/index",
    factory: str | None = None,
    search_parameters: str | None = None,
    memory_gib: float | None = None,
) -> None:
    """Writes an index folder: FAISS index, product ids with titles, metadata and modality weights, and a description.

    Args:
        embeddings: Folder that embed.py wrote.
        catalogue: Folder, fsspec URL or Hub id that titles and metadata are taken from; default: the one that was
            embedded.
        output: Folder for working files; the index itself is its subfolder `index`.
        factory: FAISS factory string: Flat (exact), HNSW32 (fast), IVF1024,PQ48 (small) …; default: by the number of
            products and `memory_gib`, see `choose_index`.
        search_parameters: FAISS run-time parameters, e.g. nprobe=16; default: those that go with that choice.
        memory_gib: What the index may take of the memory of the machine that serves it, in GiB; default: half of what
            this machine has.
    """
    record = read_record(Path(embeddings))
    if record is None or not record["complete"]:
        raise RunError(
            f"{embeddings!r} holds no finished embeddings; make them with recipes/embed.py --output {embeddings}."
        )
    embedded = EmbeddedCatalogue.open(embeddings)
    embedded.check()
    chosen = _choose(embedded, factory, search_parameters, memory_gib)
    run = open_run(output, "index", {"embeddings": embeddings, "factory": factory})
    products = load_catalogue(catalogue or record["catalogue"], None, run.folder, products_only=True)
    index = ProductIndex.build(
        embedded.vectors(),
        embedded.column("product_id").to_pylist(),
        model_fingerprint=embedded.manifest.made_of.model_fingerprint,
        metadata=_metadata(products, embedded),
        modality_weights=embedded.modality_weights(),
        factory=chosen.factory,
        search_parameters=chosen.search_parameters,
    )
    index.save(run.folder / "index", overwrite=True)
    run.finish(base=record["base"], products=len(index))
    print(
        f"{len(index):,} products in {run.folder / 'index'} ({chosen.factory} {chosen.search_parameters}".rstrip()
        + f"; finds {index.description.recall_at_100:.1%} of the 100 products most like a product); "
        'next: recipes/search.py "red floral summer dress"'
    )


def _choose(
    embedded: EmbeddedCatalogue, factory: str | None, search_parameters: str | None, memory_gib: float | None
) -> Choice:
    if factory is not None:
        return Choice(factory, search_parameters or "", 0)
    if search_parameters is not None:
        raise ValueError(f"search_parameters {search_parameters!r} belong to a kind of index; give --factory too.")
    budget = physical_memory() // 2 if memory_gib is None else int(memory_gib * 2**30)
    return choose_index(len(embedded), embedded.manifest.made_of.dimension, budget)


def _metadata(catalogue: Catalogue, embedded: EmbeddedCatalogue) -> pa.Table:
    """Columns of the catalogue but for ids and photos, in the order of the vectors."""
    table = catalogue.products.data.table
    rows = pc.index_in(embedded.column("product_id"), value_set=table.column("product_id").combine_chunks())
    if rows.null_count:
        raise ValueError(
            f"{rows.null_count} embedded products are not in {catalogue!r}; run recipes/embed.py on it again, or give "
            "the --catalogue that was embedded."
        )
    return table.select([name for name in table.column_names if name not in ("product_id", "image")]).take(rows)


if __name__ == "__main__":
    run_command(main)
