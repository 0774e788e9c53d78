"""Puts the parts of a report together: one HTML file that fetches nothing and runs nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmfusion.evaluation import METRICS, Evaluation, Slice
from mmfusion.evaluation.comparison import compare_in_order
from mmfusion.evaluation.evaluation import saved_evaluations
from mmfusion.evaluation.tables import all_parts, points, results_table, template_environment
from mmfusion.files import replace_text
from mmfusion.report.bars import gain_bars, value_bars
from mmfusion.report.queries import MAX_KINDS, PLACES, Kind, Questions, Ranking
from mmfusion.report.tiles import Cards

FILE_NAME = "report.html"
SHADES = 5
_FOLDER = Path(__file__).parent
_GENERATOR = '<meta name="generator" content="mmfusion report">'
# A run's arguments fit; their seed comes last.
_LONGEST = 4000


def load_variants(folder: str | Path, order: Sequence[str] | None) -> list[Evaluation]:
    """The evaluations of a folder, first variant first, each under the name of its file.

    Args:
        folder: Where `Evaluation.save` wrote.
        order: Names of the variants; None takes all in the order in which they were written.

    Raises:
        FileNotFoundError: The folder holds no evaluation, or not the one that is named.
        ValueError: A name appears twice, a metric is missing, or results cannot be in one table.
    """
    if order is None:
        names = saved_evaluations(folder)
        if not names:
            raise FileNotFoundError(f"{folder} holds no evaluation; run mmfusion evaluate --output {folder}")
    else:
        names = list(order)
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or not names:
            problem = f"names {twice!r} twice; name each result once" if names else "names no result; name at least one"
            raise ValueError(f"--order {problem}, or leave it out for all")
    variants = [replace(Evaluation.load(folder, name), name=name) for name in names]
    try:
        results_table(variants)
    except ValueError as error:
        raise ValueError(f"results in {folder}: {error}; or name with --order those that are shown") from None
    return variants


def build_report(
    variants: Sequence[Evaluation],
    questions: Questions,
    baseline: Ranking,
    fusion: Ranking,
    kinds: Sequence[Kind],
    *,
    queries_per_kind: int,
    seed: int,
    arguments: Mapping[str, Any],
    records: Mapping[str, Mapping[str, Any] | None],
) -> str:
    """The page.

    Args:
        variants: Evaluations in the order of the ablation.
        questions: Queries and pool of the cards.
        baseline: What the first model found.
        fusion: What the second model found.
        kinds: Chosen queries.
        queries_per_kind: How many were asked for.
        seed: Of the random queries and of the bootstrap.
        arguments: Of the command that makes the page.
        records: What each model's folder says about its training, by name; None where it says nothing.
    """
    names = [variant.name for variant in variants]
    compared = {metric: compare_in_order(variants, metric, seed=seed) for metric in METRICS}
    figures = []
    for found in compared.values():
        figures += [value_bars(names, found)] + ([gain_bars(names, found)] if len(found) > 1 else [])
    cards = Cards(questions, [baseline, fusion])
    return fill(
        "page.html",
        split=questions.split,
        # The labels have a line of their own.
        measured=variants[0].conditions().split("; labels: ")[0],
        labels="; ".join(dict.fromkeys(variant.label_source for variant in variants if variant.label_source)),
        partly=not all(variant.label_source for variant in variants),
        variants=variants,
        rows=list(zip(names, zip(*compared.values(), strict=True), strict=True)),
        metrics=METRICS,
        figures=figures,
        heat_maps={metric: _heat_map(variants, metric) for metric in METRICS},
        shades=[_shade(number) for number in range(-SHADES, SHADES + 1)],
        models=[
            (role, found, [v.name for v in variants if v.provenance.get("model") == found.fingerprint])
            for role, found in (("Baseline", baseline), ("Fusion", fusion))
        ],
        kinds=[(kind, [cards.card(choice) for choice in kind.chosen]) for kind in kinds],
        queries_per_kind=queries_per_kind,
        seed=seed,
        max_kinds=MAX_KINDS,
        places=PLACES,
        facts=[
            ("Arguments of mmfusion report", _facts(arguments)),
            *((f"Training of {name}", _facts(record or {})) for name, record in records.items()),
            *((f"Result {variant.name}", _facts(variant.provenance)) for variant in variants),
        ],
    )


def fill(template: str, **places: Any) -> str:
    """A page of a template of this folder, with the style that all pages share."""
    css = (_FOLDER / "page.css").read_text("utf-8")
    environment = template_environment(_FOLDER, html=True)
    environment.filters.update(points=lambda number: points(number).replace("-", "−"))
    return environment.get_template(template).render(
        css=css,
        css_digest=base64.b64encode(hashlib.sha256(css.encode("utf-8")).digest()).decode("ascii"),
        generator=_GENERATOR,
        **places,
    )


def write_page(folder: str | os.PathLike[str], page: str, name: str = FILE_NAME) -> Path:
    """Writes a page, whole or not at all; an older one is replaced.

    Args:
        folder: Output folder; made if missing.
        page: The document.
        name: Of the file.

    Raises:
        FileExistsError: The folder holds a file of that name that is not a report.
    """
    path = Path(folder) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and _GENERATOR not in path.read_text("utf-8", errors="replace")[:4000]:
        raise FileExistsError(f"{path} is not a report of mmfusion; move it away or give another --output")
    replace_text(path, page)
    return path


def shorten_paths(value: Any) -> Any:
    """The value with each absolute path in it cut to "…/name": a page is passed on, a machine's folders are not."""
    if isinstance(value, Mapping):
        return {name: shorten_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_paths(inner) for inner in value]
    if isinstance(value, str) and os.path.isabs(value):
        return f"…/{os.path.basename(value.rstrip('/'))}"
    return value


def _facts(recorded: Mapping[str, Any]) -> dict[str, str]:
    """JSON-like values by name as texts; absolute paths are cut to their last part, nested values are JSON."""
    plain = {name: shorten_paths(value) for name, value in recorded.items()}
    texts = {n: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for n, v in plain.items()}
    return {name: text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…" for name, text in texts.items()}


def _heat_map(variants: Sequence[Evaluation], metric: str) -> list[dict[str, Any]]:
    """Rows of all queries, query slices and product slices that define the metric; cells are variants.

    A cell holds the value and its difference to the first variant; its shade is that difference in proportion to the
    largest one of the table.
    """
    slices: dict[tuple[str, str, str], Slice] = {}
    for part in (part for variant in variants for part in all_parts(variant)):
        slices.setdefault((part.table, part.column, part.value), part)
    rows: list[dict[str, Any]] = []
    for key, part in slices.items():
        same = [{(p.table, p.column, p.value): p.metrics for p in all_parts(v)}.get(key, {}) for v in variants]
        values = [metrics.get(metric) for metrics in same]
        if any(value is not None for value in values):
            name = f"{part.column} = {part.value}"
            rows.append({"kind": part.table, "name": name, "count": part.num_queries, "values": values})
    for row in rows:
        first = row["values"][0]
        row["gains"] = [None if None in (value, first) else value - first for value in row["values"]]
    largest = max((abs(gain) for row in rows for gain in row["gains"] if gain is not None), default=0.0) or 1.0
    for row in rows:
        row["shades"] = [None if gain is None else _shade(round(SHADES * gain / largest)) for gain in row["gains"]]
    return rows


def _shade(number: int) -> str:
    return "even" if number == 0 else f"{'up' if number > 0 else 'down'}{abs(number)}"
