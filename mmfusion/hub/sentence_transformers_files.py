"""The files by which sentence-transformers finds its way into a model folder."""

import json
import shutil
from pathlib import Path
from typing import Any

from transformers.dynamic_module_utils import get_relative_import_files

import mmfusion.model
from mmfusion.files import replace_text
from mmfusion.hub.errors import HubError
from mmfusion.model import MMFusionConfig

_CODE = Path(mmfusion.model.__file__).parent / "sentence_transformers_mmfusion.py"
_CLASS = "MMFusionTowers"

# `on_model_ready` and inputs of several modalities came with 6.0; 6.2 reads this and says so before it loads anything.
_REQUIREMENTS = {"sentence-transformers": ">=6"}


def write_sentence_transformers_files(folder: Path, config: MMFusionConfig) -> list[Path]:
    """Makes `SentenceTransformer(folder, trust_remote_code=True)` work for a model folder.

    Writes `modules.json` and `config_sentence_transformers.json` (prompts; similarity `dot` with a query router, else
    `cosine`) and puts the module's code, with the files it imports, beside the weights. Existing files of these names
    are replaced, so that a second call gives the same.

    Args:
        folder: Folder that `MMFusionModel.save_pretrained` and `MMFusionProcessor.save_pretrained` wrote.
        config: Configuration of the model in it.

    Returns:
        The files written.

    Raises:
        HubError: The folder holds no processor, or one with other prompts than the configuration.
    """
    folder = Path(folder)
    _check_prompts(folder, config)
    written = [
        _write(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": f"{_CODE.stem}.{_CLASS}"}]),
        _write(folder / "config_sentence_transformers.json", _settings(config)),
    ]
    for source in sorted({_CODE, *map(Path, get_relative_import_files(_CODE))}):
        written.append(Path(shutil.copyfile(source, folder / source.name)))
    return written


def _settings(config: MMFusionConfig) -> dict[str, Any]:
    return {
        "model_type": "SentenceTransformer",
        "prompts": {"query": config.query_prompt, "document": config.product_prompt},
        "default_prompt_name": None,
        "similarity_fn_name": "dot" if config.query_router else "cosine",
        "requirements": _REQUIREMENTS,
    }


def _check_prompts(folder: Path, config: MMFusionConfig) -> None:
    path = folder / "processor_config.json"
    if not path.is_file():
        raise HubError(f"{folder} holds no processor_config.json; save the processor there first.")
    fields = json.loads(path.read_text("utf-8"))
    for name in ("query_prompt", "product_prompt"):
        if fields.get(name, "") != getattr(config, name):
            raise HubError(
                f"{folder}: {name} is {getattr(config, name)!r} in config.json but {fields.get(name, '')!r} in "
                "processor_config.json; make them equal."
            )


def _write(path: Path, content: Any) -> Path:
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return path
