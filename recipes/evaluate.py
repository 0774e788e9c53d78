"""Evaluate a model (or BM25) on a split: Recall@10, Recall@100 and nDCG@10 over every product of the pool."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.qrels import Qrels
from mmfusion.data.tables import ProductTable, QueryTable, Rows
from mmfusion.evaluation import Evaluation, evaluate_rankings, format_comparison, modality_agreement, rank, rank_bm25
from mmfusion.evaluation.perturb import Perturbation, PerturbedInputs, no_text, perturbed_inputs
from mmfusion.evaluation.routing import PROVENANCE, format_router_weights, router_weights
from mmfusion.evaluation.slices import take
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import EmbeddedProducts, FloatArray, check_width, embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.training import cache_pool, load_base, load_catalogue, run_command, take_lock

PLACES = 100


def main(
    catalogue: str | None = None,
    base: str = "outputs/stage2",
    output: str = "outputs/evaluation",
    name: str | None = None,
    baseline: Literal["none", "bm25"] = "none",
    split: Literal["train", "val", "test"] = "test",
    pool: Literal["split", "all"] = "split",
    relevant_grade: int | None = None,
    query_slices: list[str] | None = None,
    product_slices: list[str] | None = None,
    perturb: Perturbation = "none",
    compare: list[str] | None = None,
    label_source: str = "",
    truncate_dim: int | None = None,
    allow_untrained_width: bool = False,
    weights_agree: bool = False,
    freeze_vision_blocks: int = 0,
    feature_cache: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> None:
    """Writes JSON, CSV, Parquet (per query), Markdown and a picture, and prints a table.

    Args:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on.
        base: Folder or Hub id of the model.
        output: Folder for results and working files; results of several models may share it.
        name: Name of the results; default: the fusion kind of the model, or the baseline, and the perturbation.
        baseline: bm25 ranks by words of the product text instead of the model (whose folder still names catalogue and
            template); needs the extra mmfusion[bm25].
        split: Queries to ask.
        pool: Products that compete: those of the queries' split, or the whole catalogue.
        relevant_grade: Lowest grade that Recall counts; default: the highest grade in the judgements.
        query_slices: Query columns whose values get rows of their own; default: kind, where there is one.
        product_slices: Product columns whose values slice Recall, e.g. text_stripped.
        perturb: Makes the inputs worse: misleading_titles (a wrong colour word put in), photos_dropped, text_dropped,
            typos (one in each query with a word of four letters or more), photos_shuffled (the control: each product
            shows the photo of another one, and the gain of seeing must vanish).
        compare: Names of results in the output folder, from the bottom of the ablation up, to print before this one.
        label_source: Who or what judged, printed beside the numbers.
        truncate_dim: Components to keep of each vector (of each view, with a query router), of a number that the model
            was trained for (its `matryoshka_dims`); default: all.
        allow_untrained_width: Whether truncate_dim may be any other number, too.
        weights_agree: Also embed the products without photos and without texts, and say how well the reported modality
            weights agree with what leaving a modality out does to the scores; takes three times as long.
        freeze_vision_blocks: Number of lowest vision blocks whose activations are cached, to evaluate several models
            that share them; the vectors are the same. 0 reads photos.
        feature_cache: Folder of that cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        seed: Of the perturbation.
    """
    folder = Path(output)
    lock = take_lock(folder)
    model, processor = load_base(base)
    check_width(model.config, truncate_dim, allow_untrained_width)
    products = load_catalogue(catalogue, base, folder)
    query_rows, product_rows = products.judged_queries(split), products.product_rows(_pool(pool, split))
    inputs = perturbed_inputs(perturb, product_rows, len(products.products), seed)
    if baseline == "bm25":
        ranked = _rank_bm25(products, processor, query_rows, product_rows, inputs)
    else:
        blocks = freeze_vision_blocks if inputs.photos else 0
        cache = cache_pool(model.eval(), processor, products, product_rows, blocks, feature_cache)

        def embed(read: PerturbedInputs) -> EmbeddedProducts:
            found = embed_products(
                model,
                processor,
                products,
                product_rows,
                batch_size=batch_size,
                num_workers=num_workers,
                cache=cache if read.photos else None,
                photos=read.photos,
                photo_of=read.photo_of,
                rewrite=read.product_text,
            )
            return found._replace(embeds=_shorten(model, found.embeds, truncate_dim))

        embedded = embed(inputs)
        queries = embed_queries(model, processor, products, query_rows, rewrite=inputs.query_text)
        queries = _shorten(model, queries, truncate_dim)
        _, columns = rank(queries, embedded.embeds, PLACES, products.product_ids[product_rows])
        ranked = _rows(columns.numpy(), product_rows)
    qrels = products.split_qrels(split) if pool == "split" else products.qrels
    sliced_by = query_slices if query_slices is not None else _kind(products)
    routed = baseline == "none" and model.config.query_router
    result = evaluate_rankings(
        ranked,
        query_rows,
        qrels,
        queries=products.queries,
        products=products.products,
        product_rows=product_rows,
        relevant_grade=relevant_grade or int(qrels.grade.max()),
        pool=pool,
        query_slices=sliced_by,
        product_slices=product_slices or [],
        name=name or _name(baseline if baseline != "none" else model.config.fusion, perturb),
        label_source=label_source,
        provenance={
            "model": model_fingerprint(model, processor),
            "baseline": baseline,
            "catalogue": products.name,
            "split": split,
            "perturbation": perturb,
            "seed": seed,
            "bytes_per_product": None if baseline != "none" else embedded.embeds.shape[1] * 4,
            **({PROVENANCE: router_weights(queries, _columns(products, sliced_by, query_rows))} if routed else {}),
        },
    )
    result.save(folder)
    if weights_agree and baseline == "none":
        agreement = modality_agreement(
            photo_weights=embedded.modality_weights[:, 1],
            present=embedded.modality_weights > 0,
            query_embeds=queries,
            product_embeds=embedded.embeds,
            without_photo=embed(inputs._replace(photos=False)).embeds,
            without_text=embed(inputs._replace(product_text=no_text)).embeds,
            pairs=_relevant_pairs(qrels, query_rows, product_rows, result.relevant_grade),
        )
        (folder / f"{result.name}.weights.json").write_text(json.dumps(asdict(agreement), indent=2) + "\n")
        print(agreement)
    text = format_comparison([*(Evaluation.load(folder, other) for other in compare or []), result])
    (folder / f"{result.name}.comparison.md").write_text(text)
    if routed:
        print(f"what the router weighs, per cent:\n\n{format_router_weights([result])}\n")
    lock.release()
    print(f"{text}\nresults: {folder.absolute()}")


def _shorten(model: MMFusionModel, embeds: FloatArray, truncate_dim: int | None) -> FloatArray:
    return np.asarray(model.shorten(torch.from_numpy(embeds), truncate_dim).numpy(), dtype=np.float32)


def _relevant_pairs(qrels: Qrels, query_rows: Rows, product_rows: Rows, grade: int) -> Rows:
    """Positions (N, 2) in the rows of queries and of products, all ascending, of pairs with at least that grade."""
    judged = qrels.restrict(query_rows, product_rows)
    relevant = judged.grade >= grade
    rows = (query_rows, judged.query[relevant]), (product_rows, judged.product[relevant])
    return np.stack([np.searchsorted(known, found) for known, found in rows], axis=1)


def _pool(pool: str, split: str) -> str | None:
    return split if pool == "split" else None


def _kind(products: Catalogue) -> list[str]:
    return ["kind"] if "kind" in products.queries.column_names else []


def _columns(products: Catalogue, names: list[str], rows: Rows) -> dict[str, list[Any]]:
    return {name: take(products.queries, name, rows, what="query") for name in names}


def _name(ranker: str, perturbation: Perturbation) -> str:
    return ranker if perturbation == "none" else f"{ranker}.{perturbation}"


def _rows(columns: Rows, product_rows: Rows) -> Rows:
    return np.where(columns < 0, -1, product_rows[columns])


def _rank_bm25(
    products: Catalogue, processor: MMFusionProcessor, query_rows: Rows, product_rows: Rows, inputs: PerturbedInputs
) -> Rows:
    queries = QueryTable(products, processor, rewrite=inputs.query_text).texts(query_rows)
    texts = ProductTable(products, processor, photos=False, rewrite=inputs.product_text).texts(product_rows)
    _, columns = rank_bm25(queries, texts, PLACES, products.product_ids[product_rows])
    return _rows(columns.numpy(), product_rows)


if __name__ == "__main__":
    run_command(main)
