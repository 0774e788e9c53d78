"""Reads the evaluations of a folder as the variants of an ablation."""

from dataclasses import replace
from pathlib import Path

from mmfusion.evaluation import Evaluation, format_table

METRICS = ("recall@100", "ndcg@10")
_ENDING = ".per_query.parquet"


def load_variants(folder: str | Path, order: list[str] | None) -> list[Evaluation]:
    """The evaluations of a folder, first variant first, each under the name of its file.

    Args:
        folder: Where `Evaluation.save` wrote.
        order: Names of the variants; None takes all in the order in which they were written.

    Raises:
        FileNotFoundError: The folder holds no evaluation, or not the one that is named.
        ValueError: A name comes twice, a metric is missing, or results cannot stand in one table.
    """
    folder = Path(folder)
    names = _all_names(folder) if order is None else order
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"--order names {twice!r} twice; name each result once")
    if not names:
        raise ValueError("--order names no result; name at least one, or leave it out for all")
    variants = [replace(Evaluation.load(folder, name), name=name) for name in names]
    try:
        format_table(variants, metrics=METRICS)
    except ValueError as error:
        raise ValueError(
            f"results in {folder}: {error}; or leave one out: --order names those that are shown"
        ) from None
    return variants


def _all_names(folder: Path) -> list[str]:
    paths = [path for path in folder.glob(f"*{_ENDING}") if folder.joinpath(f"{_stem(path)}.json").is_file()]
    if not paths:
        raise FileNotFoundError(f"{folder} holds no evaluation; run mmfusion evaluate --output {folder}")
    return [_stem(path) for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))]


def _stem(path: Path) -> str:
    return path.name.removesuffix(_ENDING)
