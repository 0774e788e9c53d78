"""What must not be published: folders, users, hosts and tokens are cut out of what a machine wrote down."""

from __future__ import annotations

import getpass
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from huggingface_hub import get_token

from mmfusion.model.errors import MMFusionError

_TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16})\b")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>|]+", re.IGNORECASE)
# A path that starts at a root or at a home, where a word begins: fractions and `a/b` are none.
_PATH = re.compile(
    r"(?:(?<=[\s'\"=,;(\[])|(?<=:)(?!//)|^)(?:~[\w.-]*|[A-Za-z]:)?[/\\](?:[^\s'\"/\\,;)\]]+[/\\])*[^\s'\"/\\,;)\]]*"
)
# Of a person or of a host; `recall@100` is neither.
_ADDRESS = re.compile(r"\b[\w.+-]+@[A-Za-z][\w-]*(?:(?:\.[\w-]+)+|(?=:))")
# Words of commands, too.
_COMMON_NAMES = {"localhost", "root", "user", "ubuntu", "admin", "runner", "main", "test", "train", "data", "model"}
_SHORTEST_NAME = 4
_SHOWN = ("recipe", "arguments", "versions", "python", "parameters", "seconds_since_start")
_SECRET = re.compile(r"(^|_)(token|secret|password|passwd|api_key|credentials?)($|_)", re.IGNORECASE)
_REMOVED = "(removed)"


class CardError(MMFusionError):
    """A card cannot be written or read, or a text must not be published.

    Args:
        what: What is wrong, with the value.
        place: The file, and the field in it.
        remedy: What to do.
    """

    def __init__(self, what: str, place: str, remedy: str) -> None:
        super().__init__(f"{place}: {what}; {remedy}")


def recipe_config(record: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's record that says how to repeat it, without what belongs to this machine alone.

    Args:
        record: Content of a run.json.

    Returns:
        Recipe, arguments, versions and time. Of a path the last part is kept ("…/fpi"), secrets read "(removed)".
    """
    config: dict[str, Any] = public(without_secrets({name: record[name] for name in _SHOWN if name in record}))
    return config


def without_secrets(value: Any) -> Any:
    """A copy of JSON-like values in which texts that hold a token, and what is named a secret, read "(removed)"."""
    if isinstance(value, Mapping):
        return {
            name: _REMOVED if _SECRET.search(str(name)) else without_secrets(inner) for name, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return _REMOVED if isinstance(value, str) and _lines_with_tokens(value) else value


def public(value: Any) -> Any:
    """A copy of JSON-like values in which paths keep their last part only, and users, hosts and tokens are cut out.

    Args:
        value: Any JSON value.

    Returns:
        The same structure; a path reads "…/name", a URL keeps its last part unless it is of a public model hub.
    """
    if isinstance(value, Mapping):
        return {name: public(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    if isinstance(value, str):
        value = public_text(value)
        for name in _local_names():
            value = re.sub(rf"\b{re.escape(name)}\b", "…", value)
    return value


def public_text(text: str) -> str:
    """A text without folders of a machine, addresses and tokens."""
    text = _URL.sub(lambda found: _short(found[0]), _TOKEN.sub("…", text))
    if os.path.isabs(text) and " " in text and not re.search(r"\s-", text):
        return _short(text)
    return _ADDRESS.sub("…", _PATH.sub(lambda found: _short(found[0]), text))


def check_no_secret(text: str, place: str) -> None:
    """Raises an error if a text holds an access token.

    Raises:
        CardError: It does; the message names the line, and not the token.
    """
    if found := _lines_with_tokens(text):
        raise CardError(
            "this line holds an access token", f"{place}, line {found[0]}", "take it out, and revoke the token"
        )


def _lines_with_tokens(text: str) -> list[int]:
    named = [value for name, value in os.environ.items() if name.endswith(("TOKEN", "API_KEY", "SECRET", "PASSWORD"))]
    known = {value for value in (get_token(), *named) if value and len(value) >= 8}
    return [
        number
        for number, line in enumerate(text.splitlines(), start=1)
        if _TOKEN.search(line) or any(value in line for value in known)
    ]


def _short(path: str) -> str:
    if re.match(r"https?://(huggingface\.co|arxiv\.org|doi\.org|github\.com)/[^?#]*$", path):
        return path
    last = re.split(r"[/\\]", re.split(r"[?#]", path)[0].rstrip("/\\"))[-1]
    return f"…/{last}" if last and not last.endswith(":") else path if len(path) <= 1 else "…"


def _local_names() -> list[str]:
    names = {socket.gethostname(), socket.gethostname().split(".")[0]}
    with suppress(OSError, KeyError):
        names.add(getpass.getuser())
    return [name for name in sorted(names) if len(name) >= _SHORTEST_NAME and name.lower() not in _COMMON_NAMES]
