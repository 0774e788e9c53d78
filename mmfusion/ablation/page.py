"""The Markdown page of an ablation: tables, what they were measured with, and the commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from mmfusion.ablation.collect import Results, average
from mmfusion.ablation.compare import METRICS, Compared, Row, difference, perturbed_differences
from mmfusion.ablation.facts import hardware_line, versions_line
from mmfusion.ablation.plan import AblationStep
from mmfusion.ablation.record import load_step_record
from mmfusion.ablation.run import duration
from mmfusion.ablation.settings import AblationSettings
from mmfusion.ablation.variants import ROUTED, TEXT_ONLY, all_variants
from mmfusion.evaluation import PairedDifference, format_table
from mmfusion.evaluation.numbers import interval, metric_title, percent
from mmfusion.evaluation.perturb import Perturbation
from mmfusion.evaluation.report import format_product_slices
from mmfusion.evaluation.routing import format_router_weights
from mmfusion.markdown import table as markdown_table

_MIN_SEEDS = 3
_Key = tuple[str, Perturbation]


def markdown_page(
    settings: AblationSettings, rows: Sequence[Row], results: Results, steps: Sequence[AblationStep]
) -> str:
    """The page.

    Args:
        settings: Of the ablation.
        rows: The table.
        results: Evaluations by variant and perturbation.
        steps: All steps of the ablation, finished or not.
    """
    parts = [
        f"# Ablation on the {settings.split} split",
        _introduction(settings, rows),
        _ablation_table(rows),
        _order_notes(rows),
        _by_kind(rows),
        _against_other_fusions(settings, results),
        _router_weights(results),
        _perturbed(settings, results),
        _product_slices(rows),
        _seeds(rows),
        _measured_with(settings, steps),
        _commands(settings, steps),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _interval(found: PairedDifference | None) -> str:
    return "–" if found is None else interval(found)


def _introduction(settings: AblationSettings, rows: Sequence[Row]) -> str:
    seeds = ", ".join(map(str, settings.seeds))
    few = "" if len(settings.seeds) >= _MIN_SEEDS else f" **Fewer than {_MIN_SEEDS} seeds: read with care.**"
    lines = [
        f"Per cent, means over seeds {seeds}; differences in points with 95 % intervals of a paired bootstrap over "
        "queries, the metrics of each query averaged over seeds first. The interval speaks of other queries and not of "
        f"other seeds, which stand below one by one.{few}"
    ]
    measured = next((row.mean for row in rows if row.mean is not None), None)
    if measured is not None:
        lines.append(f"{measured.conditions()}.")
    if not settings.label_source:
        lines.append("Who judged was not given (--label_source).")
    return "\n\n".join(lines)


def _ablation_table(rows: Sequence[Row]) -> str:
    header = ["variant", "seeds"]
    for metric in METRICS:
        header += [metric_title(metric), "against the one before", "against text only"]
    table = [[*header, "compared with", "order"]]
    for row in rows:
        if row.mean is None:
            table.append(
                [f"{row.variant.name}: {row.variant.title}", "–", *["not run"] * 6, "–", f"not run: {row.not_run}"]
            )
            continue
        cells = [f"{row.variant.name}: {row.variant.title}", str(len(row.seeds)) if row.seeds else "none needed"]
        for metric in METRICS:
            found = row.get(metric)
            cells += [percent(found.mean), _interval(found.before), _interval(found.text_only)]
        table.append([*cells, row.before or "–", _order(row)])
    return markdown_table(table)


def _order(row: Row) -> str:
    if row.before is None:
        return "–"
    wrong = row.out_of_order()
    if wrong:
        return f"**out of order**: {', '.join(metric_title(metric) for metric in wrong)}"
    if row.variant.expected == "either":
        return "no order claimed"
    unsure = ", ".join(metric_title(metric) for metric in row.not_separated())
    return f"in order; interval holds zero: {unsure}" if unsure else "in order"


def _order_notes(rows: Sequence[Row]) -> str:
    below = [row.variant for row in rows if row.variant.expected == "below"]
    names = " and ".join(f"{variant.name} (below {variant.before})" for variant in below)
    return (
        "A variant is out of order where its mean is below that of the variant it is compared with; the claim sees "
        f"{names} the other way round. A variant whose neighbour was not run is compared with the nearest one below it."
    )


def _by_kind(rows: Sequence[Row]) -> str:
    means = [row.mean for row in rows if row.mean is not None]
    parts = list(dict.fromkeys((found.column, found.value) for row in rows for found in row.compared if found.column))
    if not means or not parts:
        return ""
    header = ["against text only", *(f"{value}, {metric_title(metric)}" for _, value in parts for metric in METRICS)]
    table = [header]
    for row in rows:
        if row.mean is not None and row.variant.name not in (TEXT_ONLY, "bm25"):
            found = [_find(row, metric, *part) for part in parts for metric in METRICS]
            table.append([row.variant.name, *(_interval(one.text_only if one else None) for one in found)])
    column = parts[0][0]
    values = format_table(means, slice_by=column).split("\n\n")[0]
    return f"## By {column} of query\n\n{values}\n\n{markdown_table(table)}"


def _find(row: Row, metric: str, column: str, value: str) -> Compared | None:
    try:
        return row.get(metric, column, value)
    except KeyError:
        return None


def _router_weights(results: Results) -> str:
    weights = format_router_weights(list(results.get((ROUTED, "none"), {}).values()))
    return weights and f"## What the query router weighs, per cent\n\n{weights}"


def _against_other_fusions(settings: AblationSettings, results: Results) -> str:
    default = results.get((settings.default_fusion, "none"))
    others = [variant.name for variant in all_variants(settings) if variant.fusion or variant.name == "concat"]
    others.remove(settings.default_fusion)
    found = [(name, results[name, "none"]) for name in others if (name, "none") in results]
    if not default or not found:
        return ""
    table = [["", *(metric_title(metric) for metric in METRICS)]]
    for name, other in found:
        table.append([f"against {name}", *(_interval(difference(default, other, metric)) for metric in METRICS)])
    return f"## {settings.default_fusion}, the default, against the other kinds\n\n{markdown_table(table)}"


def _perturbed(settings: AblationSettings, results: Results) -> str:
    default, kinds = settings.default_fusion, settings.perturbations
    pairs: list[tuple[_Key, _Key]] = []
    for kind in kinds:
        pairs += [((default, kind), (default, "none")), ((default, kind), (TEXT_ONLY, kind))]
        pairs += [((default, kind), (TEXT_ONLY, "none"))] if kind in ("photos_dropped", "photos_shuffled") else []
        pairs += [((default, kind), ("image_only", "none"))] if kind == "text_dropped" else []
    measured = [(name, kind) for kind in kinds for name in (default, TEXT_ONLY) if (name, kind) in results]
    if not measured:
        return "## Perturbed inputs\n\nnot run" if kinds else ""
    values = [["", *(metric_title(metric) for metric in METRICS)]]
    for key in measured:
        means = average(results[key], key[0]).means
        values.append([_named(key), *(percent(means[metric]) for metric in METRICS)])
    gains = [["difference", *(metric_title(metric) for metric in METRICS)]]
    for first, second, found in perturbed_differences(results, pairs):
        gains.append([f"{_named(first)} against {_named(second)}", *(_interval(found[metric]) for metric in METRICS)])
    return f"## Perturbed inputs\n\n{markdown_table(values)}" + (
        f"\n\n{markdown_table(gains)}" if len(gains) > 1 else ""
    )


def _named(key: _Key) -> str:
    return key[0] if key[1] == "none" else f"{key[0]}, {key[1]}"


def _product_slices(rows: Sequence[Row]) -> str:
    means = [row.mean for row in rows if row.mean is not None]
    table = format_product_slices(means) if means else ""
    return f"## By product\n\n{table.rstrip()}" if table else ""


def _seeds(rows: Sequence[Row]) -> str:
    seeds = sorted({seed for row in rows for seed in row.seeds})
    table = [[" / ".join(metric_title(metric) for metric in METRICS), *(f"seed {seed}" for seed in seeds)]]
    for row in rows:
        if row.seeds:
            by_seed = [row.get(metric).by_seed for metric in METRICS]
            table.append([row.variant.name, *(" / ".join(percent(v.get(seed)) for v in by_seed) for seed in seeds)])
    return f"## Seed by seed\n\n{markdown_table(table)}" if len(table) > 1 else ""


def _measured_with(settings: AblationSettings, steps: Sequence[AblationStep]) -> str:
    records = {step: record for step in steps if (record := load_step_record(step))}
    commits = sorted({record.commit for record in records.values() if record.complete})
    lines = [
        "## Measured with",
        f"- hardware: {hardware_line()} (where the table was written; steps of a resumed ablation may differ)",
        f"- versions: {versions_line()}",
        f"- commit: {', '.join(commits) or 'no step has finished'}",
        f"- budget: stage 1 {settings.stage1_steps} steps of {settings.batch_size} pairs, stage 2 "
        f"{settings.stage2_steps} of {settings.stage2_batch_size} with {settings.extra_products} extra products; "
        f"naive_concat and larger_generic {settings.all_steps} steps of stage 2's size, one_stage {settings.all_steps} "
        f"of stage 1's",
        f"- vision blocks frozen where the vision encoder is trained: {settings.freeze_vision_blocks}",
    ]
    seeds = list(dict.fromkeys(step.seed for step in steps))
    table = [["wall time", *("no seed" if seed is None else f"seed {seed}" for seed in seeds)]]
    for name in dict.fromkeys(_run_name(step) for step in steps):
        cells = []
        for seed in seeds:
            own = [records[step].seconds for step in records if (_run_name(step), step.seed) == (name, seed)]
            cells.append(duration(sum(own)) if own else "–")
        table.append([name, *cells])
    return "\n".join(lines) + f"\n\n{markdown_table(table)}"


def _run_name(step: AblationStep) -> str:
    return "evaluations" if step.name else f"{step.recipe} → {step.folder.name}"


def _commands(settings: AblationSettings, steps: Sequence[AblationStep]) -> str:
    names = {str(settings.caches): "$CACHE", str(settings.output): "$OUT"}
    for variable, value in (
        ("$CATALOGUE", settings.catalogue),
        ("$BASE", settings.base),
        ("$LARGER_BASE", settings.larger_base),
    ):
        if value is not None:
            names[value] = variable
    lines = [_command(step, names) for step in steps]
    used = ", ".join(f"`{name}`" for name in names.values())
    return f"## Commands\n\n{used}: folders.\n\n```bash\n" + "\n".join(lines) + "\n```"


def _command(step: AblationStep, names: dict[str, str]) -> str:
    return " ".join(["mmfusion", step.recipe, *(_word(argument, names) for argument in step.arguments)])


def _word(argument: str, names: dict[str, str]) -> str:
    for value in sorted(names, key=len, reverse=True):
        inside = argument == value or argument.startswith(f"{value}/")
        if inside and Path(value).is_absolute():
            return names[value] + argument[len(value) :]
    return shlex.quote(argument)
