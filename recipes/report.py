"""Write one HTML page to look at: the ablation, its slices, and what text only and fusion find for chosen queries."""

from pathlib import Path
from typing import Literal

from mmfusion.evaluation import format_table
from mmfusion.report import Questions, Ranking, build_report, choose, load_variants, rank_with, write_page
from mmfusion.training import cache_pool, load_base, load_catalogue, run_command, take_lock
from mmfusion.training.run import read_record


def main(
    results: str = "outputs/evaluation",
    order: list[str] | None = None,
    baseline: str = "outputs/text_only",
    fusion: str = "outputs/stage2",
    catalogue: str | None = None,
    output: str = "outputs/report",
    queries_per_kind: int = 6,
    split: Literal["train", "val", "test"] | None = None,
    freeze_vision_blocks: int = 0,
    feature_cache: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    seed: int = 0,
) -> None:
    """Writes report.html, a single file that needs no network; photos of the catalogue are embedded in it.

    Args:
        results: Folder that evaluate.py wrote into.
        order: Names of the results, first variant first, e.g. '["text_only", "concat"]'; default: all, oldest first.
        baseline: Folder or Hub id of the model on the left, usually text only.
        fusion: Folder or Hub id of the model on the right.
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the fusion model was trained on.
        output: Folder for the page and working files.
        queries_per_kind: Queries to show of each kind: a third the largest gains, a third the largest losses, the rest
            at random.
        split: Queries to choose from; default: those of the results.
        freeze_vision_blocks: Number of lowest vision blocks whose activations are cached, as in evaluate.py. 0 reads
            photos.
        feature_cache: Folder of that cache.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        seed: Of the random queries and of the bootstrap.
    """
    arguments = dict(locals())
    variants = load_variants(results, order)
    lock = take_lock(output)
    products = load_catalogue(catalogue, fusion, Path(output))
    questions = Questions.like(variants[0], products, split)

    def found_by(base: str) -> Ranking:
        model, processor = load_base(base)
        pool = questions.product_rows
        cache = cache_pool(model.eval(), processor, products, pool, freeze_vision_blocks, feature_cache)
        return rank_with(model, processor, questions, batch_size=batch_size, num_workers=num_workers, cache=cache)

    first, second = found_by(baseline), found_by(fusion)
    page = build_report(
        variants,
        questions,
        first,
        second,
        choose(first, second, queries_per_kind, seed=seed),
        queries_per_kind=queries_per_kind,
        seed=seed,
        arguments=arguments,
        records={"the baseline": read_record(Path(baseline)), "the fusion model": read_record(Path(fusion))},
    )
    path = write_page(output, page)
    lock.release()
    print(f"{format_table(variants)}\npage: {path.absolute()} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    run_command(main)
