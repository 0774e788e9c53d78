"""Embed the products of a catalogue into shards that an index, or any other engine, is built from."""

import logging
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmfusion.data.photo_check import check_photos
from mmfusion.embedding import EmbeddedCatalogue, EmbeddingJob, EmbeddingSettings, VectorType
from mmfusion.embedding.shards import MANIFEST
from mmfusion.files import absolute_place
from mmfusion.retrieval.query_tower import check_trained
from mmfusion.training import Hardware, load_base, load_catalogue, open_run
from mmfusion.training.full_disk import full_disk_ends
from mmfusion.training.hardware import compile_blocks
from mmfusion.training.sources import forget_other_tables

# A job that finds nothing to do waits neither for Lightning nor for Ray, which take seconds to import.
if TYPE_CHECKING:
    import lightning as L


@dataclass
class Config:
    """Settings of `mmfusion embed`.

    Attributes:
        catalogue: Folder, fsspec URL or Hub id with the table `products`; default: the catalogue that the model was
            trained on.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        base: Folder or Hub id of the model.
        output: Folder for everything that is written; several nodes need one that all of them see.
        split: Only products of this split; default: all.
        vector_type: float32, float16, int8 (with a scale per vector) or binary (a bit per component).
        truncate_dim: Components to keep of each vector (of each view, with a query router), of a number that the model
            was trained for (its `matryoshka_dims`); default: all.
        allow_untrained_width: Whether truncate_dim may be any other number, too.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        shard_size: Products per shard, and what a kill costs at most per device.
        batch_size: Products per forward pass.
        engine: `lightning`: the devices of this machine, or nodes that torchrun or SLURM start. `ray` (needs
            `pip install 'mmfusion[ray]'`): `hardware.devices` workers on the Ray cluster that the environment variable
            RAY_ADDRESS names (`auto`: the one of this machine), all of whose machines see the output folder, the model
            and the catalogue under the same paths; without it, Ray is started here, for this run and this machine only.
            Workers that die are replaced. The vectors are the same; on CPUs as long as OMP_NUM_THREADS is, which `ray`
            takes for 1 where it is not set.
        hardware: Devices, precision and workers that decode photos; nothing is trained, so neither fsdp nor
            activation checkpointing makes sense here.
    """

    catalogue: str | None = None
    cache_dir: str | None = None
    base: str = "outputs/stage2"
    output: str = "outputs/embeddings"
    split: str | None = None
    vector_type: VectorType = "float32"
    truncate_dim: int | None = None
    allow_untrained_width: bool = False
    allow_missing_photos: bool = False
    shard_size: int = 4096
    batch_size: int = 64
    engine: Literal["lightning", "ray"] = "lightning"
    hardware: Hardware = field(default_factory=Hardware)


def main(config: Config) -> None:
    """Writes shard-*.parquet and manifest.json; run again to continue, or to follow a catalogue that has changed.

    A run that was killed continues with the shards that are missing. A run on a changed catalogue embeds new products
    and those whose text or photos have changed, drops those that are gone, and leaves the other vectors as they are.
    """
    hardware = config.hardware
    _check_hardware(hardware, config.engine)
    # Vectors depend neither on the catalogue's place nor on the rest, which may change from day to day.
    vectors = {"base": config.base, "split": config.split, "vector_type": config.vector_type}
    run = open_run(config.output, "embed", {**vectors, "dim": config.truncate_dim})
    with full_disk_ends(run.folder, "continue"):
        job = load_job(config, run.folder)
        check_trained(job.model, config.base)
        found = None
        if (
            config.engine == "lightning"
            and hardware.devices * hardware.num_nodes == 1
            and (run.folder / MANIFEST).is_file()
        ):
            found = job.find()
        if found != [] and job.table.photos:
            check_photos(job.catalogue, job.rows, allow_missing=config.allow_missing_photos)
        base, source = absolute_place(config.base), job.catalogue.source
        embedded: EmbeddedCatalogue | None
        if found == []:
            embedded = job.finish()
        elif config.engine == "ray":
            from mmfusion.embedding.engine_ray import embed_with_ray

            load = partial(load_job, replace(config, base=base, catalogue=absolute_place(source)), run.folder)
            embedded = embed_with_ray(job, load, workers=hardware.devices, accelerator=hardware.accelerator)
        else:
            from mmfusion.embedding.engine_lightning import embed_with_lightning
            from mmfusion.training.trainer import expected_warnings_ignored

            with expected_warnings_ignored():
                embedded = embed_with_lightning(job, _trainer(job, hardware), found)
    if embedded is not None:
        forget_other_tables(job.catalogue, run.folder)
        run.finish(base=base, catalogue=source, products=len(embedded))
        print(f"{len(embedded):,} products in {run.folder}; next: mmfusion index --embeddings {config.output}")


def load_job(config: Config, folder: Path) -> EmbeddingJob:
    """The job with its model and the products of its catalogue, the same here and in Ray's workers."""
    model, processor = load_base(config.base)
    if config.hardware.compile:
        compile_blocks(model)
    catalogue = load_catalogue(config.catalogue, config.base, folder, products_only=True, cache_dir=config.cache_dir)
    return EmbeddingJob(
        folder,
        model,
        processor,
        catalogue,
        catalogue.product_rows(config.split),
        EmbeddingSettings(
            config.vector_type,
            config.truncate_dim,
            config.shard_size,
            config.batch_size,
            config.hardware.num_workers,
            config.allow_untrained_width,
        ),
        precision=config.hardware.precision,
        model_name=config.base,
        split=config.split,
    )


def _check_hardware(hardware: Hardware, engine: str) -> None:
    """Raises a ValueError that names the setting which makes no sense here."""
    no_ranks = (
        "--engine ray has no ranks: hardware.devices counts the workers of the whole cluster, and Ray places them; "
        "leave it out"
    )
    allowed = ("auto", "cpu", "gpu")
    accelerators = f"--engine ray needs one of {', '.join(allowed)}"
    ray = engine == "ray"
    for name, wrong, reason in (
        ("strategy", hardware.strategy == "fsdp", "it shards what is trained; embed with auto or ddp"),
        ("activation_checkpointing", hardware.activation_checkpointing, "it is for training alone; leave it out"),
        ("strategy", ray and hardware.strategy != "auto", no_ranks),
        ("num_nodes", ray and hardware.num_nodes != 1, no_ranks),
        ("devices", ray and hardware.devices < 1, "--engine ray needs their number, at least 1"),
        ("accelerator", ray and hardware.accelerator not in allowed, accelerators),
    ):
        if wrong:
            raise ValueError(f"hardware.{name} is {getattr(hardware, name)}: {reason}.")


def _trainer(job: EmbeddingJob, hardware: Hardware) -> "L.Trainer":
    import lightning as L

    # Here, as importing it sets it back.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    return L.Trainer(
        default_root_dir=job.folder,
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        num_nodes=hardware.num_nodes,
        strategy=hardware.strategy,
        precision=hardware.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
