"""Code that comes with weights, of encoders and of fusions, and our own code next to the weights.

Code that comes with weights runs only where the caller trusts it; nobody is asked at a terminal.
"""

import ast
import hashlib
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import (
    custom_object_save,
    get_class_from_dynamic_module,
    get_relative_import_files,
)

from .errors import HubError

logger = logging.getLogger(__name__)

TRUST_VARIABLE = "MMFUSION_TRUST_REMOTE_CODE"
"""Set to 1, commands run the code of the encoders of the models that they load."""

# Folder or Hub id of the model that is being loaded, where its caller trusts code that comes with it, and the arguments
# that say which version of it, and from where.
_trusted: ContextVar[tuple[str, dict[str, Any]] | None] = ContextVar("trusted", default=None)
_ARGUMENTS = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision")


@contextmanager
def trusting(
    source: str | os.PathLike[str], trust_remote_code: bool | None, arguments: Mapping[str, Any] = MappingProxyType({})
) -> Iterator[None]:
    """Lets code that comes with `source` run inside the block, if the caller or the environment says so.

    Args:
        source: Folder or Hub id.
        trust_remote_code: None, which is "not said", leaves a block inside of another as trusting as the outer one.
        arguments: Keyword arguments of `from_pretrained`.
    """
    trusts = trust_remote_code or os.environ.get(TRUST_VARIABLE) == "1"
    trusts = trusts or (trust_remote_code is None and _trusted.get() is not None)
    given = {name: arguments[name] for name in _ARGUMENTS if name in arguments}
    token = _trusted.set((str(source), given) if trusts else None)
    try:
        yield
    finally:
        _trusted.reset(token)


def remote_class(config: dict[str, Any] | PreTrainedConfig, kind: str, where: str = "the model folder") -> type[Any]:
    """The class that a config names in its `auto_map`.

    Args:
        config: The config, or its dict.
        kind: Key of `auto_map`: `"AutoConfig"`, `"AutoModel"`, or that of a fusion.
        where: Folder or Hub id that the config is in, for error messages.

    Raises:
        HubError: transformers does not know the model type and the config names no code, or the code is not trusted.
    """
    fields = config if isinstance(config, dict) else vars(config)
    name = fields.get("model_type") or getattr(config, "model_type", "")
    reference = (fields.get("auto_map") or {}).get(kind)
    if reference is None:
        raise HubError(
            f"{where} has the model_type {name!r}, which this transformers does not know; upgrade transformers if the "
            "model is newer, or correct model_type in its config.json."
        )
    origin, _, path = reference.rpartition("--")
    trusted = _trusted.get()
    if trusted is None:
        raise HubError(
            f"{where} needs code of its own for {name!r} ({path} in {origin or where}); read it, and if you trust it, "
            f"pass trust_remote_code=True, or set {TRUST_VARIABLE}=1 for commands."
        )
    source, arguments = trusted
    return get_class_from_dynamic_module(reference, source, **arguments)


def is_known(model_type: str) -> bool:
    """Whether transformers has code for it, which is then used instead of any that comes with the weights."""
    return model_type in CONFIG_MAPPING


def save_encoder_code(encoder: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Copies the code of an encoder from a local folder next to the model; code on the Hub stays where it is."""
    references = (getattr(encoder.config, "auto_map", None) or {}).values()
    if type(encoder).__module__.startswith("transformers_modules.") and not any("--" in str(one) for one in references):
        for one in (encoder, encoder.config):
            file = Path(str(sys.modules[type(one).__module__].__file__))
            for name in (file, *map(Path, get_relative_import_files(file))):
                if (Path(__file__).parent / name.name).exists():
                    raise ValueError(f"{name} would replace a file of mmfusion next to the weights; rename it.")
            custom_object_save(one, Path(folder))


def save_portable_code(kind: type[Any], folder: str | os.PathLike[str]) -> None:
    """Writes the file that defines a class next to the weights; one of ours is there already."""
    file = source_file(kind)
    if file is None:
        logger.warning(
            "The code of %s is not saved with the model: no file defines it. Move the class into a file of its own, or "
            "run that code again before you load the model.",
            kind.__qualname__,
        )
    elif file.name != "fusion.py":
        (Path(folder) / file.name).write_text(portable_source(file), "utf-8")


_PACKAGE = "mmfusion.model"
_PORTABLE = {"torch", "transformers", "__future__"} | sys.stdlib_module_names


def check_portable(kind: type[Any]) -> None:
    """Raises a ValueError if the file of a class would not run next to weights where mmfusion is not installed.

    It may import torch, transformers, mmfusion.model and the standard library, and must not have the name of a file of
    ours. Classes of a notebook, and those that came with weights, are not looked at.
    """
    file = source_file(kind)
    if file is None or kind.__module__.startswith((f"{_PACKAGE}.", "transformers_modules.")):
        return
    if (Path(__file__).parent / file.name).exists():
        raise ValueError(f"{file} would replace a file of mmfusion next to the weights; rename it.")
    portable_source(file)


def source_file(kind: type[Any]) -> Path | None:
    """The file that defines a class; None for one of a notebook, a prompt or a script."""
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return None if file is None or kind.__module__ == "__main__" else Path(file)


def portable_source(file: Path) -> str:
    """The text of a module with its imports of mmfusion.model made relative, as [`check_portable`] describes it."""
    text = file.read_text("utf-8")
    lines = text.splitlines(keepends=True)
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Import, ast.ImportFrom))]
    for node in sorted(imports, key=lambda node: node.lineno, reverse=True):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        allowed = True
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE):
            lines[node.lineno - 1 : node.end_lineno] = _relative(node)
        elif getattr(node, "level", 0):
            allowed = (Path(__file__).parent / f"{names[0]}.py").exists()
        else:
            allowed = {name.partition(".")[0] for name in names} <= _PORTABLE
        if not allowed:
            raise ValueError(
                f"{file}, line {node.lineno}, imports {', '.join(names)}; a file that is saved next to the weights may "
                f"import only torch, transformers, the standard library, and names `from {_PACKAGE}`."
            )
    return "".join(lines)


def _relative(node: ast.ImportFrom) -> list[str]:
    lines = []
    for alias in node.names:
        # `from mmfusion.model import …` names the package, of which the file that defines the name is published.
        home = node.module or ""
        if home == _PACKAGE:
            home = getattr(getattr(sys.modules[_PACKAGE], alias.name), "__module__", f"{_PACKAGE}.fusion")
        renamed = f" as {alias.asname}" if alias.asname else ""
        lines.append(f"{' ' * node.col_offset}from .{home.rpartition('.')[2]} import {alias.name}{renamed}\n")
    return lines


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
