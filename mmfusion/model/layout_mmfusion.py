"""How sentence-transformers finds its way into a model folder."""

import json
from collections.abc import Mapping
from pathlib import Path

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
