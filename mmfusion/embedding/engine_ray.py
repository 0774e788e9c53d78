"""Embedding by Ray Data: shards as the items of a data set, and a pool of workers that embed and write them."""

import logging
import os
from typing import Any

from tqdm.auto import tqdm

from mmfusion.embedding.job import EmbeddingJob
from mmfusion.embedding.manifest import EmbeddedCatalogue
from mmfusion.embedding.plan import NewShard
from mmfusion.embedding.ray_cluster import RayJobError, check_ray, ray_cluster
from mmfusion.embedding.ray_worker import Assignment, Load, ShardWorker, as_item, forget_tries

log = logging.getLogger("mmfusion")

ACCELERATORS = ("auto", "cpu", "gpu")


def embed_with_ray(job: EmbeddingJob, load: Load, *, workers: int, accelerator: str = "auto") -> EmbeddedCatalogue:
    """Embeds what is missing, drops what is gone, and writes the manifest.

    Vectors are those of Lightning, bit for bit, on the same kind of processor and, on CPUs, with the same number of
    threads: OMP_NUM_THREADS, or 1, whatever the cluster has. A worker that dies is replaced, and its shard begun anew.

    Args:
        job: What to embed.
        load: Loads the job's model, processor and catalogue again, in each worker.
        workers: Number of them, in the whole cluster.
        accelerator: `cpu`, `gpu` (one for each worker), or `auto`: GPUs if the cluster has one.

    Returns:
        The finished folder.

    Raises:
        RayJobError: Ray is not installed, no cluster answers, devices or precision do not fit each other, or a worker
            refused a shard or died several times over it.
    """
    check_ray()
    shards = job.find()
    threads = int(os.environ.get("OMP_NUM_THREADS") or 1)
    if shards:
        cpus = workers * (threads + job.settings.num_workers)
        with ray_cluster(cpus) as ray:
            kind = _accelerator(ray, accelerator, workers, job.made_of.precision)
            _warn_of_waiting(ray, kind.upper(), workers if kind == "gpu" else cpus)
            photos = job.table.photos
            told = Assignment(load, job.folder, job.made_of, job.settings, photos, kind, threads)
            _compute(ray, job, shards, told, workers)
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
        log.warning("the cluster has %s of the %s %ss that the workers need; waiting for the others", has, wanted, kind)


def _compute(ray: Any, job: EmbeddingJob, shards: list[NewShard], told: Assignment, workers: int) -> None:
    _keep_quiet(ray)
    forget_tries(job.folder)
    # A block for each shard, as Ray hands out blocks and begins them anew.
    items = ray.data.from_items([as_item(job.products, shard) for shard in shards], override_num_blocks=len(shards))
    needs = {"num_gpus": 1} if told.accelerator == "gpu" else {"num_cpus": told.threads + told.settings.num_workers}
    results = items.map(
        ShardWorker,
        fn_constructor_args=(told,),
        compute=ray.data.ActorPoolStrategy(size=workers),
        **needs,
    )
    total = sum(len(shard.places) for shard in shards)
    # Results come a shard at a time, so that the mean of the whole job tells more than the last of them.
    bar = tqdm(total=total, desc=f"embedding ({workers} workers)", unit="product", smoothing=0)
    try:
        with bar:
            for result in results.iter_rows():
                if result["refusal"]:
                    raise RayJobError(result["refusal"])
                bar.update(result["products"])
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            # Neither the machine's fault nor the user's: what the worker ran into is worth its traceback.
            raise
        raise RayJobError(
            f"the Ray cluster gave up ({str(error).splitlines()[0]}); run the same command again to go on."
        ) from error


def _keep_quiet(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # It warns that there are no progress bars but this one.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
