"""What a folder or repository of sentence-transformers says of its encoder: pooling, prompts, layers and lengths."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import cached_file

from .errors import HubError, explained
from .heads import ACTIVATIONS
from .weights import check_name

logger = logging.getLogger(__name__)

MODULES = "modules.json"
# The names that older versions gave the settings of the encoder.
_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
_POOLINGS = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last", "weightedmean": "weighted_mean"}
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_PROMPTS = {"query": ("query",), "product": ("document", "passage", "corpus")}


class SentenceEncoder(NamedTuple):
    """What the folder says in addition to its encoder.

    Attributes:
        folder: Of the encoder and its tokenizer: the source itself, or the folder within it on this machine.
        pooling: One of `TEXT_POOLINGS`; None: the text features of a dual encoder, as they are.
        head: Layers after it, as `MMFusionConfig.text_head`; the last length is not among them, as ours is always 1.
        weights: Those of the layers, by the names of a `TextHead`.
        query_prompt, product_prompt: Prefixes; empty where it has none.
        max_query_length, max_product_length: In tokens; None where it sets no limit of its own.
        lower_case: Whether texts are put in lower case before they are tokenized.
    """

    folder: str
    pooling: str | None
    head: list[dict[str, Any]]
    weights: dict[str, Tensor]
    query_prompt: str
    product_prompt: str
    max_query_length: int | None
    max_product_length: int | None
    lower_case: bool


def read_sentence_encoder(source: str) -> SentenceEncoder | None:
    """Reads the files next to an encoder; None if it is not a folder or repository of sentence-transformers.

    Args:
        source: Folder or Hub id.

    Raises:
        HubError: It holds a kind of module or a setting that has no counterpart here; the text names it.
    """
    with explained(source):
        modules = _read(source, MODULES)
    if modules is None:
        return None
    kinds = [_kind(source, module) for module in modules]
    if not kinds or kinds[0] not in ("Transformer", "CLIPModel"):
        _unsupported(
            source, f"begins with the module {kinds[0] if kinds else None!r}, which is not an encoder of transformers"
        )
    paths = [module.get("path") or "" for module in modules]
    for path in filter(None, paths):
        check_name(path, MODULES)
    settings = _settings(source, paths[0])
    own_features = kinds[0] == "CLIPModel" or _is_own_features(source, settings)
    if not own_features and kinds[1:2] != ["Pooling"]:
        _unsupported(source, f"has {(kinds[1:2] or ['nothing'])[0]!r} where its pooling is expected")
    head, weights = _head(source, list(zip(kinds, paths, strict=True))[1 if own_features else 2 :])
    prompts = _prompts(source)
    pooling = None if own_features else _pooling(source, paths[1], head, prompts)
    length = settings.get("max_seq_length")
    return SentenceEncoder(
        folder=_encoder_folder(source, paths[0]),
        pooling=pooling,
        head=head,
        weights=weights,
        query_prompt=prompts["query"],
        product_prompt=prompts["product"],
        max_query_length=settings.get("query_length") or length,
        max_product_length=settings.get("document_length") or length,
        lower_case=bool(settings.get("do_lower_case", False)),
    )


def _read(source: str, name: str) -> Any:
    """A JSON file, or None if there is none."""
    found = _find(source, name)
    if found is None:
        return None
    try:
        return json.loads(found.read_text("utf-8"))
    except ValueError as error:
        raise HubError(f"{source}: {name} is damaged ({error}); fetch it again.") from error


def _find(source: str, name: str) -> Path | None:
    found = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)


def _encoder_folder(source: str, path: str) -> str:
    if not path:
        return source
    root = source if Path(source).is_dir() else snapshot_download(source, allow_patterns=f"{path}/*")
    return os.path.join(root, path)


def _kind(source: str, module: Any) -> str:
    name = module.get("type") if isinstance(module, Mapping) else None
    if not isinstance(name, str) or not name.startswith("sentence_transformers."):
        _unsupported(source, f"names the module {name!r}, whose code is not read")
    return name.rpartition(".")[2]


def _settings(source: str, path: str) -> dict[str, Any]:
    names = (f"{path}/{name}" if path else name for name in _SETTINGS)
    settings: dict[str, Any] = next(filter(None, (_read(source, name) for name in names)), {})
    task = settings.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        _unsupported(source, f"has the transformer_task {task!r}, which gives no states to pool")
    return settings


def _is_own_features(source: str, settings: Mapping[str, Any]) -> bool:
    ways = settings.get("modality_config")
    if ways is None:
        return False
    way = ways.get("text")
    if way is None:
        _unsupported(source, f"takes {', '.join(ways)} and no plain text")
    if way.get("method") == "get_text_features":
        return True
    if way.get("method") != "forward" or way.get("method_output_name") != "last_hidden_state":
        _unsupported(source, f"reads {way.get('method_output_name')!r} of {way.get('method')!r} for a text")
    return False


def _pooling(source: str, path: str, head: list[dict[str, Any]], prompts: Mapping[str, str]) -> str:
    fields = _read(source, f"{path}/config.json") or {}
    modes = fields.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in _OLD_POOLINGS.items() if fields.get(name)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1:
        _unsupported(source, f"pools by {' and '.join(map(str, modes))} side by side")
    if not fields.get("include_prompt", True) and any(prompts.values()):
        _unsupported(source, "leaves its prompt out of the pooling (include_prompt is false)")
    if modes[0] == "mean_sqrt_len_tokens" and _ignores_length(head):
        return "mean"
    if modes[0] not in _POOLINGS:
        _unsupported(source, f"pools by {modes[0]!r}, and a layer after it depends on the length of the vector")
    return _POOLINGS[modes[0]]


def _ignores_length(head: list[dict[str, Any]]) -> bool:
    """Whether the direction of what the layers give depends on the direction of the pooled vector alone."""
    for layer in head:
        if layer["kind"] != "dense":
            return layer["kind"] == "normalize"
        if layer["bias"] or layer["activation"] not in ("identity", "relu", "leakyrelu"):
            return False
    return True


def _head(source: str, modules: list[tuple[str, str]]) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    layers: list[dict[str, Any]] = []
    weights: dict[str, Tensor] = {}
    while modules and modules[-1][0] in ("Normalize", "Dropout"):
        modules = modules[:-1]
    for kind, path in modules:
        place = len(layers)
        if kind == "Dense":
            layer, tensors = _dense(source, path)
            layers.append(layer)
            weights |= {f"{place}.0.{name}": value for name, value in tensors.items()}
        elif kind == "LayerNorm":
            layers.append({"kind": "layer_norm"})
            weights |= {f"{place}.{name}": value for name, value in _weights(source, path, "norm.").items()}
        elif kind == "Normalize":
            layers.append({"kind": "normalize"})
        elif kind != "Dropout":
            _unsupported(source, f"has the module {kind!r} after its encoder")
    return layers, weights


def _dense(source: str, path: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    fields = _read(source, f"{path}/config.json") or {}
    name = str(fields.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = name.rpartition(".")[2].lower()
    if not name.startswith("torch.nn.") or activation not in ACTIVATIONS:
        _unsupported(source, f"has the activation function {name!r} in {path}; known are {', '.join(ACTIVATIONS)}")
    reads = {fields.get(f"module_{side}_name") or "sentence_embedding" for side in ("input", "output")}
    if reads != {"sentence_embedding"} or fields.get("use_residual"):
        _unsupported(source, f"has a Dense layer in {path} that is not from pooled vector to pooled vector")
    tensors = _weights(source, path, "linear.")
    layer = {
        "kind": "dense",
        "size": len(tensors["weight"]),
        "bias": "bias" in tensors,
        "activation": activation,
    }
    return layer, tensors


def _weights(source: str, path: str, prefix: str) -> dict[str, Tensor]:
    found = _find(source, f"{path}/model.safetensors")
    if found is None:
        raise HubError(
            f"{source} has no {path}/model.safetensors; pickles are not read, as they can run code. Save it with a "
            "newer sentence-transformers, which writes safetensors."
        )
    tensors = load_file(found)
    if f"{prefix}weight" not in tensors:
        raise HubError(f"{source}: {path}/model.safetensors lacks {prefix}weight; the upload or copy is incomplete.")
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _prompts(source: str) -> dict[str, str]:
    """The prompts of both roles. sentence-transformers itself reads a `passage` prompt only next to a `document`."""
    known = (_read(source, "config_sentence_transformers.json") or {}).get("prompts") or {}
    chosen = {role: next((known[name] for name in names if known.get(name)), "") for role, names in _PROMPTS.items()}
    others = sorted(name for name, prompt in known.items() if prompt)
    if others and not any(chosen.values()):
        logger.warning(
            "%s has prompts named %s, and none for queries or documents; texts get no prompt. Set query_prompt and "
            "product_prompt to those that fit.",
            source,
            ", ".join(others),
        )
    return chosen


def _unsupported(source: str, what: str) -> NoReturn:
    raise HubError(
        f"{source} {what}: such a model of sentence-transformers has no counterpart here. Use one that is an encoder "
        "with pooling, Dense, LayerNorm and Normalize."
    )


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
