"""Embed the products of a catalogue into shards that an index, or any other engine, is built from."""

from pathlib import Path

import lightning as L

from mmfusion.embedding import EmbeddingJob, EmbeddingSettings, VectorType
from mmfusion.training import Hardware, load_base, load_catalogue, open_run, run_command
from mmfusion.training.prepare_model import compile_blocks
from mmfusion.training.trainer import expected_warnings_ignored


def main(
    catalogue: str | None = None,
    base: str = "outputs/stage2",
    output: str = "outputs/embeddings",
    split: str | None = None,
    vector_type: VectorType = "float32",
    truncate_dim: int | None = None,
    shard_size: int = 4096,
    batch_size: int = 64,
    hardware: Hardware = Hardware(),
) -> None:
    """Writes shard-*.parquet and manifest.json; run again to go on, or to follow a catalogue that has changed.

    A run that was killed goes on with the shards that are missing. A run on a changed catalogue embeds new products and
    those whose text or photos are others, drops those that are gone, and leaves the other vectors as they are.

    Args:
        catalogue: Folder, fsspec URL or Hub id with the table `products`; default: the catalogue that the model was
            trained on.
        base: Folder or Hub id of the model.
        output: Folder for everything that is written; several nodes need one that all of them see.
        split: Only products of this split; default: all.
        vector_type: float32, float16, int8 (with a scale per vector) or binary (a bit per component).
        truncate_dim: Components to keep of each vector (of each view, with a query router); default: all.
        shard_size: Products per shard, and what a kill costs at most per device.
        batch_size: Products per forward pass.
        hardware: Devices, precision and workers that decode photos; nothing is trained, so that neither fsdp nor
            activation checkpointing has a place here.
    """
    if hardware.strategy == "fsdp":
        raise ValueError("hardware.strategy is fsdp, which shares out what is trained; embed with auto or ddp.")
    settings = EmbeddingSettings(vector_type, truncate_dim, shard_size, batch_size, hardware.num_workers)
    # Neither the catalogue's place nor what else changes from day to day makes the vectors others.
    run = open_run(output, "embed", {"base": base, "split": split, "vector_type": vector_type, "dim": truncate_dim})
    model, processor = load_base(base)
    if hardware.compile:
        compile_blocks(model)
    products = load_catalogue(catalogue, base, run.folder, products_only=True)
    job = EmbeddingJob(
        run.folder,
        model,
        processor,
        products,
        products.product_rows(split),
        settings,
        precision=hardware.precision,
        model_name=base,
        split=split,
    )
    trainer = L.Trainer(
        default_root_dir=run.folder,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        callbacks=[job.writer()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with expected_warnings_ignored():
        embedded = job.run(trainer)
    if embedded is not None:
        place = str(Path(base).absolute()) if Path(base).exists() else base
        run.finish(base=place, catalogue=products.source, products=len(embedded))
        print(f"{len(embedded):,} products in {run.folder}; next: recipes/index.py --embeddings {output}")


if __name__ == "__main__":
    run_command(main)
