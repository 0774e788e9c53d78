"""Mine hard negatives: train products that a model ranks high for a train query although they are not what it asks."""

import hashlib
import json
import shutil
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np

from mmfusion.data.hard_negatives import write_hard_negatives
from mmfusion.data.photo_check import check_photos
from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.embedding import embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.mining import MiningSettings, MiningShards, embed_in_shards
from mmfusion.training.run import open_run, recorded_arguments
from mmfusion.training.sources import load_base, load_catalogue, note_catalogue


@dataclass(frozen=True)
class Config(MiningSettings):
    """Settings of `mmfusion mine`.

    Attributes:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        unknown_judgements: What to do with judgements of queries or products that the catalogue lacks: stop with an
            error, or drop them and say how many.
        base: Folder or Hub id of the model that ranks.
        output: Folder for everything that is written.
        factory: FAISS factory string: Flat (exact), HNSW32 (fast), IVF1024,PQ48 (small) …; scores are exact with any.
        search_parameters: FAISS run-time parameters, e.g. nprobe=16.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        batch_size: Products per forward pass.
        shard_size: Queries that are mined, and 16 times as many products that are embedded, between two savings.
        num_workers: Processes that decode photos, and then search, each in one thread; the result does not depend on
            them.
    """

    catalogue: str | None = None
    cache_dir: str | None = None
    unknown_judgements: Literal["error", "drop"] = "error"
    base: str = "outputs/stage1"
    output: str = "outputs/hard_negatives"
    factory: str = "Flat"
    search_parameters: str = ""
    allow_missing_photos: bool = False
    batch_size: int = 64
    shard_size: int = 1024
    num_workers: int = 0


def main(config: Config) -> None:
    """Writes hard_negatives.parquet and hard_negatives.json for --hard_negatives of stage 1 and 2; run again to resume.

    The products of the train split, and no others, are ranked for each train query that has a relevant product.
    """
    if config.shard_size < 1:
        raise ValueError(f"shard_size is {config.shard_size}; give at least 1.")
    settings = MiningSettings(**{field.name: getattr(config, field.name) for field in fields(MiningSettings)})
    arguments = recorded_arguments(config)
    del arguments["num_workers"]
    run = open_run(config.output, "mine", arguments)
    following = f"next: mmfusion stage2 --hard_negatives {config.output}"
    if run.complete:
        return print(f"{run.folder} is complete; delete it or give another --output to mine again; {following}")
    model, processor = load_base(config.base)
    model.eval()
    products = load_catalogue(
        config.catalogue, config.base, run.folder, unknown=config.unknown_judgements, cache_dir=config.cache_dir
    )
    note_catalogue(run, products)
    qrels = products.split_qrels("train")
    products.judged_queries("train")
    query_rows, product_rows = np.unique(qrels.query[qrels.grade > 0]), products.product_rows("train")

    if model.config.fusion != "text_only":
        check_photos(products, product_rows, allow_missing=config.allow_missing_photos)
    fingerprint = model_fingerprint(model, processor)
    searched_by = [config.factory, config.search_parameters, config.batch_size, config.shard_size]
    result_depends_on = json.dumps([fingerprint, products.contents_digest(), asdict(settings), *searched_by])
    work = run.folder / "cache" / f"mining_{hashlib.sha256(result_depends_on.encode()).hexdigest()[:16]}"
    sizes = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    embeds = embed_in_shards(
        work / "products.npy",
        product_rows,
        16 * config.shard_size,
        lambda rows: embed_products(model, processor, products, rows, **sizes).embeds,  # type: ignore[arg-type]
    )
    embed_in_shards(
        work / "queries.npy",
        query_rows,
        16 * config.shard_size,
        lambda rows: embed_queries(model, processor, products, rows),
    )
    if not (work / "index").exists():
        index = ProductIndex.build(
            embeds,
            products.product_ids[product_rows],
            model_fingerprint=fingerprint,
            factory=config.factory,
            search_parameters=config.search_parameters,
        )
        index.save(work / "index")
    shards = MiningShards(
        work, query_rows, products.query_ids[query_rows], product_rows, qrels, settings, config.shard_size
    )
    shards.mine(config.num_workers)

    mined = shards.read()
    counts = {
        "products": len(product_rows),
        "queries": len(query_rows),
        "queries_without": len(query_rows) - len(mined.column("query_id").unique()),
    }
    facts = {"model_fingerprint": fingerprint, "settings": {**asdict(settings), "factory": config.factory}}
    manifest = write_hard_negatives(run.folder, mined, products, **facts, counts=counts)
    run.finish(**manifest["counts"])
    shutil.rmtree(work)
    print(
        f"{len(mined):,} negatives of {len(query_rows):,} queries ({counts['queries_without']:,} have none) in "
        f"{run.folder}; {following}"
    )
