"""Mine hard negatives: train products that a model ranks high for a train query although they are not what it asks."""

import hashlib
import json
import shutil
from dataclasses import asdict, fields
from typing import Literal

import numpy as np

from mmfusion.data.catalogue_contents import contents_digest
from mmfusion.data.hard_negatives import write_hard_negatives
from mmfusion.retrieval import ProductIndex
from mmfusion.retrieval.embedding import embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.mining import MiningSettings
from mmfusion.retrieval.mining_shards import MiningShards, embed_in_shards, with_ids
from mmfusion.training import decisive, load_base, load_catalogue, note_catalogue, open_run, run_command


def main(
    catalogue: str | None = None,
    base: str = "outputs/stage1",
    output: str = "outputs/hard_negatives",
    first_rank: int = 1,
    last_rank: int = 100,
    num_negatives: int = 20,
    absolute_margin: float | None = None,
    relative_margin: float | None = 0.05,
    positive_score: Literal["min", "mean", "max"] = "mean",
    max_negative_grade: int = 0,
    factory: str = "Flat",
    search_parameters: str = "",
    batch_size: int = 64,
    shard_size: int = 1024,
    num_workers: int = 0,
) -> None:
    """Writes hard_negatives.parquet and hard_negatives.json for --hard_negatives of stage 1 and 2; run again to resume.

    Of each train query that has a relevant product, the products of the train split are ranked, and no others.

    Args:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on.
        base: Folder or Hub id of the model that ranks.
        output: Folder for everything that is written.
        first_rank: First place of the window that negatives come from, from 1; places count all train products.
        last_rank: Last place of that window.
        num_negatives: Most negatives of a query; the highest places are taken.
        absolute_margin: A negative scores at least this less than the positive; default: no such margin.
        relative_margin: A negative scores less than the positive by at least this share of the positive's score; null:
            no such margin.
        positive_score: What the margins are measured from where a query has several products of its best grade.
        max_negative_grade: Highest grade of a negative, e.g. 1 to take near misses too. Products of a query's best
            grade are never taken.
        factory: FAISS factory string: Flat (exact), HNSW32 (fast), IVF1024,PQ48 (small) …; scores are exact with any.
        search_parameters: FAISS run-time parameters, e.g. nprobe=16.
        batch_size: Products per forward pass.
        shard_size: Queries that are mined, and 16 times as many products that are embedded, between two savings.
        num_workers: Processes that decode photos, and then search, each in one thread; the result does not depend on
            them.
    """
    if shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; give at least 1.")
    given = {name: value for name, value in decisive(locals()).items() if name != "num_workers"}
    settings = MiningSettings(**{field.name: given[field.name] for field in fields(MiningSettings)})
    run = open_run(output, "mine", given)
    if run.complete:
        return print(f"{run.folder} is complete; delete it or give another --output to mine again.")
    model, processor = load_base(base)
    model.eval()
    products = load_catalogue(catalogue, base, run.folder)
    note_catalogue(run, products)
    qrels = products.split_qrels("train")
    products.judged_queries("train")
    query_rows, product_rows = np.unique(qrels.query[qrels.grade > 0]), products.product_rows("train")

    fingerprint = model_fingerprint(model, processor)
    made_of = [
        fingerprint,
        contents_digest(products),
        asdict(settings),
        factory,
        search_parameters,
        batch_size,
        shard_size,
    ]
    work = run.folder / "cache" / f"mining_{hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:16]}"
    options = {"batch_size": batch_size, "num_workers": num_workers}
    embeds = embed_in_shards(
        work / "products.npy",
        product_rows,
        16 * shard_size,
        lambda rows: embed_products(model, processor, products, rows, **options).embeds,  # type: ignore[arg-type]
    )
    embed_in_shards(
        work / "queries.npy", query_rows, 16 * shard_size, lambda rows: embed_queries(model, processor, products, rows)
    )
    if not (work / "index").exists():
        index = ProductIndex.build(
            embeds,
            products.product_ids[product_rows],
            model_fingerprint=fingerprint,
            factory=factory,
            search_parameters=search_parameters,
        )
        index.save(work / "index")
    shards = MiningShards(work, query_rows, product_rows, qrels, settings, shard_size)
    shards.mine(num_workers)

    mined = shards.read()
    counts = {
        "products": len(product_rows),
        "queries": len(query_rows),
        "queries_without": len(query_rows) - len(np.unique(mined.query)),
    }
    facts = {"model_fingerprint": fingerprint, "settings": {**asdict(settings), "factory": factory}, "counts": counts}
    manifest = write_hard_negatives(run.folder, with_ids(mined, products), products, **facts)
    run.finish(**manifest["counts"])
    shutil.rmtree(work)
    print(
        f"{len(mined.query):,} negatives of {len(query_rows):,} queries ({counts['queries_without']:,} have none) in "
        f"{run.folder}; next: recipes/stage2.py --hard_negatives {output}"
    )


if __name__ == "__main__":
    run_command(main)
