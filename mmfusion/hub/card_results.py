"""Result files, read as what a card may say: checked, kept apart by model, and never without their conditions."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from mmfusion.evaluation import METRICS, Evaluation, ModalityAgreement, PairedDifference, paired_bootstrap
from mmfusion.evaluation.comparison import Ablation
from mmfusion.evaluation.evaluation import CONDITIONS, PER_QUERY, saved_evaluations
from mmfusion.evaluation.tables import (
    Cell,
    differences_table,
    markdown_table,
    metric_title,
    percent,
    product_slices_table,
    results_table,
)
from mmfusion.hub.private import CardError

_AGAIN = "write it again with `mmfusion evaluate`"


@dataclass(frozen=True, eq=False)
class Result:
    """One evaluation and where it came from.

    Attributes:
        path: Its JSON file.
        evaluation: The numbers.
        dataset: Name of the catalogue; "" where the file does not say.
        split: Queries that were asked.
        perturbation: What was done to the inputs; "none" for nothing.
        model: Fingerprint of the model; "" for means over several models and for baselines without one.
        bytes_per_product: Size of a vector; None for a ranking without vectors.
        agreement: What `--weights_agree` wrote next to it; None where it was not asked for.
    """

    path: Path
    evaluation: Evaluation
    dataset: str
    split: str
    perturbation: str
    model: str
    bytes_per_product: int | None
    agreement: ModalityAgreement | None

    @property
    def conditions(self) -> tuple[Any, ...]:
        """What must be equal for two results to be in one table."""
        own = [getattr(self.evaluation, name) for name in CONDITIONS]
        return (self.dataset, self.split, *(json.dumps(value, sort_keys=True) for value in own))

    @property
    def title(self) -> str:
        whole = "" if self.evaluation.pool == "split" else ", the whole catalogue competing"
        return f"{self.dataset or 'data set not stated'}, {self.split} split{whole}"

    @property
    def name(self) -> str:
        seeds = self.evaluation.provenance.get("seeds")
        over = f" (mean over seeds {', '.join(map(str, seeds))})" if isinstance(seeds, list) and seeds else ""
        return f"{self.evaluation.name}{over}"

    def values(self) -> list[float | None]:
        return [self.evaluation.means[metric] for metric in METRICS]

    def against(self, other: Result, metric: str, where: tuple[str, str] | None = None) -> PairedDifference | None:
        """The difference to another result; None where no query defines the metric."""
        if None in (result.evaluation.value(metric, where) for result in (self, other)):
            return None
        try:
            return paired_bootstrap(self.evaluation, other.evaluation, metric, where=where)
        except ValueError as error:
            raise CardError(
                str(error), f"{self.path} and {other.path}", "evaluate both in the same way, or give one"
            ) from error


@dataclass(frozen=True)
class Measured:
    """This model on one split of one data set.

    Attributes:
        own: The evaluation over unchanged inputs and whole vectors.
        others: Other models and baselines under the same conditions, lowest nDCG@10 first.
        changed: This model over perturbed inputs or shortened vectors, under the same conditions.
    """

    own: Result
    others: tuple[Result, ...]
    changed: tuple[Result, ...]

    def results_table(self) -> str:
        """This model compared with the others, with intervals."""
        titles = [metric_title(metric) for metric in METRICS]
        rows: list[list[Cell]] = [["", *titles, *(f"this model against it, {title}" for title in titles)]]
        for other in self.others:
            rows.append([other.name, *other.values(), *(self.own.against(other, metric) for metric in METRICS)])
        bold = (f"**{percent(value)}**" for value in self.own.values())
        return markdown_table([*rows, ["**this model**", *bold, None, None]])

    def slice_tables(self) -> list[str]:
        """The same by kind of query and by product; empty if there are no slices."""
        evaluations = [*(other.evaluation for other in self.others), replace(self.own.evaluation, name="this model")]
        tables = []
        for column in dict.fromkeys(column for column, _ in self.own.evaluation.query_parts()):
            tables.append(results_table(evaluations, slice_by=column))
            if self.others:
                cells = {other.name: partial(self.own.against, other) for other in self.others}
                parts = self.own.evaluation.query_parts(column)
                tables.append(differences_table("this model against", cells, parts))
        return [table for table in (*tables, product_slices_table(evaluations)) if table]

    def changes_table(self, changed: Sequence[Result], whole: str) -> str:
        """This model over changed inputs or vectors, each with its difference to the unchanged ones."""
        titles = [metric_title(metric) for metric in METRICS]
        rows: list[list[Cell]] = [["inputs", *titles, *(f"change of {title}" for title in titles)]]
        rows.append([whole, *self.own.values(), None, None])
        for result in changed:
            width = f"{result.bytes_per_product} bytes a product"
            name = width if result.perturbation == "none" else result.perturbation
            rows.append([name, *result.values(), *(result.against(self.own, metric) for metric in METRICS)])
        return markdown_table(rows)


def read_results(paths: Sequence[str | Path], *, dataset: str | None = None) -> list[Result]:
    """Reads what `mmfusion evaluate` wrote.

    Args:
        paths: JSON files, or folders of them (all of a folder are taken, oldest first).
        dataset: Name of the catalogue of results that do not say; older versions did not write it down.

    Raises:
        CardError: A file is missing or damaged, a field is missing or out of range, or numbers of a file contradict
            those of its queries.
    """
    files = [file for path in paths for file in _files(Path(path))]
    return [_read(file, dataset) for file in dict.fromkeys(files)]


def sort_results(results: Sequence[Result], fingerprint: str, vector_bytes: int) -> tuple[list[Measured], list[Result]]:
    """Tells this model's results from those of others.

    Args:
        results: All results.
        fingerprint: Of this model.
        vector_bytes: Size of its whole vectors in float32.

    Returns:
        One entry for each data set, split and pool that this model was measured on, and the results that share their
        conditions with none of them.

    Raises:
        CardError: None is of this model; two of this model are of one data set, split and pool; or a result of this
            model does not say how long its vectors were.
    """
    own = []
    for result in results:
        if result.model != fingerprint:
            continue
        # A result without the field is of a version that had no shortened vectors, and marked no baseline, either.
        if "bytes_per_product" not in result.evaluation.provenance:
            problem = "the field is missing, so that a baseline cannot be distinguished from the model"
            field = f"{result.path}, field 'provenance.bytes_per_product'"
            raise CardError(problem, field, "evaluate again with `mmfusion evaluate`")
        own += [result] if result.bytes_per_product is not None else []
    whole = [result for result in own if result.perturbation == "none" and result.bytes_per_product == vector_bytes]
    if results and not whole:
        found = ", ".join(sorted({f"{result.path.name}: {result.model[:12] or 'no model'}" for result in results})[:6])
        raise CardError(
            f"none of {len(results)} results is of this model over unchanged inputs (its fingerprint begins "
            f"{fingerprint[:12]}; they have {found})",
            f"{results[0].path.parent}, field 'provenance.model'",
            "evaluate it: mmfusion evaluate --base FOLDER, with the folder that the card is for",
        )
    seen: dict[tuple[str, str, str], Result] = {}
    for result in whole:
        if not result.dataset:
            raise CardError(
                "the field is missing, and no --dataset was given",
                f"{result.path}, field 'provenance.catalogue'",
                "give --dataset NAME, the name of the catalogue that these results are of",
            )
        first = seen.setdefault((result.dataset, result.split, result.evaluation.pool), result)
        if first is not result:
            raise CardError(
                f"{first.path} has numbers of this model for the same data set, split and pool",
                str(result.path),
                "give only one of the two files",
            )
    measured = []
    for result in whole:
        same = [other for other in results if other.conditions == result.conditions and other is not result]
        others = [other for other in same if other.perturbation == "none" and other not in own]
        others.sort(key=lambda other: other.evaluation.means["ndcg@10"] or 0.0)
        measured.append(Measured(result, tuple(others), tuple(other for other in same if other in own)))
    placed = [one for part in measured for one in (part.own, *part.others, *part.changed)]
    return measured, [result for result in results if result not in placed]


def read_ablations(folder: str | Path) -> list[Ablation]:
    """The numbers of an output folder of `mmfusion ablation`, test first.

    Raises:
        CardError: There are none, or a file is damaged.
    """
    paths = sorted(Path(folder).glob("ablation.*.json"))
    if not paths:
        problem = "there is no ablation (ablation.SPLIT.json) in it"
        raise CardError(problem, str(folder), f"run `mmfusion ablation --output {folder}`")
    ablations = []
    for path in paths:
        try:
            ablations.append(Ablation.load(path))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            remedy = "run `mmfusion ablation --table_only true`, which writes it again from finished steps"
            raise CardError(f"damaged ({error})", str(path), remedy) from error
    return sorted(ablations, key=lambda ablation: ("test", "val", "train").index(ablation.split))


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CardError: It cannot be read, or is something else.
    """
    try:
        fields = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CardError(f"cannot be read as JSON ({error})", str(path), remedy) from error
    if not isinstance(fields, dict):
        raise CardError(f"holds a {type(fields).__name__} where an object is expected", str(path), remedy)
    return fields


def check_number(value: Any, low: float, high: float, place: str, remedy: str) -> float:
    """A finite number in [low, high].

    Raises:
        CardError: It is none.
    """
    number = not isinstance(value, bool) and isinstance(value, int | float)
    if not number or not math.isfinite(value) or not low <= value <= high:
        raise CardError(f"the value is {value!r} where a number from {low} to {high} is expected", place, remedy)
    return float(value)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        if names := saved_evaluations(path):
            return [path / f"{name}.json" for name in names]
        raise CardError("this folder holds no evaluation", str(path), f"run `mmfusion evaluate --output {path}`")
    if not path.is_file():
        raise CardError("there is no such file or folder", str(path), "give a result file (NAME.json) or its folder")
    if path.suffix != ".json":
        raise CardError("this is not the JSON file of an evaluation", str(path), "give NAME.json, or the folder")
    return [path]


def _read(path: Path, dataset: str | None) -> Result:
    try:
        evaluation = Evaluation.load(path.parent, path.stem)
    except (TypeError, KeyError, ValueError, AttributeError, OSError) as error:
        raise CardError(f"damaged ({error})", str(path), _AGAIN) from error
    _check_numbers(evaluation, path)
    provenance = {"split": "", "catalogue": "", "perturbation": "", "model": "", **evaluation.provenance}
    size = provenance.get("bytes_per_product")
    problems = {
        "split": "" if provenance["split"] else "the field is missing",
        "bytes_per_product": ""
        if size is None or (type(size) is int and size > 0)
        else f"the value is {size!r} where a positive integer is expected",
    }
    for name in ("split", "catalogue", "perturbation", "model"):
        if not isinstance(provenance[name], str):
            problems[name] = f"the value is {provenance[name]!r} where a text is expected"
    for name, problem in problems.items():
        if problem:
            raise CardError(problem, f"{path}, field 'provenance.{name}'", _AGAIN)
    return Result(
        path=path,
        evaluation=evaluation,
        dataset=" ".join((provenance["catalogue"] or dataset or "").split()),
        split=provenance["split"],
        perturbation=provenance["perturbation"] or "none",
        model=provenance["model"] if provenance.get("baseline", "none") == "none" else "",
        bytes_per_product=size,
        agreement=_agreement(path),
    )


def _check_numbers(evaluation: Evaluation, path: Path) -> None:
    problems = {f"means.{metric}": "there is no number" for metric in METRICS if evaluation.means.get(metric) is None}
    numbers = {f"'means.{metric}'": mean for metric, mean in evaluation.means.items()}
    for part in evaluation.slices:
        numbers.update((f"'slices' ({part.column}={part.value}, {m})", mean) for m, mean in part.metrics.items())
    for place, number in numbers.items():
        if number is not None:
            check_number(number, 0, 1, f"{path}, field {place}", _AGAIN)
    for metric in METRICS:
        said, known = evaluation.means.get(metric), metric in evaluation.per_query.column_names
        found = pc.mean(evaluation.per_query[metric]).as_py() if known else None
        # A number that was typed into the JSON file is not a measured one.
        if said is not None and (found is None or abs(found - said) > 1e-6):
            problems[f"means.{metric}"] = f"says {said}, but the mean of {path.stem}{PER_QUERY} is {found}"
    for field, problem in problems.items():
        raise CardError(problem, f"{path}, field {field!r}", _AGAIN)


def _agreement(path: Path) -> ModalityAgreement | None:
    beside = path.with_name(f"{path.stem}.weights.json")
    if not beside.is_file():
        return None
    remedy = "run `mmfusion evaluate --weights_agree true` again"
    try:
        agreement = ModalityAgreement(**read_json(beside, remedy))
    except TypeError as error:
        raise CardError(f"damaged ({error})", str(beside), remedy) from error
    for name, value in vars(agreement).items():
        if name.startswith("num_") or value is not None:
            low, high = (0, math.inf) if name.startswith("num_") else (-1, 1)
            check_number(value, low, high, f"{beside}, field {name!r}", remedy)
    return agreement
