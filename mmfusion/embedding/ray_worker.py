"""A worker of the Ray engine: it loads the model once, and embeds and writes shard after shard."""

import logging
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from transformers.utils.logging import disable_progress_bar

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.tables import ProductTable, Rows, text_lengths
from mmfusion.embedding.batches import ShardSampler, shard_loader
from mmfusion.embedding.content import Digests
from mmfusion.embedding.forward import OpenShard, embed_batch
from mmfusion.embedding.job import EmbeddingSettings, describe
from mmfusion.embedding.plan import NewShard, Products
from mmfusion.embedding.ray_cluster import RayJobError
from mmfusion.embedding.shard import MadeOf, ShardError, shard_name
from mmfusion.model import MMFusionModel, MMFusionProcessor

# A shard over which as many workers died is taken for the cause; Ray would try without end.
MOST_TRIES = 4
Load = Callable[[], tuple[MMFusionModel, MMFusionProcessor, Catalogue]]


@dataclass(frozen=True)
class Assignment:
    """What all workers of a job are told.

    Attributes:
        load: Loads the model, its processor and the catalogue, wherever the worker is.
        folder: Where shards go, on a file system that all workers share.
        made_of: What the vectors depend on, as the driver found it.
        settings: Sizes and types.
        photos: Whether the model looks at photos.
        accelerator: `cpu` or `gpu`.
        threads: Threads of the forward pass.
    """

    load: Load
    folder: Path
    made_of: MadeOf
    settings: EmbeddingSettings
    photos: bool
    accelerator: str
    threads: int


def as_item(products: Products, shard: NewShard) -> dict[str, Any]:
    """A shard as an item of a Ray data set: rows of the catalogue, and the digests that its name was made of."""
    rows, contents = products.rows[shard.places], products.contents[shard.places]
    return {"name": shard.name, "rows": rows.tobytes(), "contents": np.ascontiguousarray(contents).tobytes()}


def forget_tries(folder: Path) -> None:
    """Begins to count anew how often each shard was tried."""
    shutil.rmtree(_tries(folder), ignore_errors=True)
    _tries(folder).mkdir(parents=True)


def _tries(folder: Path) -> Path:
    return folder / "cache" / "tries"


def _note_try(folder: Path, name: str) -> None:
    if not _tries(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {_tries(folder)}; give an --output that all machines share")
    noted = _tries(folder) / name
    before = noted.stat().st_size if noted.exists() else 0
    if before >= MOST_TRIES:
        raise RayJobError(
            f"{before} workers died over the shard {name}; look for memory that ran out in what Ray says of them, give "
            "a smaller batch_size or fewer workers per machine, and run the same command again to go on"
        )
    # A byte for each try, as two workers never have the same shard at a time.
    with noted.open("ab") as file:
        file.write(b".")


class ShardWorker:
    """Embeds items of [`as_item`], each into its file, and says how many products that were.

    What refuses the job, such as a folder that this machine does not have, is handed back as an item: Ray would restart
    a worker that raises, and wraps its errors in several others.
    """

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self._loaded: _Loaded | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        rows = np.frombuffer(item["rows"], np.int64)
        contents = np.frombuffer(item["contents"], np.uint64).reshape(len(rows), 2)
        refusal = ""
        try:
            _note_try(self.assignment.folder, item["name"])
            if self._loaded is None:
                self._loaded = _Loaded(self.assignment)
            self._loaded.embed(item["name"], rows, contents)
        except (ValueError, OSError) as error:
            refusal = f"{type(error).__name__} on {socket.gethostname()}: {error}"
        return {"products": len(rows), "refusal": refusal}


class _Loaded:
    def __init__(self, assignment: Assignment) -> None:
        # Bad photos are told of; that each worker reads the catalogue is not.
        logging.basicConfig(format="%(message)s")
        disable_progress_bar()
        torch.set_num_threads(assignment.threads)
        self.assignment = assignment
        made_of, settings = assignment.made_of, assignment.settings
        model, processor, self.catalogue = assignment.load()
        found = describe(model, processor, settings, made_of.precision)
        if found != made_of:
            raise ShardError(
                f"the model, or what prepares photos, is another one here ({found}) than where the job was started "
                f"({made_of}); have the same files and packages on all machines"
            )
        self.lengths = text_lengths(self.catalogue, processor.template_columns)
        self.table = ProductTable(self.catalogue, processor)
        self.table.photos &= assignment.photos
        # An environment of its own, as schedulers such as SLURM describe the cluster rather than this one device.
        self.fabric = Fabric(
            accelerator=assignment.accelerator,
            devices=1,
            precision=made_of.precision,  # type: ignore[arg-type]
            plugins=[LightningEnvironment()],
        )
        self.model = self.fabric.to_device(model.eval())

    def embed(self, name: str, rows: Rows, contents: Digests) -> None:
        made_of, settings = self.assignment.made_of, self.assignment.settings
        ids = self.catalogue.product_ids[rows].tolist() if rows[-1] < len(self.catalogue.products) else []
        if shard_name(made_of, ids, contents) != name:
            raise ShardError(
                f"the products of {self.catalogue.source} are others here than where the job was started; run the same "
                "command again, which follows the change"
            )
        shard = OpenShard(rows, made_of.dimension)
        sampler = ShardSampler([rows], self.lengths, batch_size=settings.batch_size)
        for batch in shard_loader(self.table, sampler, settings.num_workers):
            moved = self.fabric.to_device(batch)
            with torch.inference_mode(), self.fabric.autocast():
                vectors, weights = embed_batch(self.model, moved, settings.truncate_dim)
            shard.add(batch["product_rows"].numpy(), vectors, weights)
        shard.write(self.assignment.folder / name, made_of, ids, contents)
