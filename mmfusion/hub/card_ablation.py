"""The ablation in a card: what recipes/ablation.py wrote, set as tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mmfusion.evaluation.numbers import interval_of, metric_title, percent
from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_private import public_text
from mmfusion.hub.card_results import METRICS, NOT_MEASURED, check_number, read_json
from mmfusion.markdown import table

_COLUMNS = (
    *("variant", "perturbation", "column", "value", "metric", "seed", "mean", "status", "before"),
    *(f"{part}_{end}" for part in ("before", "text_only") for end in ("difference", "low", "high")),
)
_AGAIN = "run recipes/ablation.py again, which writes it anew from finished steps"
_SPLITS = ("test", "val", "train")


@dataclass(frozen=True)
class Ablation:
    """An ablation of one split.

    Attributes:
        path: Its CSV file.
        split: Queries that were asked.
        rows: Cells of the file by column, all texts.
        titles: What each variant is, in a few words, as far as it is known.
        labels: Who judged; "" where no result says.
        conditions: What the numbers were measured over.
        models: Variant and seed ("" for one without seed) by fingerprint of the model.
        files: Results of single seeds by fingerprint of the model.
        measured_with: Lines of its page on hardware, versions, commits and budget.
    """

    path: Path
    split: str
    rows: tuple[dict[str, str], ...]
    titles: dict[str, str]
    labels: str
    conditions: str
    models: dict[str, tuple[str, str]]
    files: dict[str, list[Path]]
    measured_with: tuple[str, ...]

    def select(self, **cells: str) -> list[dict[str, str]]:
        """Rows with these cells."""
        return [row for row in self.rows if all(row[name] == value for name, value in cells.items())]


def read_ablations(folder: str | Path) -> list[Ablation]:
    """The ablations of an output folder of recipes/ablation.py, test first.

    Raises:
        CardError: There is none, or a file is damaged.
    """
    folder = Path(folder)
    found = {path.name.split(".")[1]: path for path in sorted(folder.glob("ablation.*.csv"))}
    if not found:
        raise CardError(
            "there is no ablation (ablation.SPLIT.csv) in it", str(folder), f"run recipes/ablation.py --output {folder}"
        )
    order = [split for split in _SPLITS if split in found] + [split for split in found if split not in _SPLITS]
    return [_read(found[split], split) for split in order]


def ablation_section(ablations: Sequence[Ablation], fingerprint: str | None) -> str:
    """Tables of variants with their intervals, and which variant this model is."""
    return "\n\n".join(_one(ablation, fingerprint) for ablation in ablations) or NOT_MEASURED


def perturbed_variants(ablations: Sequence[Ablation]) -> str:
    """Means of variants over perturbed inputs; "" if there are none."""
    parts = []
    for ablation in ablations:
        keys = dict.fromkeys(
            (row["variant"], row["perturbation"]) for row in ablation.rows if row["perturbation"] != "none"
        )
        if not keys:
            continue
        rows = [["variant, perturbation", *map(metric_title, METRICS)]]
        plain = {(variant, "none") for variant, _ in keys}
        for variant, perturbation in sorted(plain | keys.keys(), key=lambda key: (key[0], key[1] != "none", key[1])):
            cells = [_mean(ablation, variant, perturbation, metric) for metric in METRICS]
            rows.append([f"{variant}, {'as they are' if perturbation == 'none' else perturbation}", *cells])
        parts.append(f"Variants of the ablation, {ablation.split} split, means over seeds:\n\n{table(rows)}")
    return "\n\n".join(parts)


def _one(ablation: Ablation, fingerprint: str | None) -> str:
    rows = [["variant", "seeds"]]
    for metric in METRICS:
        rows[0] += [metric_title(metric), "against the one before", "against text only"]
    rows[0] += ["compared with", "order"]
    for variant in dict.fromkeys(row["variant"] for row in ablation.select(perturbation="none")):
        rows.append(_variant(ablation, variant))
    return "\n\n".join(
        [f"### {ablation.split.capitalize()} split", _which(ablation, fingerprint), table(rows), *_notes(ablation)]
    )


def _variant(ablation: Ablation, variant: str) -> list[str]:
    own = ablation.select(variant=variant, perturbation="none", column="")
    title = f"{variant}: {ablation.titles[variant]}" if variant in ablation.titles else variant
    means = [row for row in own if row["seed"] == "mean"]
    if not means:
        status = own[0]["status"] if own else "not run"
        return [title, "–", *["–"] * 6, own[0]["before"] or "–" if own else "–", status]
    seeds = list(dict.fromkeys(row["seed"] for row in own if row["seed"] not in ("mean", "")))
    cells = [title, ", ".join(seeds) or "none needed"]
    for metric in METRICS:
        row = next((found for found in means if found["metric"] == metric), None)
        if row is None:
            raise CardError(f"there is no mean {metric} of {variant!r}", str(ablation.path), _AGAIN)
        cells += [percent(float(row["mean"])), _interval(row, "before"), _interval(row, "text_only")]
    wrong = [metric_title(row["metric"]) for row in means if row["status"] == "out of order"]
    before = means[0]["before"]
    unsure = [metric_title(row["metric"]) for row in means if _holds_zero(row)]
    order = f"interval holds zero: {', '.join(unsure)}" if unsure else "–"
    return [*cells, before or "–", f"**out of order**: {', '.join(wrong)}" if wrong else order]


def _holds_zero(row: dict[str, str]) -> bool:
    return bool(row["before_low"]) and float(row["before_low"]) <= 0 <= float(row["before_high"])


def _interval(row: dict[str, str], part: str) -> str:
    ends = [row[f"{part}_{end}"] for end in ("difference", "low", "high")]
    return interval_of(*map(float, ends)) if all(ends) else "–"


def _which(ablation: Ablation, fingerprint: str | None) -> str:
    if fingerprint is None or fingerprint not in ablation.models:
        return "The model of this repository is none of the models of this table; the table shows what its parts add."
    variant, seed = ablation.models[fingerprint]
    return f"The model of this repository is variant *{variant}*" + (f", seed {seed}." if seed else ".")


def _notes(ablation: Ablation) -> Iterator[str]:
    yield (
        "Per cent, means over seeds; differences in points with 95 % intervals of a paired bootstrap over queries. The "
        "intervals speak of other queries and not of other seeds. A variant is out of order where it stands on the "
        "other side of the one it is compared with than the claim of the paper sees it."
    )
    seeds = {row["seed"] for row in ablation.rows} - {"mean", ""}
    if len(seeds) == 1:
        yield "**One seed only: read with care.**"
    if ablation.conditions:
        yield f"Measured over: {ablation.conditions}."
    if ablation.measured_with:
        yield public_text("\n".join(ablation.measured_with))


def _mean(ablation: Ablation, variant: str, perturbation: str, metric: str) -> str:
    found = ablation.select(variant=variant, perturbation=perturbation, column="", metric=metric, seed="mean")
    return percent(float(found[0]["mean"])) if found else "–"


def _read(path: Path, split: str) -> Ablation:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = tuple({name: value or "" for name, value in row.items() if name} for row in reader)
            header = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CardError(f"cannot be read as CSV ({error})", str(path), _AGAIN) from error
    for name in _COLUMNS:
        if name not in header:
            raise CardError("the column is missing", f"{path}, column {name!r}", _AGAIN)
    if not rows:
        raise CardError("it has no rows", str(path), _AGAIN)
    for number, row in enumerate(rows, start=2):
        for name in ("mean", *_COLUMNS[9:]):
            if row[name]:
                _check_cell(row[name], 0 if name == "mean" else -1, f"{path}, row {number}, column {name!r}")
    page = path.with_suffix(".md")
    text = page.read_text("utf-8") if page.is_file() else ""
    titles = dict(re.findall(r"^\| (\w+): ([^|]+?) \|", text, flags=re.MULTILINE))
    facts = tuple(re.findall(r"^- (?:hardware|versions|commit|budget): .*", text, flags=re.MULTILINE))
    return _with_results(Ablation(path, split, rows, titles, "", "", {}, {}, facts))


def _check_cell(text: str, low: int, place: str) -> None:
    try:
        value: float | str = float(text)
    except ValueError:
        value = text
    check_number(value, low, 1, place, _AGAIN)


def _with_results(ablation: Ablation) -> Ablation:
    """Adds what the results of single seeds know: conditions, who judged, and which models they are of."""
    conditions, labels = "", ""
    models, files = dict[str, tuple[str, str]](), dict[str, list[Path]]()
    for path in sorted((ablation.path.parent / ablation.split).glob("*.json")):
        if path.name.endswith((".step.json", ".weights.json")):
            continue
        fields = read_json(path, _AGAIN)
        labels = labels or str(fields.get("label_source", ""))
        conditions = conditions or _conditions(fields)
        provenance = fields.get("provenance") or {}
        model = provenance.get("model")
        if not isinstance(model, str) or provenance.get("bytes_per_product") is None:
            continue
        files.setdefault(model, []).append(path)
        name = re.fullmatch(r"(\w+)(?:\.seed(\d+))?", path.stem)
        if name and provenance.get("perturbation") == "none":
            # A shortened variant (routed_equal_bytes) is the same model; the whole one comes first by name.
            models.setdefault(model, (name[1], name[2] or ""))
    return replace(ablation, labels=labels, conditions=public_text(conditions), models=models, files=files)


def _conditions(fields: dict[str, object]) -> str:
    found = [
        f"{name.replace('_', ' ')} {fields[name]}" for name in ("pool", "num_products", "num_queries") if name in fields
    ]
    if "relevant_grade" in fields:
        found.append(f"relevant: grade >= {fields['relevant_grade']}")
    found.append(
        f"labels: {fields['label_source'] or 'not stated'}" if "label_source" in fields else "labels: not stated"
    )
    return "; ".join(found)
