"""Write one HTML page to look at: the ablation, its slices, and what text only and fusion find for chosen queries."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from mmfusion.data.photo_check import check_photos
from mmfusion.data.pseudo_queries import with_pseudo_queries
from mmfusion.evaluation import format_table
from mmfusion.report import Questions, Ranking, build_report, choose, load_variants, rank_with, write_page
from mmfusion.report.neighbours import neighbours_page
from mmfusion.training.features import cache_pool
from mmfusion.training.output_lock import take_lock
from mmfusion.training.run import read_record
from mmfusion.training.sources import load_base, load_catalogue


@dataclass
class Config:
    """Settings of `mmfusion report`.

    Attributes:
        results: Folder that `mmfusion evaluate` wrote into.
        order: Names of the results, first variant first, e.g. [text_only, concat]; default: all, oldest first.
        baseline: Folder or Hub id of the model that is compared with, usually text only; it is on the left.
        base: Folder or Hub id of the model that is shown, on the right.
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model on the right was
            trained on.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        unknown_judgements: What to do with judgements of queries or products that the catalogue lacks: stop with an
            error, or drop them and say how many.
        output: Folder for the page and working files.
        neighbours: Products to show with the products nearest to each, instead of results and queries; for models that
            were trained without queries. Neither `results` nor `baseline` is read. 0 shows queries.
        queries_per_kind: Queries to show of each kind: a third the largest gains, a third the largest losses, the rest
            at random.
        split: Queries to choose from; default: those of the results.
        freeze_vision_blocks: Number of lowest vision blocks whose activations are cached, as in `mmfusion evaluate`. 0
            reads photos.
        feature_cache: Folder of that cache.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        seed: Random seed for the random queries and the bootstrap.
    """

    results: str = "outputs/evaluation"
    order: list[str] | None = None
    baseline: str = "outputs/text_only"
    base: str = "outputs/stage2"
    catalogue: str | None = None
    cache_dir: str | None = None
    unknown_judgements: Literal["error", "drop"] = "error"
    output: str = "outputs/report"
    neighbours: int = 0
    queries_per_kind: int = 6
    split: Literal["train", "val", "test"] | None = None
    freeze_vision_blocks: int = 0
    feature_cache: str | None = None
    allow_missing_photos: bool = False
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0


def main(config: Config) -> None:
    """Writes report.html, a single file that needs no network; photos of the catalogue are embedded in it."""
    if config.neighbours:
        return _show_neighbours(config)
    variants = load_variants(config.results, config.order)
    lock = take_lock(config.output)
    catalogue = load_catalogue(
        config.catalogue,
        config.base,
        Path(config.output),
        unknown=config.unknown_judgements,
        cache_dir=config.cache_dir,
    )
    questions = Questions.like(variants[0], catalogue, config.split)
    check_photos(catalogue, questions.product_rows, allow_missing=config.allow_missing_photos)

    def found_by(base: str) -> Ranking:
        model, processor = load_base(base)
        pool, blocks = questions.product_rows, config.freeze_vision_blocks
        cache = cache_pool(model.eval(), processor, catalogue, pool, blocks, config.feature_cache)
        sizes = {"batch_size": config.batch_size, "num_workers": config.num_workers}
        return rank_with(model, processor, questions, **sizes, cache=cache)

    first, second = found_by(config.baseline), found_by(config.base)
    page = build_report(
        variants,
        questions,
        first,
        second,
        choose(first, second, config.queries_per_kind, seed=config.seed),
        queries_per_kind=config.queries_per_kind,
        seed=config.seed,
        arguments=asdict(config),
        records={"the baseline": read_record(config.baseline), "the fusion model": read_record(config.base)},
    )
    path = write_page(config.output, page)
    lock.release()
    print(f"{format_table(variants)}\npage: {path.absolute()} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"next: open it in a browser, then mmfusion card --base {config.base} --results [{config.results}]")


def _show_neighbours(config: Config) -> None:
    with take_lock(config.output):
        catalogue = load_catalogue(config.catalogue, config.base, Path(config.output), products_only=True)
        check_photos(catalogue, catalogue.product_rows(None), allow_missing=config.allow_missing_photos)
        arguments = (read_record(config.base) or {}).get("arguments", {})
        if arguments.get("pseudo_queries"):
            catalogue = with_pseudo_queries(catalogue, seed=arguments["seed"])
        model, processor = load_base(config.base)
        sizes = {"batch_size": config.batch_size, "num_workers": config.num_workers}
        page = neighbours_page(model.eval(), processor, catalogue, count=config.neighbours, seed=config.seed, **sizes)
        path = write_page(config.output, page)
    print(f"page: {path.absolute()} ({path.stat().st_size / 1e6:.1f} MB)")
