"""How others find their way into a model folder: sentence-transformers to its module, transformers to its code."""

import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

MODULES = "modules.json"
SETTINGS = "config_sentence_transformers.json"

_MODULE = "sentence_transformers_mmfusion.MMFusionTowers"

# `on_model_ready` and inputs of several modalities came with 6.0; 6.2 reads this and says so before it loads anything.
_REQUIREMENTS = {"sentence-transformers": ">=6"}


def write_sentence_transformers_files(folder: Path, prompts: Mapping[str, str], similarity: str) -> None:
    """Makes `SentenceTransformer(folder, trust_remote_code=True)` work for a model folder.

    Writes `modules.json` and `config_sentence_transformers.json`, and replaces what is there. They name the code beside
    the weights, although mmfusion may be installed: a folder is to mean the same on every machine, and what
    sentence-transformers saves of it, or pushes to the Hub, takes its code along only then. Saving a model with a newer
    mmfusion replaces the code.

    Args:
        folder: Folder that `MMFusionModel.save_pretrained` and `MMFusionProcessor.save_pretrained` write.
        prompts: Prefix of "query" and of "document".
        similarity: "cosine" or "dot".
    """
    settings = {
        "model_type": "SentenceTransformer",
        "prompts": dict(prompts),
        "default_prompt_name": None,
        "similarity_fn_name": similarity,
        "requirements": _REQUIREMENTS,
    }
    _write(folder / MODULES, [{"idx": 0, "name": "0", "path": "", "type": _MODULE}])
    _write(folder / SETTINGS, settings)


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def keep_module(name: str) -> None:
    """Keeps transformers from running a module of a repository twice; to be called at its end.

    transformers runs a module again when it is asked for a class of it, unless the module bears the hash of its files.
    One that came in by an import of another has none: its second run would put new classes in the place of those that
    are in use, which then cannot be pickled.

    Args:
        name: The module's `__name__`; nothing happens outside repositories.
    """
    if not name.startswith("transformers_modules."):
        return
    module = sys.modules[name]
    file = Path(str(module.__file__))
    files = [file, *sorted(map(Path, get_relative_import_files(file)))]
    digest = hashlib.sha256(b"".join(bytes(one) + one.read_bytes() for one in files)).hexdigest()
    module.__transformers_module_hash__ = digest  # type: ignore[attr-defined]
