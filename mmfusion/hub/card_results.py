"""Result files, read as what a card may say: checked, told apart by model, and never without their conditions."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from mmfusion.evaluation import Evaluation, ModalityAgreement
from mmfusion.evaluation.evaluation import CONDITIONS
from mmfusion.hub.card_error import CardError

METRICS = ("recall@100", "ndcg@10")
NOT_MEASURED = "Not measured."
NOT_STATED = "Not stated."
_REQUIRED = tuple(
    field.name
    for field in dataclasses.fields(Evaluation)
    if field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
    and field.name != "per_query"
)
_AGAIN = "write it again with recipes/evaluate.py"
_ENDING = ".per_query.parquet"


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
        agreement: What `--weights_agree` wrote beside it; None where it was not asked for.
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
        """What must be alike for two results to stand in one table."""
        own = [getattr(self.evaluation, name) for name in CONDITIONS]
        return (self.dataset, self.split, *(json.dumps(value, sort_keys=True) for value in own))

    @property
    def clean(self) -> bool:
        return self.perturbation == "none"

    @property
    def title(self) -> str:
        return f"{self.dataset or 'data set not stated'}, {self.split} split" + (
            "" if self.evaluation.pool == "split" else ", the whole catalogue competing"
        )


def read_results(paths: Sequence[str | Path], *, dataset: str | None = None) -> list[Result]:
    """Reads what recipes/evaluate.py wrote.

    Args:
        paths: JSON files, or folders of them (all of a folder are taken, oldest first).
        dataset: Name of the catalogue of results that do not say; older versions did not write it down.

    Raises:
        CardError: A file is missing or damaged, a field is missing or out of range, or numbers of a file contradict
            those of its queries.
    """
    files = [file for path in paths for file in _files(Path(path))]
    return [_read(file, dataset) for file in dict.fromkeys(files)]


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = [p.with_name(f"{p.name.removesuffix(_ENDING)}.json") for p in path.glob(f"*{_ENDING}")]
        found = [file for file in found if file.is_file()]
        if not found:
            raise CardError("this folder holds no evaluation", str(path), f"run recipes/evaluate.py --output {path}")
        return sorted(found, key=lambda file: (file.stat().st_mtime_ns, file.name))
    if not path.is_file():
        raise CardError("there is no such file or folder", str(path), "give a result file (NAME.json) or its folder")
    if path.suffix != ".json":
        raise CardError("this is not the JSON file of an evaluation", str(path), "give NAME.json, or the folder")
    return [path]


def _read(path: Path, dataset: str | None) -> Result:
    fields = read_json(path, _AGAIN)
    for name in _REQUIRED:
        if name not in fields:
            raise CardError("the field is missing", f"{path}, field {name!r}", _AGAIN)
    table = path.with_name(f"{path.stem}{_ENDING}")
    if not table.is_file():
        raise CardError(f"{table.name} is missing beside it", str(path), "copy it there; intervals need its queries")
    try:
        evaluation = Evaluation.load(path.parent, path.stem)
    except (TypeError, KeyError, ValueError, AttributeError, OSError) as error:
        raise CardError(f"damaged ({error})", str(path), _AGAIN) from error
    _check_numbers(evaluation, path)
    provenance = evaluation.provenance
    split = _text(provenance, "split", path)
    if not split:
        raise CardError("the field is missing", f"{path}, field 'provenance.split'", _AGAIN)
    named = _text(provenance, "catalogue", path)
    return Result(
        path=path,
        evaluation=evaluation,
        dataset=" ".join((named or dataset or "").split()),
        split=split,
        perturbation=_text(provenance, "perturbation", path) or "none",
        model="" if provenance.get("baseline", "none") != "none" else _text(provenance, "model", path),
        bytes_per_product=_bytes(provenance, path),
        agreement=_agreement(path),
    )


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


def _check_numbers(evaluation: Evaluation, path: Path) -> None:
    for metric in METRICS:
        if evaluation.means.get(metric) is None:
            raise CardError("there is no number", f"{path}, field 'means.{metric}'", _AGAIN)
    for metric, mean in evaluation.means.items():
        if mean is not None:
            check_number(mean, 0, 1, f"{path}, field 'means.{metric}'", _AGAIN)
    for part in evaluation.slices:
        for metric, mean in part.metrics.items():
            if mean is not None:
                place = f"{path}, field 'slices' ({part.column}={part.value}, {metric})"
                check_number(mean, 0, 1, place, _AGAIN)
    for metric in METRICS:
        if metric not in evaluation.per_query.column_names:
            raise CardError("the column is missing", f"{path.stem}{_ENDING}, column {metric!r}", _AGAIN)
        found, said = pc.mean(evaluation.per_query[metric]).as_py(), evaluation.means[metric]
        # A number that was typed into the JSON file is not a measured one.
        if found is None or said is None or abs(found - said) > 1e-6:
            raise CardError(
                f"says {said}, but the mean of {path.stem}{_ENDING} is {found}",
                f"{path}, field 'means.{metric}'",
                _AGAIN,
            )


def _text(provenance: Mapping[str, Any], name: str, path: Path) -> str:
    value = provenance.get(name, "")
    if not isinstance(value, str):
        raise CardError(
            f"the value is {value!r} where a text is expected", f"{path}, field 'provenance.{name}'", _AGAIN
        )
    return value


def _bytes(provenance: Mapping[str, Any], path: Path) -> int | None:
    value = provenance.get("bytes_per_product")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        place = f"{path}, field 'provenance.bytes_per_product'"
        raise CardError(f"the value is {value!r} where a positive integer is expected", place, _AGAIN)
    return value


def _agreement(path: Path) -> ModalityAgreement | None:
    beside = path.with_name(f"{path.stem}.weights.json")
    if not beside.is_file():
        return None
    remedy = "run recipes/evaluate.py --weights_agree true again"
    fields = read_json(beside, remedy)
    for name in (field.name for field in dataclasses.fields(ModalityAgreement)):
        value = fields.get(name, "missing")
        if name.startswith("num_") or value is not None:
            check_number(value, -1 if not name.startswith("num_") else 0, math.inf, f"{beside}, field {name!r}", remedy)
    try:
        return ModalityAgreement(**fields)
    except TypeError as error:
        raise CardError(f"damaged ({error})", str(beside), remedy) from error
