"""The files of a published model, gathered in a folder and looked through before anything leaves the machine."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mmfusion
from mmfusion.files import replace_text
from mmfusion.hub.card import write_card
from mmfusion.hub.card_private import check_no_secret
from mmfusion.hub.errors import HubError
from mmfusion.hub.query_only import write_query_tower
from mmfusion.hub.recipe_config import write_recipe_config
from mmfusion.model import MMFusionModel, MMFusionProcessor

QUERY_FOLDER = "query"
CARD = "README.md"
LICENSE = "LICENSE"
# Fields in which transformers keeps where something was loaded from.
_ORIGINS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file", "special_tokens_map_file")
_SHORTEST_PATH = 6


@dataclass(frozen=True)
class PublishedFile:
    """A file of a repository: its `name` there, with `/` between folders, and its `size` in bytes."""

    name: str
    size: int


def gather(
    model_folder: Path,
    folder: Path,
    *,
    repo: str,
    revision: str | None = None,
    results: Sequence[Path] = (),
    ablation: Path | None = None,
    max_shard_size: str = "5GB",
) -> list[PublishedFile]:
    """Writes all files that are published of a model into an empty folder.

    The model is loaded and saved anew rather than copied, so that nothing else that lies in its folder (checkpoints,
    logs, caches) can come along.

    Args:
        model_folder: Folder that a recipe, or `save_pretrained` of model and processor, wrote.
        folder: Empty folder.
        repo, revision: What the card's snippets load; None is the tag of the weights.
        results: Files or folders of recipes/evaluate.py for the card, if there is no card yet.
        ablation: Output folder of recipes/ablation.py for the card.
        max_shard_size: Largest file of weights, such as "5GB".

    Returns:
        The files, by name.

    Raises:
        HubError: The folder holds no mmfusion model, or a text in it holds a token or a folder of this machine.
    """
    model, processor = _load(model_folder)
    _check_prompts(model_folder, model, processor)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    processor.save_pretrained(folder)
    if not model.config.query_only:
        write_query_tower(model, processor, folder / QUERY_FOLDER)
    write_recipe_config(model_folder, folder)
    _write_license(model_folder, folder)
    if (model_folder / CARD).is_file():
        shutil.copyfile(model_folder / CARD, folder / CARD)
    else:
        write_card(model_folder, results=results, ablation=ablation, output=folder / CARD, repo=repo, revision=revision)
    for path in folder.rglob("*.json"):
        _forget_origin(path)
    check_public(folder, model_folder)
    return list_files(folder)


def list_files(folder: Path) -> list[PublishedFile]:
    """All files below a folder, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [PublishedFile(path.relative_to(folder).as_posix(), path.stat().st_size) for path in paths]


def check_public(folder: Path, model_folder: Path) -> None:
    """Looks through all texts of a folder for tokens and for folders of this machine.

    Args:
        folder: What is to be published.
        model_folder: Where it comes from, a path that must not be named in it.

    Raises:
        HubError: There is one; the message names file and line and, for a token, not what it is.
    """
    private = [
        str(path) for path in (model_folder.absolute(), Path.cwd(), Path.home()) if len(str(path)) >= _SHORTEST_PATH
    ]
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.suffix == ".safetensors":
            continue
        name, text = path.relative_to(folder).as_posix(), path.read_text("utf-8", errors="replace")
        check_no_secret(text, name)
        for number, line in enumerate(text.splitlines(), start=1):
            found = next((place for place in private if place in line), None)
            if found is not None:
                raise HubError(f"{name}, line {number}, names the folder {found} of this machine; take it out.")


def _load(folder: Path) -> tuple[MMFusionModel, MMFusionProcessor]:
    if not (folder / "config.json").is_file():
        raise HubError(f"{folder} is no model folder (no config.json); give the output folder of a recipe.")
    if not (folder / "processor_config.json").is_file():
        raise HubError(f"{folder} holds no processor (no processor_config.json); save it there with the model.")
    model = MMFusionModel.from_pretrained(folder)
    return model, MMFusionProcessor.from_pretrained(folder)


def _check_prompts(folder: Path, model: MMFusionModel, processor: MMFusionProcessor) -> None:
    # sentence-transformers shows those of the config, and the processor applies its own.
    for name in ("query_prompt", "product_prompt"):
        given, applied = getattr(model.config, name), getattr(processor, name)
        if given != applied:
            raise HubError(
                f"{folder}: {name} is {given!r} in config.json but {applied!r} in processor_config.json; make them "
                "equal."
            )


def _write_license(model_folder: Path, folder: Path) -> None:
    own = model_folder / LICENSE
    if own.is_file():
        shutil.copyfile(own, folder / LICENSE)
        return
    (folder / LICENSE).write_text(_license_of_package(), "utf-8")


def _license_of_package() -> str:
    """The text of the Apache License as it comes with this package, installed or in a checkout."""
    checkout = Path(mmfusion.__file__).parent.parent / LICENSE
    if checkout.is_file():
        return checkout.read_text("utf-8")
    try:
        text = metadata.distribution("mmfusion").read_text(f"licenses/{LICENSE}")
    except metadata.PackageNotFoundError:
        text = None
    if text is None:
        raise HubError("mmfusion's own LICENSE is not to be found; put a LICENSE into the model folder.")
    return text


def _forget_origin(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    cleaned = _without_origins(content)
    if cleaned != content:
        replace_text(path, json.dumps(cleaned, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def _without_origins(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_origins(inner) for name, inner in _kept(value)}
    return [_without_origins(inner) for inner in value] if isinstance(value, list) else value


def _kept(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in fields.items():
        if name not in _ORIGINS or not isinstance(value, str) or not _is_local(value):
            yield name, value


def _is_local(value: str) -> bool:
    return Path(value).is_absolute() or value.startswith((".", "~")) or Path(value).exists()
