"""Evaluate a model (or BM25) on a split: Recall@10, Recall@100 and nDCG@10 over every product of the pool."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from mmfusion.commands.evaluate_hybrid import Pool, rankings
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.data.photo_check import check_photos
from mmfusion.data.tables import ProductTable, QueryTable, Rows, no_text
from mmfusion.evaluation import (
    Evaluation,
    evaluate_pool,
    format_comparison,
    modality_agreement,
    rank,
    rank_bm25,
    write_evaluation,
)
from mmfusion.evaluation.evaluate import PLACES, default_slices, pool_rows, seen_in_training, take
from mmfusion.evaluation.perturb import Perturbation, PerturbedInputs, perturbed_inputs
from mmfusion.evaluation.tables import router_weights_table
from mmfusion.evaluation.trec_runs import read_run, write_run
from mmfusion.evaluation.weights import router_weights
from mmfusion.model import MMFusionModel, MMFusionProcessor
from mmfusion.retrieval.embedding import EmbeddedProducts, FloatArray, embed_products, embed_queries
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.search import check_width
from mmfusion.training.features import cache_pool
from mmfusion.training.output_lock import take_lock
from mmfusion.training.run import read_record
from mmfusion.training.sources import load_base, load_catalogue


@dataclass
class Config:
    """Settings of `mmfusion evaluate`.

    Attributes:
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        unknown_judgements: What to do with judgements of queries or products that the catalogue lacks: stop with an
            error, or drop them and say how many.
        base: Folder or Hub id of the model.
        output: Folder for results and working files; results of several models may share it.
        name: Name of the results; default: the fusion kind of the model, or bm25, and the perturbation.
        ranker: What ranks the products: the model; bm25 by words of the product text (the model's folder still names
            catalogue and template); or run, another system, whose rankings are in run_file (no model is loaded).
        run_file: TREC run (lines of: query Q0 product rank score tag), which is written, or with --ranker run read.
        hybrid: Whether to rank by words, and by words and vectors together, too: by reciprocal rank, and by a weight
            that is chosen on val queries (and left out where those are asked). Results are called name.words, name.rrf
            and name.hybrid.
        split: Queries to ask.
        pool: Products that compete: those of the queries' split, or the whole catalogue.
        relevant_grade: Lowest grade that Recall counts; default: the highest grade in the judgements.
        query_slices: Query columns whose values get rows of their own; default: kind, where there is one.
        product_slices: Product columns whose values slice Recall, e.g. [text_stripped].
        perturb: Makes the inputs worse: misleading_titles (a wrong colour word put in), photos_dropped, text_dropped,
            typos (one in each query with a word of four letters or more), photos_shuffled (the control: each product
            shows the photo of another one, and the gain of seeing must vanish).
        compare: Names of results in the output folder, to print before this one, e.g. [text_only, concat].
        label_source: Who or what judged, printed next to the numbers.
        truncate_dim: Components to keep of each vector (of each view, with a query router), of a number that the model
            was trained for (its `matryoshka_dims`); default: all.
        allow_untrained_width: Whether truncate_dim may be any other number, too.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        weights_agree: Whether to embed the products without photos and without texts, too, and say how well the
            reported modality weights agree with what leaving a modality out does to the scores; takes three times as
            long.
        freeze_vision_blocks: Number of lowest vision blocks whose activations are cached, to evaluate several models
            that share them; the vectors are the same. 0 reads photos.
        feature_cache: Folder of that cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        seed: Random seed for the perturbation.
    """

    catalogue: str | None = None
    cache_dir: str | None = None
    unknown_judgements: Literal["error", "drop"] = "error"
    base: str = "outputs/stage2"
    output: str = "outputs/evaluation"
    name: str | None = None
    ranker: Literal["model", "bm25", "run"] = "model"
    run_file: str | None = None
    hybrid: bool = False
    split: Literal["train", "val", "test"] = "test"
    pool: Literal["split", "all"] = "split"
    relevant_grade: int | None = None
    query_slices: list[str] | None = None
    product_slices: list[str] = field(default_factory=list)
    perturb: Perturbation = "none"
    compare: list[str] = field(default_factory=list)
    label_source: str = ""
    truncate_dim: int | None = None
    allow_untrained_width: bool = False
    allow_missing_photos: bool = False
    weights_agree: bool = False
    freeze_vision_blocks: int = 0
    feature_cache: str | None = None
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0


def main(config: Config) -> None:
    """Writes JSON, CSV, Parquet (per query), Markdown and a picture, and prints a table."""
    if config.hybrid and config.ranker != "model":
        raise ValueError(f"hybrid adds words to the vectors of the model, and ranker is {config.ranker!r}; drop one.")
    if config.ranker == "run":
        return _evaluate_run(config)
    folder = Path(config.output)
    lock = take_lock(folder)
    model, processor = load_base(config.base)
    check_width(model.config, config.truncate_dim, config.allow_untrained_width)
    catalogue = load_catalogue(
        config.catalogue, config.base, folder, unknown=config.unknown_judgements, cache_dir=config.cache_dir
    )
    query_rows, product_rows = pool_rows(catalogue, config.split, config.pool)
    inputs = perturbed_inputs(config.perturb, product_rows, len(catalogue.products), config.seed)
    by_model = config.ranker == "model"
    provenance: dict[str, Any] = {
        "model": model_fingerprint(model, processor),
        "baseline": "none" if by_model else config.ranker,
        "perturbation": config.perturb,
        "seed": config.seed,
        "bytes_per_product": None,
    }
    if not by_model:
        texts = _texts(catalogue, processor, query_rows, product_rows, inputs)
        scores, columns = rank_bm25(*texts, PLACES, catalogue.product_ids[product_rows])
    else:
        embed = _embedder(config, model, processor, catalogue, product_rows, inputs)
        products = embed(inputs)
        queries = embed_queries(model, processor, catalogue, query_rows, rewrite=inputs.query_text)
        queries = _shorten(model, queries, config.truncate_dim)
        scores, columns = rank(queries, products.embeds, PLACES, catalogue.product_ids[product_rows])
        provenance["bytes_per_product"] = products.embeds.shape[1] * 4
        if model.config.query_router:
            sliced_by = default_slices(catalogue) if config.query_slices is None else config.query_slices
            kinds = {name: take(catalogue.queries, name, query_rows, what="query") for name in sliced_by}
            provenance["router_weights"] = router_weights(queries, kinds)
    perturbed = [config.perturb] if config.perturb != "none" else []
    name = ".".join([model.config.fusion if by_model else config.ranker, *perturbed])
    result = _measured(config, catalogue, columns, name, provenance)
    if config.run_file is not None:
        ids = catalogue.query_ids[query_rows], catalogue.product_ids[product_rows]
        write_run(Path(config.run_file), *ids, scores, columns, result.name)
    if config.weights_agree and by_model:
        agreement = modality_agreement(
            photo_weights=products.modality_weights[:, 1],
            present=products.modality_weights > 0,
            query_embeds=queries,
            product_embeds=products.embeds,
            without_photo=embed(inputs._replace(photos=False)).embeds,
            without_text=embed(inputs._replace(product_text=no_text)).embeds,
            pairs=_relevant_pairs(catalogue, query_rows, product_rows, result.relevant_grade),
        )
        (folder / f"{result.name}.weights.json").write_text(json.dumps(asdict(agreement), indent=2) + "\n")
        print(agreement)
    text = _compared(config, [result])
    if config.hybrid:
        asked = _pool(catalogue, processor, query_rows, product_rows, inputs, queries, products.embeds)
        text += _compared(config, _hybrid_results(config, catalogue, model, processor, asked, result))
    if "router_weights" in provenance:
        print(f"what the router weighs, per cent:\n\n{router_weights_table([result])}\n")
    lock.release()
    seen, judged = seen_in_training(catalogue, config.split)
    if config.split != "train" and seen:
        print(f"{seen:,} of {judged:,} products that {config.split} queries ask for were seen in training\n")
    print(f"{text}\nresults: {folder.absolute()}")
    print(f"next: mmfusion embed --base {config.base}" if by_model else f"next: mmfusion report --results {folder}")


def _evaluate_run(config: Config) -> None:
    """Measures the rankings of another system, as those of a model are."""
    if config.run_file is None or config.perturb != "none":
        raise ValueError("--ranker run reads the rankings in --run_file and perturbs nothing: give that file alone.")
    source = config.catalogue or (read_record(config.base) or {}).get("catalogue")
    if source is None:
        raise ValueError(f"--ranker run needs the --catalogue that was ranked, as {config.base!r} names none.")
    folder, path = Path(config.output), Path(config.run_file)
    lock = take_lock(folder)
    catalogue = load_catalogue(source, None, folder, unknown=config.unknown_judgements, cache_dir=config.cache_dir)
    query_rows, product_rows = pool_rows(catalogue, config.split, config.pool)
    ids = catalogue.query_ids[query_rows], catalogue.product_ids[product_rows]
    provenance = {"model": "", "baseline": "run", "perturbation": "none", "bytes_per_product": None}
    columns = read_run(path, *ids, PLACES)[1]
    result = _measured(config, catalogue, columns, path.name.split(".")[0], provenance)
    text = _compared(config, [result])
    lock.release()
    print(f"{text}\nresults: {folder.absolute()}\nnext: mmfusion report --results {folder}")


def _measured(
    config: Config, catalogue: Catalogue, columns: Tensor, usual: str, provenance: dict[str, Any], *, name: str = ""
) -> Evaluation:
    """The result of rankings, also as files; `usual` is its name where neither the config nor `name` gives one."""
    result = evaluate_pool(
        columns,
        catalogue,
        config.split,
        pool=config.pool,
        relevant_grade=config.relevant_grade,
        query_slices=config.query_slices,
        product_slices=config.product_slices,
        name=name or config.name or usual,
        label_source=config.label_source,
        provenance=provenance,
    )
    write_evaluation(result, Path(config.output))
    return result


def _compared(config: Config, results: list[Evaluation]) -> str:
    """The table of these results below those to compare with, also as a file that is named after the last."""
    folder = Path(config.output)
    text = format_comparison([*(Evaluation.load(folder, other) for other in config.compare), *results])
    (folder / f"{results[-1].name}.comparison.md").write_text(text)
    return text


def _embedder(
    config: Config,
    model: MMFusionModel,
    processor: MMFusionProcessor,
    catalogue: Catalogue,
    product_rows: Rows,
    inputs: PerturbedInputs,
) -> Callable[[PerturbedInputs], EmbeddedProducts]:
    """What embeds the products of a pool as the model reads them; `inputs` says whether photos are needed."""
    if inputs.photos and model.config.fusion != "text_only":
        check_photos(catalogue, product_rows, allow_missing=config.allow_missing_photos)
    blocks = config.freeze_vision_blocks if inputs.photos else 0
    cache = cache_pool(model.eval(), processor, catalogue, product_rows, blocks, config.feature_cache)

    def embed(read: PerturbedInputs) -> EmbeddedProducts:
        found = embed_products(
            model,
            processor,
            catalogue,
            product_rows,
            batch_size=config.batch_size,
            num_workers=config.num_workers,
            cache=cache if read.photos else None,
            photos=read.photos,
            photo_of=read.photo_of,
            rewrite=read.product_text,
        )
        return found._replace(embeds=_shorten(model, found.embeds, config.truncate_dim))

    return embed


def _hybrid_results(
    config: Config,
    catalogue: Catalogue,
    model: MMFusionModel,
    processor: MMFusionProcessor,
    asked: Pool,
    vectors: Evaluation,
) -> list[Evaluation]:
    """Results by words, by vectors and by both, in this order."""
    tuning, val_rows = None, None
    if config.split != "val":
        with suppress(CatalogueError):
            val_rows = pool_rows(catalogue, "val", config.pool)
    if val_rows is not None:
        query_rows, product_rows = val_rows
        inputs = perturbed_inputs(config.perturb, product_rows, len(catalogue.products), config.seed)
        products = _embedder(config, model, processor, catalogue, product_rows, inputs)(inputs)
        queries = embed_queries(model, processor, catalogue, query_rows, rewrite=inputs.query_text)
        queries = _shorten(model, queries, config.truncate_dim)
        tuning = _pool(catalogue, processor, query_rows, product_rows, inputs, queries, products.embeds)
    options: dict[str, Any] = {"pool": config.pool, "relevant_grade": config.relevant_grade, "query_slices": []}

    def on_val(columns: Tensor) -> float:
        return evaluate_pool(columns, catalogue, "val", **options).means["ndcg@10"] or 0.0

    results = []
    for name, ranking, columns in rankings(asked, tuning, on_val):
        provenance = {**vectors.provenance, "baseline": name, "ranking": asdict(ranking)}
        results.append(_measured(config, catalogue, columns, "", provenance, name=f"{vectors.name}.{name}"))
        if ranking.weight is not None:
            print(f"weight of vectors, chosen on {len(tuning.texts) if tuning else 0} val queries: {ranking.weight:g}")
    return [results[0], vectors, *results[1:]]


def _pool(
    catalogue: Catalogue,
    processor: MMFusionProcessor,
    query_rows: Rows,
    product_rows: Rows,
    inputs: PerturbedInputs,
    queries: FloatArray,
    products: FloatArray,
) -> Pool:
    texts = _texts(catalogue, processor, query_rows, product_rows, inputs)
    return Pool(queries, texts[0], products, texts[1], list(catalogue.product_ids[product_rows]))


def _shorten(model: MMFusionModel, embeds: FloatArray, truncate_dim: int | None) -> FloatArray:
    return np.asarray(model.shorten(torch.from_numpy(embeds), truncate_dim).numpy(), dtype=np.float32)


def _relevant_pairs(catalogue: Catalogue, query_rows: Rows, product_rows: Rows, grade: int) -> Rows:
    """Positions (N, 2) in the rows of queries and of products, all ascending, of pairs with at least that grade."""
    judged = catalogue.qrels.restrict(query_rows, product_rows)
    relevant = judged.grade >= grade
    rows = (query_rows, judged.query[relevant]), (product_rows, judged.product[relevant])
    return np.stack([np.searchsorted(known, found) for known, found in rows], axis=1)


def _texts(
    catalogue: Catalogue, processor: MMFusionProcessor, query_rows: Rows, product_rows: Rows, inputs: PerturbedInputs
) -> tuple[list[str], list[str]]:
    """Texts of queries and of products, whose words BM25 compares."""
    queries = QueryTable(catalogue, processor, rewrite=inputs.query_text).texts(query_rows)
    products = ProductTable(catalogue, processor, photos=False, rewrite=inputs.product_text).texts(product_rows)
    return queries, products
