"""How a model was trained, and what that took, from the `run.json` of its folder and of those it started from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmfusion.evaluation.numbers import percent
from mmfusion.files import is_hub_id
from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_private import public
from mmfusion.hub.card_results import NOT_STATED, read_json
from mmfusion.hub.recipe_config import without_secrets
from mmfusion.markdown import table

_RECORD = "run.json"
_REMEDY = "copy the run.json that the recipe wrote, or leave it out"
_MOST_STAGES = 16


@dataclass(frozen=True)
class TrainingRun:
    """One recipe on the way to the model, as its `run.json` has it.

    Attributes:
        recipe: Name of the recipe.
        arguments: Its arguments by name, nested ones joined with a dot.
        record: Everything else.
    """

    recipe: str
    arguments: Mapping[str, Any]
    record: Mapping[str, Any]


def read_runs(folder: str | Path) -> list[TrainingRun]:
    """The run that wrote a model folder, and those before it as far as their folders are there; the first one first.

    Raises:
        CardError: A `run.json` is damaged, or a field in it has the wrong type.
    """
    runs: list[TrainingRun] = []
    current: Path | None = Path(folder)
    while current is not None and (current / _RECORD).is_file() and len(runs) < _MOST_STAGES:
        path = current / _RECORD
        record = without_secrets(read_json(path, _REMEDY))
        for name, kind in (("recipe", str), ("arguments", dict)):
            if not isinstance(record.get(name), kind):
                found = record.get(name)
                raise CardError(
                    f"the value is {found!r} where a {kind.__name__} is expected", f"{path}, field {name!r}", _REMEDY
                )
        runs.insert(0, TrainingRun(record["recipe"], _flat(record["arguments"]), record))
        base = record["arguments"].get("base")
        current = Path(base) if isinstance(base, str) else None
    return runs


def encoders_of(runs: Sequence[TrainingRun]) -> list[str]:
    """Hub ids of the models that the first recipe started from, as far as it names any."""
    if not runs:
        return []
    found = [runs[0].arguments.get(name) for name in ("text", "vision", "base")]
    return list(dict.fromkeys(str(name) for name in found if is_hub_id(name)))


def catalogues_of(runs: Sequence[TrainingRun]) -> list[str]:
    """Hub ids or names (the last part of a folder) of the catalogues that the model was trained on."""
    found = [run.record.get("catalogue") or run.arguments.get("catalogue") for run in runs]
    return list(
        dict.fromkeys(
            name if is_hub_id(name) else name.rstrip("/").split("/")[-1] for name in found if isinstance(name, str)
        )
    )


def training_section(runs: Sequence[TrainingRun]) -> str:
    """Arguments of each recipe side by side, without folders of the machine."""
    if not runs:
        return NOT_STATED
    names = list(dict.fromkeys(name for run in runs for name in run.arguments))
    rows = [["argument", *(run.recipe for run in runs)]]
    for name in names:
        cells = [_argument(run.arguments[name]) if name in run.arguments else "" for run in runs]
        if any(cell not in ("", "–") for cell in cells):
            rows.append([f"`{name}`", *cells])
    steps = " → ".join(f"`recipes/{run.recipe}.py`" for run in runs)
    return f'{steps}; "…/" stands for a folder.\n\n{table(rows)}'


def compute_section(runs: Sequence[TrainingRun]) -> str:
    """Steps, minutes, processors and versions of each recipe."""
    trained = [run for run in runs if run.record.get("fit_seconds") is not None]
    if not trained:
        return NOT_STATED
    rows = [["", *(run.recipe for run in trained)]]
    rows.append(["steps", *(_fact(run, "steps") for run in trained)])
    rows.append(["minutes of fitting", *(f"{_seconds(run) / 60:.1f}" for run in trained)])
    rows.append(["CPU cores of the machine", *(_fact(run, "cpu_count") for run in trained)])
    for name in ("accelerator", "devices", "num_nodes", "strategy", "precision"):
        rows.append([name, *(_argument(run.arguments.get(f"hardware.{name}")) for run in trained)])
    validation = dict.fromkeys(name for run in trained for name in _validation(run))
    rows += [[name, *(percent(_validation(run).get(name)) for run in trained)] for name in validation]
    versions = dict.fromkeys(_versions(run) for run in trained)
    total = sum(_seconds(run) for run in trained) / 60
    lines = [f"Fitting took {total:.1f} minutes in all. Versions: {'; '.join(versions)}."]
    return "\n\n".join([table(rows), *lines])


def seeds_of(runs: Sequence[TrainingRun]) -> list[Any]:
    """Different seeds of the recipes."""
    return list(dict.fromkeys(run.arguments["seed"] for run in runs if "seed" in run.arguments))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        # Settings of the machine and of the optimiser are read one by one; a free dictionary is one value.
        if isinstance(value, dict) and not name.endswith("_config"):
            found.update(_flat(value, f"{prefix}{name}."))
        else:
            found[f"{prefix}{name}"] = value
    return found


def _argument(value: Any) -> str:
    if value is None:
        return "–"
    plain = public(value)
    if isinstance(plain, str):
        return plain or '""'
    return json.dumps(plain, ensure_ascii=False)


def _fact(run: TrainingRun, name: str) -> str:
    value = run.record.get(name)
    return "–" if value is None else str(public(value))


def _seconds(run: TrainingRun) -> float:
    value = run.record["fit_seconds"]
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise CardError(
            f"the value is {value!r} where seconds are expected", f"{_RECORD}, field 'fit_seconds'", _REMEDY
        )
    return float(value)


def _validation(run: TrainingRun) -> dict[str, float]:
    metrics = run.record.get("metrics")
    if not isinstance(metrics, dict):
        return {}
    return {name: value for name, value in metrics.items() if name.startswith("val/") and isinstance(value, float)}


def _versions(run: TrainingRun) -> str:
    versions = run.record.get("versions")
    named = versions if isinstance(versions, dict) else {}
    return ", ".join([f"Python {_fact(run, 'python')}", *(f"{name} {public(text)}" for name, text in named.items())])
