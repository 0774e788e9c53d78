"""The Markdown page of an ablation: tables, what they were measured with, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.settings import AblationSettings
from mmfusion.ablation.steps import StepRecord, duration
from mmfusion.ablation.variants import ROUTED, TEXT_ONLY, all_variants
from mmfusion.evaluation import METRICS, Evaluation, PairedDifference
from mmfusion.evaluation.comparison import Ablation, Results, Row, difference
from mmfusion.evaluation.tables import (
    Cell,
    ablation_table,
    differences_table,
    markdown_table,
    metric_title,
    product_slices_table,
    results_table,
    router_weights_table,
    seeds_table,
)

_MIN_SEEDS = 3
_Key = tuple[str, str]


def ablation_page(
    settings: AblationSettings,
    numbers: Ablation,
    results: Results,
    means: Mapping[_Key, Evaluation],
    steps: Sequence[AblationStep],
) -> str:
    """The page.

    Args:
        settings: Of the ablation.
        numbers: What came out.
        results: Evaluations by variant and perturbation, then by seed.
        means: The same, averaged over seeds.
        steps: All steps of the ablation, finished or not.
    """
    plain = [means[row.name, "none"] for row in numbers.rows if row.compared]
    few = "" if len(settings.seeds) >= _MIN_SEEDS else f" **Fewer than {_MIN_SEEDS} seeds: read with care.**"
    below = [variant for variant in all_variants(settings) if variant.expected == "below"]
    others = " and ".join(f"{variant.name} (below {variant.before})" for variant in below)
    parts = [
        f"# Ablation on the {settings.split} split",
        f"Per cent, means over seeds {', '.join(map(str, settings.seeds))}; differences in points with 95 % intervals "
        "of a paired bootstrap over queries, the metrics of each query averaged over seeds first. The interval speaks "
        f"of other queries and not of other seeds, which stand below one by one.{few}",
        f"{plain[0].conditions()}." if plain else "",
        "" if settings.label_source else "Who judged was not given (--label_source).",
        ablation_table(numbers.rows, claims=True),
        "A variant is out of order where its mean is below that of the variant it is compared with; the claim sees "
        f"{others} the other way round. A variant whose neighbour was not run is compared with the nearest one below "
        "it.",
        _by_kind(numbers.rows, plain),
        _section(f"{settings.default_fusion}, the default, against the other kinds", _fusions(settings, results)),
        _section(
            "What the query router weighs, per cent",
            router_weights_table(list(results.get((ROUTED, "none"), {}).values())),
        ),
        _section("Perturbed inputs", _perturbed(settings, results, means)),
        _section("By product", product_slices_table(plain) if plain else ""),
        _section("Seed by seed", seeds_table(numbers.rows)),
        _section("Measured with", _measured_with(numbers, steps)),
        _section("Commands", _commands(settings, steps)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}" if body else ""


def _by_kind(rows: Sequence[Row], means: Sequence[Evaluation]) -> str:
    parts = means[0].query_parts() if means else []
    if not parts:
        return ""
    shown = [row for row in rows if row.compared and row.name not in (TEXT_ONLY, "bm25")]
    cells = {row.name: partial(_against_reference, row) for row in shown}
    tables = results_table(means, slice_by=parts[0][0]), differences_table("against text only", cells, parts)
    return _section(f"By {parts[0][0]} of query", "\n\n".join(tables))


def _against_reference(row: Row, metric: str, part: tuple[str, str]) -> PairedDifference | None:
    found = row.get(metric, *part)
    return None if found is None else found.reference


def _fusions(settings: AblationSettings, results: Results) -> str:
    default = results.get((settings.default_fusion, "none"))
    kinds = [variant.name for variant in all_variants(settings) if variant.fusion or variant.name == "concat"]
    others = {name: results.get((name, "none")) for name in kinds if name != settings.default_fusion}
    rows: list[list[Cell]] = [
        [f"against {name}", *(difference(default, other, metric) for metric in METRICS)]
        for name, other in others.items()
        if default and other
    ]
    return markdown_table([["", *map(metric_title, METRICS)], *rows]) if rows else ""


def _perturbed(settings: AblationSettings, results: Results, means: Mapping[_Key, Evaluation]) -> str:
    default = settings.default_fusion
    values: list[list[Cell]] = [["", *map(metric_title, METRICS)]]
    gains: list[list[Cell]] = [["difference", *map(metric_title, METRICS)]]
    for kind in settings.perturbations:
        measured = [(name, kind) for name in (default, TEXT_ONLY) if (name, kind) in means]
        values += [[_named(key), *map(means[key].means.get, METRICS)] for key in measured]
        others = [(default, "none"), (TEXT_ONLY, kind)]
        others += [(TEXT_ONLY, "none")] if kind in ("photos_dropped", "photos_shuffled") else []
        others += [("image_only", "none")] if kind == "text_dropped" else []
        for other in others:
            if (default, kind) in results and other in results:
                both = results[default, kind], results[other]
                name = f"{_named((default, kind))} against {_named(other)}"
                gains.append([name, *(difference(*both, metric) for metric in METRICS)])
    if len(values) == 1:
        return "not run" if settings.perturbations else ""
    return "\n\n".join(markdown_table(table) for table in (values, gains) if len(table) > 1)


def _named(key: _Key) -> str:
    return key[0] if key[1] == "none" else f"{key[0]}, {key[1]}"


def _measured_with(numbers: Ablation, steps: Sequence[AblationStep]) -> str:
    records = {step: record for step in steps if (record := StepRecord.load(step))}
    seeds = list(dict.fromkeys(step.seed for step in steps))
    times: dict[str, dict[int | None, float]] = {_run_name(step): {} for step in steps}
    for step, record in records.items():
        own = times[_run_name(step)]
        own[step.seed] = own.get(step.seed, 0.0) + record.seconds
    rows: list[list[Cell]] = [["wall time", *("no seed" if seed is None else f"seed {seed}" for seed in seeds)]]
    for name, own in times.items():
        rows.append([name, *(duration(own[seed]) if seed in own else None for seed in seeds)])
    lines = [f"- {name}: {text}" for name, text in numbers.measured_with.items()]
    return "\n".join(lines) + f"\n\n{markdown_table(rows)}"


def _run_name(step: AblationStep) -> str:
    return "evaluations" if step.name else f"{step.recipe} → {step.folder.name}"


def _commands(settings: AblationSettings, steps: Sequence[AblationStep]) -> str:
    names = {str(settings.caches): "$CACHE", str(settings.output): "$OUT"}
    given = {settings.catalogue: "$CATALOGUE", settings.base: "$BASE", settings.larger_base: "$LARGER_BASE"}
    names.update((value, variable) for value, variable in given.items() if value is not None)
    used = ", ".join(f"`{name}`" for name in names.values())
    lines = [" ".join(["mmfusion", step.recipe, *(_word(word, names) for word in step.arguments)]) for step in steps]
    return f"{used}: folders.\n\n```bash\n" + "\n".join(lines) + "\n```"


def _word(argument: str, names: Mapping[str, str]) -> str:
    for value in sorted(names, key=len, reverse=True):
        inside = argument == value or argument.startswith(f"{value}/")
        if inside and Path(value).is_absolute():
            return names[value] + argument[len(value) :]
    return shlex.quote(argument)
