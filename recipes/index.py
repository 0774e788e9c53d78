"""Embed a catalogue and build a FAISS index of it."""

from pathlib import Path

import numpy as np

from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.embedding import embed_products
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.training import load_base, load_catalogue, open_run, run_command


def main(
    catalogue: str | None = None,
    base: str = "outputs/stage2",
    output: str = "outputs/index",
    factory: str = "Flat",
    search_parameters: str = "",
    split: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
) -> None:
    """Writes an index folder: FAISS index, product ids with titles, metadata and modality weights, and a description.

    Args:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on.
        base: Folder or Hub id of the model.
        output: Folder for working files; the index itself is its subfolder `index`.
        factory: FAISS factory string: Flat (exact), HNSW32 (fast), IVF1024,PQ48 (small) …
        search_parameters: FAISS run-time parameters, e.g. nprobe=16.
        split: Only products of this split; default: all.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
    """
    run = open_run(output, "index", {"catalogue": catalogue, "base": base, "factory": factory, "split": split})
    model, processor = load_base(base)
    products = load_catalogue(catalogue, base, run.folder)
    rows = products.product_rows(split)
    # On disk, as the vectors of ten million products do not fit into memory beside the index that is built of them.
    shape = (len(rows), model.config.vector_dim)
    vectors = np.lib.format.open_memmap(run.folder / "cache" / "vectors.npy", "w+", np.float32, shape)
    options = {"batch_size": batch_size, "num_workers": num_workers, "out": vectors}
    embedded = embed_products(model.eval(), processor, products, rows, **options)  # type: ignore[arg-type]
    kept = [name for name in products.products.column_names if name not in ("product_id", "image")]
    index = ProductIndex.build(
        embedded.embeds,
        products.product_ids[rows],
        model_fingerprint=model_fingerprint(model, processor),
        metadata=products.products.select_columns(kept).data.table.take(rows),
        modality_weights=embedded.modality_weights,
        factory=factory,
        search_parameters=search_parameters,
    )
    index.save(run.folder / "index", overwrite=True)
    run.finish(base=str(Path(base).absolute()) if Path(base).exists() else base, products=len(index))
    print(f'{len(index):,} products in {run.folder / "index"}; next: recipes/search.py "red floral summer dress"')


if __name__ == "__main__":
    run_command(main)
