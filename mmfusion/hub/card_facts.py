"""What a model folder says about itself: its config and weights, and how it was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any

from safetensors import SafetensorError, safe_open

from mmfusion.data.text_check import noted_language
from mmfusion.evaluation.tables import Cell, markdown_table
from mmfusion.files import is_hub_id
from mmfusion.hub.card_results import check_number, read_json
from mmfusion.hub.private import CardError, public, without_secrets
from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor

_REMEDY = "give the folder that a recipe wrote (`mmfusion stage2 --output`)"
_RECORD = "run.json"
_RECORD_REMEDY = "copy the run.json that the recipe wrote, or leave it out"
_MOST_STAGES = 16


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder says of its model.

    Attributes:
        config: Of the model.
        parameters: Numbers in its safetensors files.
        columns: Product columns that its texts are made of.
    """

    config: MMFusionConfig
    parameters: int
    columns: tuple[str, ...]

    @property
    def vector_bytes(self) -> int:
        """Size of a vector in float32."""
        return 4 * self.config.vector_dim


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

    @property
    def minutes(self) -> float | None:
        """Minutes of fitting; None for a recipe that fits nothing."""
        seconds = self.record.get("fit_seconds")
        place = f"{_RECORD}, field 'fit_seconds'"
        return None if seconds is None else check_number(seconds, 0, math.inf, place, _RECORD_REMEDY) / 60

    @property
    def versions(self) -> str:
        """Versions of Python and of packages."""
        versions = self.record.get("versions")
        named = versions if isinstance(versions, dict) else {}
        python = f"Python {self.fact('python') or '–'}"
        return ", ".join([python, *(f"{name} {public(text)}" for name, text in named.items())])

    @property
    def without_queries(self) -> bool:
        """Whether titles and attributes of products stood in for queries."""
        return bool(self.arguments.get("pseudo_queries"))

    def fact(self, name: str) -> str | None:
        """An entry of the record as it may be published."""
        value = self.record.get(name)
        return None if value is None else str(public(value))

    def argument(self, name: str) -> str | None:
        """An argument as it may be published; None if it was left at None."""
        value = public(self.arguments.get(name))
        if value is None or isinstance(value, str):
            return '""' if value == "" else value
        return json.dumps(value, ensure_ascii=False)

    def validation(self) -> dict[str, float]:
        """The last validation metrics by name."""
        metrics = self.record.get("metrics")
        found = metrics.items() if isinstance(metrics, dict) else ()
        return {name: value for name, value in found if name.startswith("val/") and isinstance(value, float)}


def read_facts(folder: str | Path) -> ModelFacts:
    """Reads config, processor and the headers of the weights; the weights themselves are not loaded.

    Raises:
        CardError: This is not an mmfusion model, or a file is missing or damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise CardError(f"{name} is missing, so this is not a model folder", str(folder), _REMEDY)
    kind = read_json(folder / "config.json", _REMEDY).get("model_type")
    if kind != "mmfusion":
        raise CardError(f"this is a {kind!r} model", f"{folder / 'config.json'}, field 'model_type'", _REMEDY)
    try:
        config = MMFusionConfig.from_pretrained(str(folder))
    except ValueError as error:
        raise CardError(str(error), str(folder / "config.json"), "correct the field") from error
    template = str(
        read_json(folder / "processor_config.json", _REMEDY).get("product_template", config.product_template)
    )
    try:
        columns = tuple(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None))
    except ValueError:
        columns = ()
    # The names are set into the card's Python.
    if not columns or not all(name.isidentifier() for name in columns):
        place = f"{folder / 'processor_config.json'}, field 'product_template'"
        raise CardError(f"the value is {template!r}", place, "use plain column names")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CardError("there are no weights (*.safetensors) in it", str(folder), _REMEDY)
    return ModelFacts(config, sum(_numbers_in(path) for path in weights), columns)


def weights_tag(fingerprint: str) -> str:
    """Name of the tag that publishing puts on the commit of these weights; a card's snippets are pinned to it.

    A commit hash cannot be in a file of that commit, and a branch moves.
    """
    return f"weights-{fingerprint[:12]}"


def fingerprint_of(folder: str | Path) -> str:
    """Fingerprint of the model in a folder; loads its weights."""
    # Imported here, as it brings FAISS along, which a card without results does not need.
    from mmfusion.retrieval.fingerprint import model_fingerprint

    model = MMFusionModel.from_pretrained(str(folder))
    return model_fingerprint(model, MMFusionProcessor.from_pretrained(str(folder)))


def read_runs(folder: str | Path) -> list[TrainingRun]:
    """The run that wrote a model folder, and those before it as far as their folders are there; the first one first.

    Raises:
        CardError: A `run.json` is damaged, or a field in it has the wrong type.
    """
    runs: list[TrainingRun] = []
    current: Path | None = Path(folder)
    while current is not None and (current / _RECORD).is_file() and len(runs) < _MOST_STAGES:
        path = current / _RECORD
        record = without_secrets(read_json(path, _RECORD_REMEDY))
        for name, kind in (("recipe", str), ("arguments", dict)):
            if not isinstance(record.get(name), kind):
                problem = f"the value is {record.get(name)!r} where a {kind.__name__} is expected"
                raise CardError(problem, f"{path}, field {name!r}", _RECORD_REMEDY)
        runs.insert(0, TrainingRun(record["recipe"], _flat(record["arguments"]), record))
        base = record["arguments"].get("base")
        current = Path(base) if isinstance(base, str) else None
    return runs


def encoders_of(runs: Sequence[TrainingRun]) -> list[str]:
    """Hub ids of the models that the first recipe started from, as far as it names any."""
    found = [runs[0].arguments.get(name) for name in ("text", "vision", "base")] if runs else []
    return list(dict.fromkeys(str(name) for name in found if is_hub_id(name)))


def catalogues_of(runs: Sequence[TrainingRun]) -> list[str]:
    """Hub ids or names (the last part of a folder) of the catalogues that the model was trained on."""
    found = [run.record.get("catalogue") or run.arguments.get("catalogue") for run in runs]
    names = [name for name in found if isinstance(name, str)]
    return list(dict.fromkeys(name if is_hub_id(name) else name.rstrip("/").split("/")[-1] for name in names))


def languages_of(runs: Sequence[TrainingRun]) -> list[str]:
    """ISO 639 codes that catalogues on this machine note, which the model was trained on."""
    found = [run.record.get("catalogue") for run in runs]
    noted = [noted_language(name) for name in found if isinstance(name, str) and Path(name).is_dir()]
    return list(dict.fromkeys(language for language in noted if language))


def training_table(runs: Sequence[TrainingRun]) -> str:
    """Arguments of each recipe side by side, without folders of the machine."""
    rows: list[list[Cell]] = [["argument", *(run.recipe for run in runs)]]
    for name in dict.fromkeys(name for run in runs for name in run.arguments):
        cells = [run.argument(name) if name in run.arguments else "" for run in runs]
        if any(cells):
            rows.append([f"`{name}`", *cells])
    return markdown_table(rows)


def compute_table(runs: Sequence[TrainingRun]) -> str:
    """Steps, minutes, processors and metrics of each recipe that was fitted."""
    rows: list[list[Cell]] = [
        ["", *(run.recipe for run in runs)],
        ["steps", *(run.fact("steps") for run in runs)],
        ["minutes of fitting", *(f"{run.minutes:.1f}" for run in runs)],
        ["CPU cores of the machine", *(run.fact("cpu_count") for run in runs)],
    ]
    for name in ("accelerator", "devices", "num_nodes", "strategy", "precision"):
        rows.append([name, *(run.argument(f"hardware.{name}") for run in runs)])
    names = dict.fromkeys(name for run in runs for name in run.validation())
    return markdown_table([*rows, *([name, *(run.validation().get(name) for run in runs)] for name in names)])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        # Settings of the machine and of the optimiser are read one by one; a free dictionary is one value.
        nested = isinstance(value, dict) and not name.endswith("_config")
        found.update(_flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value})
    return found


def _numbers_in(path: Path) -> int:
    try:
        with safe_open(path, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CardError(f"damaged ({error})", str(path), "save the model again") from error
