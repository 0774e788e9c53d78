"""What a model folder says about itself."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from string import Formatter

from mmfusion.hub.card_error import CardError
from mmfusion.hub.card_results import read_json
from mmfusion.model import MMFusionConfig, MMFusionModel, MMFusionProcessor

_REMEDY = "give the folder that a recipe wrote (recipes/stage2.py --output)"
_LARGEST_HEADER = 100_000_000


@dataclass(frozen=True)
class ModelFacts:
    """Attributes:
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


def read_facts(folder: str | Path) -> ModelFacts:
    """Reads config, processor and the headers of the weights; the weights themselves are not loaded.

    Raises:
        CardError: This is no mmfusion model, or a file is missing or damaged.
    """
    folder = Path(folder)
    for name in ("config.json", "processor_config.json"):
        if not (folder / name).is_file():
            raise CardError(f"{name} is missing, so this is no model folder", str(folder), _REMEDY)
    fields = read_json(folder / "config.json", _REMEDY)
    if fields.get("model_type") != "mmfusion":
        found = fields.get("model_type")
        raise CardError(f"this is a {found!r} model", f"{folder / 'config.json'}, field 'model_type'", _REMEDY)
    try:
        config = MMFusionConfig.from_pretrained(str(folder))
    except ValueError as error:
        raise CardError(str(error), str(folder / "config.json"), "correct the field") from error
    template = read_json(folder / "processor_config.json", _REMEDY).get("product_template", config.product_template)
    columns = _columns(str(template), folder / "processor_config.json")
    return ModelFacts(config, _parameters(folder), columns)


def weights_tag(fingerprint: str) -> str:
    """Name of the tag that publishing puts on the commit of these weights; a card's snippets are pinned to it.

    A commit hash cannot stand in a file of that commit, and a branch moves.
    """
    return f"weights-{fingerprint[:12]}"


def fingerprint_of(folder: str | Path) -> str:
    """Fingerprint of the model in a folder; loads its weights."""
    # Imported here, as it brings FAISS along, which a card without results does not need.
    from mmfusion.retrieval.fingerprint import model_fingerprint

    model = MMFusionModel.from_pretrained(str(folder))
    return model_fingerprint(model, MMFusionProcessor.from_pretrained(str(folder)))


def _columns(template: str, path: Path) -> tuple[str, ...]:
    try:
        names = dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name is not None)
    except ValueError as error:
        raise CardError(str(error), f"{path}, field 'product_template'", "correct the field") from error
    # The names are set into the card's Python.
    wrong = next((name for name in names if not name.isidentifier()), None)
    if wrong is not None or not names:
        raise CardError(f"the value is {template!r}", f"{path}, field 'product_template'", "use plain column names")
    return tuple(names)


def _parameters(folder: Path) -> int:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CardError("there are no weights (*.safetensors) in it", str(folder), _REMEDY)
    return sum(_numbers_in(path) for path in files)


def _numbers_in(path: Path) -> int:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, _LARGEST_HEADER)))
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise CardError(f"damaged ({error})", str(path), "save the model again") from error
