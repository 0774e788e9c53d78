"""Tokenizers of text encoders, and the settings of a processor that follow from a checkpoint."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from .errors import HubError, explained
from .families import LEGACY_END, is_legacy_end, max_tokens, pads_to_full_length, text_end
from .sentence_transformers_folder import SentenceEncoder, read_sentence_encoder
from .weights import read_config

logger = logging.getLogger(__name__)

# transformers words the same thing in three ways.
_PACKAGE = re.compile(r"You need to install ([\w-]+) to|requires the ([\w-]+) library|`([\w-]+)` is required to read")
# A tokenizer of more tokens than that has words among them, and need not be asked.
_FEW = 1_000
_COPY_AGAIN = (
    "copy or fetch it again with its vocabulary (tokenizer.json, vocab.txt, vocab.json with merges.txt, or *.model), "
    "or save it with `save_pretrained` of its own class."
)


def open_tokenizer(source: Any, **kwargs: Any) -> Any:
    """`AutoTokenizer.from_pretrained`, with errors of one line.

    Raises:
        HubError: It cannot be fetched, a package is missing that it is made with, or its vocabulary is missing, for
            which transformers would give a tokenizer that reads every text the same way.
    """
    try:
        with explained(source, kwargs.get("revision")):
            tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    except HubError:
        raise
    except Exception as error:
        text = _what_is_missing(source, error)
        if text is None:
            raise
        raise HubError(text) from error
    if len(tokenizer) < _FEW and len({*tokenizer.get_vocab()} - {*tokenizer.get_added_vocab()}) < 2:
        raise HubError(f"The tokenizer of {source} has special tokens and no vocabulary; {_COPY_AGAIN}")
    return tokenizer


def _what_is_missing(source: Any, error: Exception) -> str | None:
    packages = [name for match in _PACKAGE.findall(str(error)) for name in match if name]
    if "tiktoken" in packages:
        # transformers takes a SentencePiece model for a file of tiktoken where it cannot read the former.
        readers = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
        packages = [name for name, is_there in readers.items() if not is_there] or packages
    if packages:
        names = " ".join(dict.fromkeys(name.lower() for name in packages))
        return f"The tokenizer of {source} needs a package that is not installed: pip install {names}"
    if isinstance(error, AttributeError | TypeError) or re.search("instantiate the backend|model_file or", str(error)):
        return f"The tokenizer of {source} cannot be built from the files there; {_COPY_AGAIN}"
    return None


# Tokenizers that know no limit say about 1e30.
_NO_LIMIT = 1_000_000_000
# Where a folder of sentence-transformers sets none, its texts are not cut at all.
_LONG = 512


def load_tokenizer(source: str, given: Mapping[str, Any], *, trust_remote_code: bool) -> tuple[Any, dict[str, Any]]:
    """The tokenizer of an encoder and, by name, the fields of a processor that its checkpoint decides.

    Args:
        source: Folder or Hub id of the text encoder, of a dual encoder, or of a tokenizer alone.
        given: Fields that are decided already.
        trust_remote_code: Whether code that comes with the encoder may run.

    Raises:
        ValueError: Tokenizer and encoder do not fit together, or a length is above what the encoder takes.
    """
    said = read_sentence_encoder(source)
    folder = source if said is None else said.folder
    tokenizer = open_tokenizer(folder, trust_remote_code=trust_remote_code)
    # The last token of a text is then where its mask ends, and its first token has the first position.
    tokenizer.padding_side = "right"
    # What is saved is what it was made with; Gemma's class would pad on the left again.
    tokenizer.init_kwargs["padding_side"] = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if said is not None and said.lower_case:
        _lower_case(tokenizer)
    config = _text_config(folder, trust_remote_code)
    if config is not None:
        check_tokenizer(source, tokenizer, config)
    fields: dict[str, Any] = {}
    if said is not None:
        fields = {"query_prompt": said.query_prompt, "product_prompt": said.product_prompt}
    if config is not None and pads_to_full_length(config):
        fields["pad_to_max_length"] = True
    return tokenizer, {**fields, **given, **_lengths(source, tokenizer, config, said, given)}


def _text_config(source: str, trust_remote_code: bool) -> PreTrainedConfig | None:
    """None for a folder that holds a tokenizer alone."""
    try:
        config = read_config(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return None
    # BLIP-2's text_config is that of its language model.
    return getattr(config, "qformer_config", None) or getattr(config, "text_config", None) or config


def check_tokenizer(source: str, tokenizer: Any, config: PreTrainedConfig) -> None:
    """Raises a ValueError if a tokenizer has ids that the encoder has not, or ends texts as it does not expect.

    Args:
        source: Where they come from, for the message.
        tokenizer: The tokenizer.
        config: Config of the text encoder.
    """
    highest, rows = max(tokenizer.get_vocab().values()), getattr(config, "vocab_size", None)
    if isinstance(rows, int) and highest >= rows:
        raise ValueError(
            f"{source}: the tokenizer has ids up to {highest}, and the text encoder has {rows} embeddings (0 to "
            f"{rows - 1}); use the tokenizer that it was trained with, or resize_token_embeddings first."
        )
    end = text_end(config)
    if end is None:
        return
    if end == "highest id" and not is_legacy_end(config):
        expected, why = highest, "pools the token with the highest id"
    elif is_legacy_end(config):
        # `load_text` puts the tokenizer's own in place of the wrong one.
        expected, why = tokenizer.eos_token_id, "pools the end token"
    else:
        expected, why = config.eos_token_id, f"pools the token {config.eos_token_id}, its config's eos_token_id"
    ids = tokenizer("a")["input_ids"]
    if not ids or ids[-1] != expected:
        raise ValueError(
            f"{source}: the text encoder {why}, and the tokenizer ends a text with {ids[-1] if ids else None} "
            f"(its own end token is {tokenizer.eos_token_id}, expected is {expected}), so that texts would get one "
            "vector, or a wrong one; use the tokenizer that it was trained with, or correct eos_token_id in its config."
        )


def end_token(source: str, *, trust_remote_code: bool = False) -> int | None:
    """The id of a checkpoint's end token by its tokenizer; None if it has no tokenizer or no such token."""
    try:
        tokenizer = open_tokenizer(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError):
        return None
    found: int | None = tokenizer.eos_token_id
    return None if found == LEGACY_END else found


def _lengths(
    source: str,
    tokenizer: Any,
    config: PreTrainedConfig | None,
    said: SentenceEncoder | None,
    given: Mapping[str, Any],
) -> dict[str, int]:
    positions = None if config is None else max_tokens(config)
    if said is not None and (said.max_product_length or said.max_query_length):
        tokenizer.model_max_length = max(said.max_query_length or 0, said.max_product_length or 0)
    cut_at = tokenizer.model_max_length if tokenizer.model_max_length < _NO_LIMIT else None
    limit = min(filter(None, (positions, cut_at)), default=None)
    if limit is not None:
        tokenizer.model_max_length = limit
    own: dict[str, int | None] = {"max_query_length": 32, "max_product_length": 64}
    if config is not None and pads_to_full_length(config):
        own = dict.fromkeys(own, positions)
    elif said is not None:
        own = {name: getattr(said, name) or limit or _LONG for name in own}
    lengths = {}
    for name, default in own.items():
        wanted = given.get(name, default)
        if name in given and positions is not None and isinstance(wanted, int) and wanted > positions:
            raise ValueError(
                f"{name} is {wanted}, and the text encoder of {source} has positions for {positions} tokens; give at "
                f"most {positions}."
            )
        if isinstance(wanted, int) and limit is not None and wanted > limit:
            if name in given:
                logger.warning("%s is %d, and the tokenizer of %s cuts texts at %d tokens", name, wanted, source, limit)
            wanted = limit
        lengths[name] = wanted
    return lengths


def _lower_case(tokenizer: Any) -> None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        tokenizer.do_lower_case = True
        return
    fields = json.loads(backend.to_str())
    before = fields["normalizer"]
    steps = [] if before is None else before["normalizers"] if before["type"] == "Sequence" else [before]
    if not any(step["type"] == "Lowercase" or step.get("lowercase") for step in steps):
        fields["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]}
        tokenizer._tokenizer = type(backend).from_str(json.dumps(fields))
