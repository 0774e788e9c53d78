"""Encoders whose code comes with their weights: it runs only where the caller trusts it, and nobody is asked."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save, get_class_from_dynamic_module

from .errors import HubError

TRUST_VARIABLE = "MMFUSION_TRUST_REMOTE_CODE"
"""Set to 1, commands run the code of the encoders of the models that they load."""

# Folder or Hub id of the model that is being loaded, where its caller trusts code that comes with it.
_trusted: ContextVar[str | None] = ContextVar("trusted", default=None)


@contextmanager
def trusting(source: str | os.PathLike[str], trust_remote_code: bool | None) -> Iterator[None]:
    """Lets encoders of `source` bring their own code inside the block, if the caller or the environment says so.

    None, which is "not said", leaves a block inside of another as trusting as the outer one.
    """
    trusts = trust_remote_code or os.environ.get(TRUST_VARIABLE) == "1"
    trusts = trusts or (trust_remote_code is None and _trusted.get() is not None)
    token = _trusted.set(str(source) if trusts else None)
    try:
        yield
    finally:
        _trusted.reset(token)


def remote_class(config: dict[str, Any] | PreTrainedConfig, kind: str, where: str = "the model folder") -> type[Any]:
    """The class that an encoder's config names in its `auto_map`.

    Args:
        config: The config, or its dict.
        kind: `"AutoConfig"` or `"AutoModel"`.
        where: Folder or Hub id that the config lies in, for error messages.

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
    source = _trusted.get()
    if source is None:
        raise HubError(
            f"{where} holds a {name!r} encoder, which needs code of its own ({path} in {origin or where}); read that, "
            f"and if you trust it, pass trust_remote_code=True, or set {TRUST_VARIABLE}=1 for commands."
        )
    return get_class_from_dynamic_module(reference, source)


def is_known(model_type: str) -> bool:
    """Whether transformers has code for it, which is then used instead of any that comes with the weights."""
    return model_type in CONFIG_MAPPING


def save_code(encoder: PreTrainedModel, folder: str | os.PathLike[str]) -> None:
    """Copies the code of an encoder from a local folder beside the model; code on the Hub stays where it is."""
    references = (getattr(encoder.config, "auto_map", None) or {}).values()
    if type(encoder).__module__.startswith("transformers_modules.") and not any("--" in str(one) for one in references):
        for one in (encoder, encoder.config):
            custom_object_save(one, Path(folder))
