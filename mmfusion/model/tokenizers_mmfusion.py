"""A tokenizer from a folder or the Hub, or one line that says what it lacks: a package, or its vocabulary."""

import re
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from .errors import HubError, explained

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
            which transformers would give a tokenizer that reads every text alike.
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
        return f"The tokenizer of {source} cannot be made of the files there; {_COPY_AGAIN}"
    return None


__all__ = ["open_tokenizer"]
