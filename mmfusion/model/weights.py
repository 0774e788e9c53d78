"""Which files a model's weights are read from: safetensors alone, inside their folder, as they were published."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import cached_file

from .errors import HubError, explained
from .remote_code import is_known, remote_class, trusting

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
# Formats that run code when they are read, or that transformers would read by way of one that does.
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack", ".npy", ".npz", ".joblib")

# What torch's own allocator gives to tensors on a CPU.
_ALIGNMENT_BYTES = 64

HUB_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")


def fetch_weights(
    source: str | os.PathLike[str], arguments: Mapping[str, Any], wanted: Callable[[str], bool] | None = None
) -> list[Path]:
    """Fetches the weights into the cache, or finds them in a folder; those that are not safe to read are an error.

    Args:
        source: Folder or Hub id.
        arguments: Keyword arguments of `from_pretrained`.
        wanted: Whether the weight of a name is read: shards without any such weight are not fetched. None: all are.

    Returns:
        The files: one, or the shards.

    Raises:
        HubError: There are only pickles, a shard is outside the folder, or a download is not what was published.
    """
    if arguments.get("use_safetensors") is False:
        raise HubError("use_safetensors=False would read pickles, which can run code; leave it out.")
    middle = f"model.{arguments['variant']}." if arguments.get("variant") else "model."
    whole, index = (name.replace("model.", middle, 1) for name in (WEIGHTS, INDEX))
    found = _find(source, whole, arguments)
    if found is not None:
        return [found]
    table = _find(source, index, arguments)
    if table is None:
        where, pickles = _names(source, arguments)
        if pickles:
            raise HubError(
                f"{where} holds its weights as {pickles[0]} and not as safetensors; a pickle can run code when it is "
                "read, so it is not read; ask its author for safetensors (model.save_pretrained writes them)."
            )
        raise HubError(f"{where} holds no weights: neither {whole} nor {index}; check the revision and the subfolder.")
    files = []
    for shard in shards(table, wanted):
        found = _find(source, shard, arguments)
        if found is None:
            raise HubError(f"{source} lacks {shard}, which its {index} names; the upload or copy is incomplete.")
        files.append(found)
    return files


def read_weights(source: str, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of which only those are read, and only from those files, whose names are `wanted`.

    Args:
        source: Folder or Hub id.
        wanted: Whether the weight of a name is read.

    Raises:
        HubError: As for [`fetch_weights`], or there is an adapter.
    """
    with explained(source):
        check_no_adapter(source, {})
        found = {}
        for file in fetch_weights(source, {}, wanted):
            with safe_open(file, framework="pt") as opened:
                names = filter(wanted, opened.keys())
                found.update({name: opened.get_tensor(name) for name in names})
        return found


def check_no_adapter(source: str | os.PathLike[str], arguments: Mapping[str, Any]) -> None:
    """Raises an error for a PEFT adapter, by itself or next to a model.

    Where peft is installed, transformers would apply it, from a pickle if need be; elsewhere it would leave it out
    without a word, and vectors would be others.

    Args:
        source: Folder or Hub id.
        arguments: Keyword arguments of `from_pretrained`.

    Raises:
        HubError: There is an adapter.
    """
    # AutoModel turns to the base of an adapter before it asks us.
    named = (arguments.get("adapter_kwargs") or {}).get("_adapter_model_path")
    # Where the Hub cannot be asked, what is in the cache is loaded, or its absence explained, by what comes next.
    if named is None and _find(source, ADAPTER, arguments, _raise_exceptions_for_connection_errors=False) is None:
        return
    where, pickles = _names(named or source, arguments)
    pickles = [name for name in pickles if name.startswith("adapter_")]
    reason = f" in a pickle ({pickles[0]}), and reading one can run code that came with it" if pickles else ""
    raise HubError(
        f"{where} holds a PEFT adapter{reason}; adapters are not applied here. Apply it to its base with peft, merge "
        "it (merge_and_unload) and load what save_pretrained writes then."
    )


def shards(index: Path, wanted: Callable[[str], bool] | None = None) -> list[str]:
    """Names of the files that an index of sharded weights names; with `wanted`, of those that hold such a weight.

    Raises:
        HubError: The file is no such index, or one of the names leads out of its folder or is not a safetensors file.
    """
    try:
        places = json.loads(index.read_text("utf-8"))["weight_map"].items()
        names = sorted({file for name, file in places if wanted is None or wanted(name)})
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise HubError(
            f"{index.name} is truncated or damaged ({error}); fetch it again (force_download=True)."
        ) from error
    for name in names:
        check_name(name, index.name)
        if not name.endswith(".safetensors"):
            raise HubError(f"{index.name} names {name!r}, which is not a safetensors file; nothing else is read.")
    return names


def check_name(name: Any, where: str) -> str:
    """A relative name of a file below a folder, with `/` between its parts.

    Raises:
        HubError: It would lead out of the folder, on this system or another.
    """
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts):
        raise HubError(f"{where} names the file {name!r}, which may lead out of its folder; nothing of it is read.")
    return str(name)


def _find(source: str | os.PathLike[str], name: str, arguments: Mapping[str, Any], **options: Any) -> Path | None:
    given = {key: arguments[key] for key in HUB_ARGUMENTS if arguments.get(key) is not None} | options

    def look(**more: Any) -> Path | None:
        found = cached_file(source, name, **{**given, "_raise_exceptions_for_missing_entries": False, **more})
        return None if found is None else Path(found)

    if Path(source).is_dir():
        return look()
    cached = {"local_files_only": True, "_raise_exceptions_for_connection_errors": False}
    before = None if given.get("force_download") else look(**cached)
    path = look()
    if path is not None and path != before:
        _check_digest(source, path)
    return path


def _check_digest(source: str | os.PathLike[str], path: Path) -> None:
    """Compares a fresh download with the SHA-256 that the Hub names it by; the client compares sizes only."""
    blob = path.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    with blob.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != blob.name:
        # Left in the cache it would be taken for whole by the next load.
        path.unlink()
        blob.unlink(missing_ok=True)
        raise HubError(
            f"{path.name} of {source} was damaged on its way (SHA-256 {found[:12]}… where the Hub has "
            f"{blob.name[:12]}…) and is removed from the cache; load it again."
        )


def _names(source: str | os.PathLike[str], arguments: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Where the weights are looked for, and the names there that are no safe format for weights."""
    folder = arguments.get("subfolder") or ""
    if Path(source).is_dir():
        names = os.listdir(Path(source) / folder)
    else:
        names = HfApi(token=arguments.get("token")).list_repo_files(str(source), revision=arguments.get("revision"))
        prefix = f"{folder}/" if folder else ""
        names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    pickles = sorted(name for name in names if name.lower().endswith(PICKLES))
    return f"{source}/{folder}" if folder else f"{source}", pickles


@torch.no_grad()
def align_weights(model: nn.Module) -> None:
    """Copies weights on the CPU that do not begin where torch's own would.

    safetensors are read in place, wherever a tensor begins in its file. Some kernels round the last bit otherwise
    there, and a loaded model would not give the vectors of the one that was saved.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % _ALIGNMENT_BYTES:
            tensor.data = tensor.data.clone()


def read_config(source: str, *, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The config of an encoder. Code of transformers goes before code that comes with the weights.

    Args:
        source: Local folder or Hub id.
        trust_remote_code: Whether code that comes with the weights may run.

    Raises:
        HubError: There is none, it cannot be read, or it needs code that is not trusted.
    """
    with explained(source):
        fields, _ = PreTrainedConfig.get_config_dict(source)
        if is_timm(fields):
            check_timm(source)
        name = fields.get("model_type")
        if name is not None and not is_known(name):
            with trusting(source, trust_remote_code):
                # Says in one line what transformers says in many.
                remote_class(fields, "AutoConfig", where=source)
            return AutoConfig.from_pretrained(source, trust_remote_code=True)
        try:
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
        except ValueError as error:
            if name is None:
                raise HubError(f"{source} has no config.json that names a model_type; check the folder.") from error
            raise


def is_timm(config: dict[str, Any]) -> bool:
    """Whether the fields of a config.json are those of a timm model, as timm or transformers writes them."""
    return config.get("model_type") == "timm_wrapper" or ("architecture" in config and "model_type" not in config)


def check_timm(name: str) -> None:
    """Raises a HubError where timm, or torchvision that it imports, is not installed."""
    lacking = [package for package in ("timm", "torchvision") if find_spec(package) is None]
    if lacking:
        raise HubError(
            f"{name} is a timm model, for which {' and '.join(lacking)} must be installed (timm imports torchvision); "
            "install the build of torchvision that belongs to your torch, or use an encoder of transformers."
        )
