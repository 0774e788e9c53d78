"""What the folder of an exported query tower holds, and `query_tower.json`, which says what it is."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from mmfusion.files import sha256_of
from mmfusion.onnx.extra import OnnxError

SCHEMA_VERSION = 1
GRAPH, WEIGHTS, TOKENIZER, DESCRIPTION = "model.onnx", "model.onnx.data", "tokenizer.json", "query_tower.json"
# The weights are in the graph's own file unless they exceed what it can hold.
FILES = frozenset({GRAPH, WEIGHTS, TOKENIZER, DESCRIPTION})


@dataclass(frozen=True)
class OnnxDescription:
    """What `query_tower.json` says.

    Attributes:
        schema_version: Version of the folder's layout.
        model_fingerprint: Of the whole model, by which an index of its products knows the vectors.
        dimension: Of the vectors, all views together.
        views: Views side by side in a vector: 3 with a query router, otherwise 1.
        matryoshka_dims: Shorter widths of a view that the model was trained for.
        query_prompt: Prefix of every query. The tokenizer does not add it.
        max_length: Tokens that longer queries are truncated to; the tokenizer does it.
        parameters: Number of the tower's parameters.
        opset: Version of the ONNX operators.
        parity: Largest difference of a component from PyTorch's that was found after the export.
        sha256: Checksum (hex) of each other file of the folder, by name.
        created_by: Software that exported it.
    """

    schema_version: int
    model_fingerprint: str
    dimension: int
    views: int
    matryoshka_dims: tuple[int, ...]
    query_prompt: str
    max_length: int
    parameters: int
    opset: int
    parity: float
    sha256: dict[str, str]
    created_by: str


def write_description(folder: Path, description: OnnxDescription) -> None:
    """Writes `query_tower.json`."""
    text = json.dumps(asdict(description), indent=2, ensure_ascii=False)
    (folder / DESCRIPTION).write_text(text + "\n", "utf-8")


def read_description(folder: Path) -> OnnxDescription:
    """Reads `query_tower.json` and compares the other files with their checksums.

    Raises:
        OnnxError: It is missing, damaged or of a later layout, or a file is missing or not the one that was exported.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise OnnxError(
            f"{folder} holds no exported query tower: {DESCRIPTION} is missing; write one with mmfusion export"
        )
    description = _parse(path)
    for name, expected in description.sha256.items():
        if not (folder / name).is_file():
            raise OnnxError(f"{folder / name} is missing; export the query tower again with mmfusion export")
        found = sha256_of(folder / name)
        if found != expected:
            raise OnnxError(
                f"{folder / name} has the checksum {found[:12]}…, {DESCRIPTION} says {expected[:12]}…; it is damaged "
                "or of another export: export the query tower again with mmfusion export"
            )
    return description


def _parse(path: Path) -> OnnxDescription:
    try:
        fields = json.loads(path.read_text("utf-8"))
        version = int(fields["schema_version"])
        if version == SCHEMA_VERSION:
            fields["matryoshka_dims"] = tuple(fields["matryoshka_dims"])
            return OnnxDescription(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise OnnxError(f"{path} is damaged ({error!r}); export the query tower again") from error
    raise OnnxError(
        f"{path} has schema version {version}, this mmfusion reads {SCHEMA_VERSION}; update mmfusion or export the "
        "query tower again"
    )
