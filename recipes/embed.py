"""Embed the products of a catalogue into shards that an index, or any other engine, is built from."""

from functools import partial
from pathlib import Path
from typing import Literal

import lightning as L

from mmfusion.embedding import EmbeddedCatalogue, EmbeddingJob, EmbeddingSettings, VectorType
from mmfusion.embedding.engine_lightning import ShardWriter, embed_with_lightning
from mmfusion.embedding.engine_ray import ACCELERATORS, embed_with_ray
from mmfusion.training import Hardware, open_run, run_command
from mmfusion.training.embedding_sources import load_to_embed
from mmfusion.training.full_disk import full_disk_ends
from mmfusion.training.sources import forget_other_tables
from mmfusion.training.trainer import expected_warnings_ignored


def main(
    catalogue: str | None = None,
    base: str = "outputs/stage2",
    output: str = "outputs/embeddings",
    split: str | None = None,
    vector_type: VectorType = "float32",
    truncate_dim: int | None = None,
    allow_untrained_width: bool = False,
    shard_size: int = 4096,
    batch_size: int = 64,
    engine: Literal["lightning", "ray"] = "lightning",
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
        truncate_dim: Components to keep of each vector (of each view, with a query router), of a number that the model
            was trained for (its `matryoshka_dims`); default: all.
        allow_untrained_width: Whether truncate_dim may be any other number, too.
        shard_size: Products per shard, and what a kill costs at most per device.
        batch_size: Products per forward pass.
        engine: `lightning`: the devices of this machine, or nodes that torchrun or SLURM start. `ray` (needs
            `pip install 'mmfusion[ray]'`): `hardware.devices` workers on the Ray cluster that the environment variable
            RAY_ADDRESS names (`auto`: the one of this machine), all of whose machines see the output folder, the model
            and the catalogue under the same paths; without it, Ray is started here, for this run and this machine only.
            Workers that die are replaced. The vectors are the same; on CPUs as long as OMP_NUM_THREADS is, which `ray`
            takes for 1 where it is not set.
        hardware: Devices, precision and workers that decode photos; nothing is trained, so that neither fsdp nor
            activation checkpointing has a place here.
    """
    _check(engine, hardware)
    settings = EmbeddingSettings(
        vector_type, truncate_dim, shard_size, batch_size, hardware.num_workers, allow_untrained_width
    )
    # Neither the catalogue's place nor what else changes from day to day makes the vectors others.
    run = open_run(output, "embed", {"base": base, "split": split, "vector_type": vector_type, "dim": truncate_dim})
    with full_disk_ends(run.folder, "go on"):
        model, processor, products = load_to_embed(base, catalogue, run.folder, hardware.compile)
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
        embedded = _embed(job, engine, hardware, _absolute(base), _absolute(products.source))
    if embedded is not None:
        forget_other_tables(products, run.folder)
        run.finish(base=_absolute(base), catalogue=products.source, products=len(embedded))
        print(f"{len(embedded):,} products in {run.folder}; next: recipes/index.py --embeddings {output}")


def _check(engine: str, hardware: Hardware) -> None:
    if hardware.strategy == "fsdp":
        raise ValueError("hardware.strategy is fsdp, which shares out what is trained; embed with auto or ddp.")
    if hardware.activation_checkpointing:
        raise ValueError("hardware.activation_checkpointing is true, of use in training alone; leave it out.")
    if engine != "ray":
        return
    if hardware.strategy != "auto" or hardware.num_nodes != 1:
        name = "strategy" if hardware.strategy != "auto" else "num_nodes"
        raise ValueError(
            f"hardware.{name} is {getattr(hardware, name)}, but --engine ray has no ranks: hardware.devices counts the "
            "workers of the whole cluster, and Ray places them; leave it out."
        )
    if hardware.devices < 1:
        raise ValueError(f"hardware.devices is {hardware.devices}; --engine ray needs their number, at least 1.")
    if hardware.accelerator not in ACCELERATORS:
        raise ValueError(
            f"hardware.accelerator is {hardware.accelerator}; with --engine ray, give one of {', '.join(ACCELERATORS)}."
        )


def _embed(job: EmbeddingJob, engine: str, hardware: Hardware, base: str, catalogue: str) -> EmbeddedCatalogue | None:
    if engine == "ray":
        load = partial(load_to_embed, base, catalogue, job.folder, hardware.compile)
        return embed_with_ray(job, load, workers=hardware.devices, accelerator=hardware.accelerator)
    with expected_warnings_ignored():
        return embed_with_lightning(job, _trainer(job, hardware))


def _absolute(place: str) -> str:
    return str(Path(place).absolute()) if Path(place).exists() else place


def _trainer(job: EmbeddingJob, hardware: Hardware) -> L.Trainer:
    return L.Trainer(
        default_root_dir=job.folder,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        callbacks=[ShardWriter(job.folder, job.made_of)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


if __name__ == "__main__":
    run_command(main)
