"""Embedding by Ray Data: shards as the items of a data set, and a pool of workers that embed and write them."""

import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from tqdm.auto import tqdm
from transformers.utils.logging import disable_progress_bar

from mmfusion.embedding.job import (
    EmbeddingJob,
    NewShard,
    embed_batch,
    product_loader,
    shard_batches,
    write_batches,
)
from mmfusion.embedding.layout import laid_out_for_cpu
from mmfusion.embedding.shards import EmbeddedCatalogue, Provenance, ShardError, shard_name
from mmfusion.extras import library
from mmfusion.model.errors import MMFusionError
from mmfusion.retrieval.parts import PartEncoder

logger = logging.getLogger(__name__)

# A shard over which as many workers died is taken for the cause; Ray would try without end.
MOST_TRIES = 4
# The fewest characters that a system allows for the path of a socket; and the path of Ray's own below its folder.
_SOCKET_CHARACTERS = 103
_SOCKET = "/mmfusion_ray_12345678/session_2026-11-26_12-00-00_123456_1234567/sockets/plasma_store"
# Products travel through files, and 24 bytes of each, its row and digest, through this memory for objects. What is more
# goes to the temporary folder: 200 MB for ten million products.
_OBJECT_BYTES = 128 << 20
_ANSWER_SECONDS = 10.0


class RayJobError(MMFusionError):
    """A job on Ray cannot begin, or cannot continue."""


def embed_with_ray(
    job: EmbeddingJob, load: Callable[[], EmbeddingJob], *, workers: int, accelerator: str = "auto"
) -> EmbeddedCatalogue:
    """Embeds what is missing, drops what is gone, and writes the manifest.

    Vectors are those of Lightning, bit for bit, on the same kind of processor and, on CPUs, with the same number of
    threads: OMP_NUM_THREADS, or 1, whatever the cluster has. A worker that dies is replaced, and its shard starts
    again.

    Args:
        job: What to embed.
        load: Makes the same job again, in each worker.
        workers: Number of them, in the whole cluster.
        accelerator: `cpu`, `gpu` (one for each worker), or `auto`: GPUs if the cluster has one.

    Returns:
        The finished folder.

    Raises:
        MissingLibraryError: Ray is not installed.
        RayJobError: No cluster answers, devices or precision do not fit each other, or a worker
            stopped with an error or died several times over a shard.
    """
    check_ray()
    shards = job.find()
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    if shards:
        cpus = workers * (threads + job.settings.num_workers)
        with ray_cluster(cpus) as ray:
            kind = _accelerator(ray, accelerator, workers, job.provenance.precision)
            _warn_of_waiting(ray, kind.upper(), workers if kind == "gpu" else cpus)
            _compute(ray, job, shards, (load, job.folder, job.provenance, kind, threads), workers)
    return job.finish()


def _accelerator(ray: Any, wanted: str, workers: int, precision: str) -> str:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    kind = wanted if wanted != "auto" else "gpu" if gpus else "cpu"
    if kind == "gpu" and gpus < workers and not os.environ.get("RAY_ADDRESS"):
        raise RayJobError(f"hardware.devices is {workers}, one GPU each, and this machine has {gpus}; give fewer.")
    if kind == "cpu" and precision == "16-mixed":
        raise RayJobError("hardware.precision is 16-mixed, which CPUs do not support; give bf16-mixed.")
    return kind


def _warn_of_waiting(ray: Any, kind: str, wanted: int) -> None:
    # An autoscaler may add what the cluster lacks, so this is no reason to give up.
    has = int(ray.cluster_resources().get(kind, 0))
    if has < wanted:
        logger.warning(
            "the cluster has %s of the %s %ss that the workers need; waiting for the others", has, wanted, kind
        )


def _compute(ray: Any, job: EmbeddingJob, shards: list[NewShard], worker: tuple[Any, ...], workers: int) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that there are no progress bars but this one.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    forget_tries(job.folder)
    # A block for each shard, as Ray hands out blocks and starts them again.
    items = ray.data.from_items([as_item(job, shard) for shard in shards], override_num_blocks=len(shards))
    *_, accelerator, threads = worker
    results = items.map(
        ShardWorker,
        fn_constructor_args=worker,
        compute=ray.data.ActorPoolStrategy(size=workers),
        **({"num_gpus": 1} if accelerator == "gpu" else {"num_cpus": threads + job.settings.num_workers}),
    )
    total = sum(len(shard.places) for shard in shards)
    # Results come a shard at a time, so that the mean of the whole job says more than the last of them.
    try:
        with tqdm(total=total, desc=f"embedding ({workers} workers)", unit="product", smoothing=0) as bar:
            for result in results.iter_rows():
                if result["error"]:
                    raise RayJobError(result["error"])
                bar.update(result["products"])
    except ray.exceptions.RayTaskError:
        # Neither the machine's fault nor the user's: what the worker ran into is worth its traceback.
        raise
    except ray.exceptions.RayError as error:
        raise RayJobError(
            f"the Ray cluster gave up ({str(error).splitlines()[0]}); run the same command again to continue."
        ) from error


# --- A worker: it loads the model once, and embeds and writes shard after shard ---------------------------------------


def as_item(job: EmbeddingJob, shard: NewShard) -> dict[str, Any]:
    """A shard as an item of a Ray data set: rows of the catalogue, and the digests that its name was made of."""
    rows, contents = job.rows[shard.places], job.contents[shard.places]
    return {"name": shard.name, "rows": rows.tobytes(), "contents": np.ascontiguousarray(contents).tobytes()}


@dataclass
class ShardWorker:
    """Embeds items of [`as_item`], each into its file, and returns how many products that were.

    An error that ends the job, such as a folder that this machine does not have, is returned as an item: Ray would
    restart a worker that raises, and wraps its errors in several others.

    Attributes:
        load: Makes the job, wherever the worker is.
        folder: Folder of the job, on a file system that all workers share.
        provenance: What the vectors depend on, as the driver found it.
        accelerator: `cpu` or `gpu`.
        threads: Threads of the forward pass.
    """

    load: Callable[[], EmbeddingJob]
    folder: Path
    provenance: Provenance
    accelerator: str
    threads: int
    job: EmbeddingJob | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        error_text = ""
        try:
            _note_try(self.folder, item["name"])
            self.job = self.job or self._prepare()
            self._embed(self.job, item)
        except (ValueError, OSError) as error:
            error_text = f"{type(error).__name__} on {socket.gethostname()}: {error}"
        return {"products": len(item["rows"]) // 8, "error": error_text}

    def _prepare(self) -> EmbeddingJob:
        # Bad photos are logged; that each worker reads the catalogue is not.
        logging.basicConfig(format="%(message)s")
        disable_progress_bar()
        torch.set_num_threads(self.threads)
        job = self.load()
        if job.provenance != self.provenance:
            raise ShardError(
                f"the model, or what prepares photos, differs here ({job.provenance}) from that on the driver "
                f"({self.provenance}); install the same files and packages on all machines"
            )
        # A separate environment, as schedulers such as SLURM describe the cluster rather than this one device.
        self.fabric = Fabric(
            accelerator=self.accelerator,
            devices=1,
            precision=self.provenance.precision,  # type: ignore[arg-type]
            plugins=[LightningEnvironment()],
        )
        self.model = self.fabric.to_device(job.model)
        return job

    def _embed(self, job: EmbeddingJob, item: dict[str, Any]) -> None:
        rows = np.frombuffer(item["rows"], np.int64)
        contents = np.frombuffer(item["contents"], np.uint64).reshape(len(rows), 2)
        ids = job.catalogue.product_ids[rows].tolist() if rows[-1] < len(job.catalogue.products) else []
        if shard_name(job.provenance, ids, contents) != item["name"]:
            raise ShardError(
                f"the products of {job.catalogue.source} differ from those on the driver; run the same command again, "
                "which follows the change"
            )
        done = []
        settings, encoder = job.settings, PartEncoder(self.model)
        batches = shard_batches(job.table, rows, contents, job.lengths, settings.batch_size)
        with laid_out_for_cpu(self.model), torch.inference_mode(), self.fabric.autocast():
            for batch, inputs in zip(batches, product_loader(job.table, batches, settings.num_workers), strict=True):
                done.append(embed_batch(encoder, batch, self.fabric.to_device(inputs), settings.truncate_dim))
        write_batches(job.folder / item["name"], job.provenance, ids, contents, done)


def forget_tries(folder: Path) -> None:
    """Starts to count again how often each shard was tried."""
    shutil.rmtree(folder / "cache" / "tries", ignore_errors=True)
    (folder / "cache" / "tries").mkdir(parents=True)


def _note_try(folder: Path, name: str) -> None:
    tries = folder / "cache" / "tries" / name
    if not tries.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {tries.parent}; give an --output that all machines share")
    # A byte for each try, as two workers never have the same shard at a time.
    with tries.open("ab") as file:
        before = file.tell()
        file.write(b".")
    if before >= MOST_TRIES:
        raise RayJobError(
            f"{before} workers died over the shard {name}; look for memory that ran out in what Ray says of them, give "
            "a smaller batch_size or fewer workers per machine, and run the same command again to continue"
        )


# --- The cluster: the one that RAY_ADDRESS names, or one on this machine, for as long as a job takes ------------------


def import_ray() -> Any:
    """The library.

    Raises:
        MissingLibraryError: It is not installed.
    """
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        # What Ray reads when it is imported. Without clusters, it binds 127.0.0.1; its name for that comes from the
        # systems on which it always does so.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            # Other users of the machine reach 127.0.0.1 too. Ray's own token would be a file in the home folder.
            os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    library("ray.data", "ray")
    return library("ray", "ray")


def check_ray() -> None:
    """Finds out whether Ray is there before anything that takes long.

    Raises:
        MissingLibraryError: Ray is not installed.
        RayJobError: Nothing answers at RAY_ADDRESS.
    """
    # Of an address that is not a host and port, such as `auto`, Ray soon says so itself; of one that is, after minutes.
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", os.environ.get("RAY_ADDRESS", ""))
    if import_ray().is_initialized() or found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(error) from error


@contextmanager
def ray_cluster(least_cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster; one that this process is connected to already stays so afterwards.

    A cluster that is started here listens on 127.0.0.1 only, has no dashboard, sends no usage statistics, and ends with
    this process, whatever ends it (of a killed one, two idle helpers of Ray's a minute later). Its sockets and logs are
    in a temporary folder, as paths of sockets have to be short; it is removed at the end, and left by a kill.

    Args:
        least_cpus: CPUs that a cluster started here offers at least, as Ray counts them.

    Raises:
        MissingLibraryError: Ray is not installed.
        RayJobError: No cluster answers at RAY_ADDRESS.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    usual = tempfile.gettempdir()
    is_short = len(usual) + len(_SOCKET) <= _SOCKET_CHARACTERS or not Path("/tmp").is_dir()
    with tempfile.TemporaryDirectory(
        prefix="mmfusion_ray_", dir=usual if is_short else "/tmp", ignore_cleanup_errors=True
    ) as temporary:
        try:
            if os.environ.get("RAY_ADDRESS"):
                _connect(ray)
            else:
                ray.init(
                    address="local",
                    num_cpus=max(os.cpu_count() or 1, least_cpus),
                    object_store_memory=_OBJECT_BYTES,
                    include_dashboard=False,
                    logging_level=logging.WARNING,
                    _temp_dir=temporary,
                )
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any) -> None:
    try:
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(error) from error


def _no_cluster(error: Exception) -> RayJobError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RayJobError(
        f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']!r} ({reason}); check it with `ray status`, "
        "or unset RAY_ADDRESS to start Ray on this machine."
    )
