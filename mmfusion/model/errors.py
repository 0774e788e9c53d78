"""Errors of mmfusion, and one line for what goes wrong between this machine and the Hub."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


class MMFusionError(ValueError):
    """Base of all errors that mmfusion defines; the message names the value, its place, and what to do."""


class HubError(MMFusionError, OSError):
    """A repository cannot be read or written; the text is one line that says why and what to do.

    It is an `OSError` as well, because that is what transformers raises, and what its callers catch, in these cases.
    """


class UnsuitedError(MMFusionError):
    """An encoder lacks what is asked of it: a pooled state of its own, or blocks whose states go together."""


def explain(error: BaseException, repo: str, revision: str | None = None) -> HubError:
    """The error as one line, with `error` itself for its cause.

    Args:
        error: What huggingface_hub, transformers, safetensors or a socket raised.
        repo: Repository (`org/name`) or local folder that was asked for.
        revision: Branch, tag or commit that was asked for; None is the default branch.

    Example:
        >>> str(explain(OfflineModeIsEnabled("…"), "org/mm-ecom"))
        'org/mm-ecom is not in the cache and HF_HUB_OFFLINE=1 forbids to fetch it; load it once online, or unset the variable.'
    """  # noqa: E501 (a doctest is one line)
    if isinstance(error, HubError):
        return error
    explained = HubError(_recognise(error, repo, revision) or f"{repo}: {_first_line(error)}")
    explained.__cause__ = error
    return explained


@contextmanager
def explained(repo: Any, revision: str | None = None) -> Iterator[None]:
    """Turns errors inside that have a line into a [`HubError`] of that line; all others pass as they are."""
    handled = sys.exc_info()[1]
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        text = _recognise(error, str(repo), revision, until=handled)
        if text is None:
            raise
        raise HubError(text) from error


def _recognise(error: BaseException, repo: str, revision: str | None, until: BaseException | None = None) -> str | None:
    """The line for an error, or for what it was raised from; None: there is none.

    `until` is an error that was being handled before the failing call began, and did not cause this one.
    """
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause is not until and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    names = {"repo": repo, "revision": revision or "main", "hub": constants.ENDPOINT}
    for describe in (_of_the_hub, _of_the_connection, _of_the_files):
        for one in causes:
            text = describe(one)
            if text is not None:
                return text.format(**names, said=_first_line(one))
    return None


# The first row whose class an error is.
_OF_THE_HUB: tuple[tuple[type[Exception], str], ...] = (
    (
        GatedRepoError,
        "{repo} is gated; ask for access at {hub}/{repo}, then log in with `hf auth login` or pass token=….",
    ),
    (DisabledRepoError, "{repo} was disabled by its owner or by the Hub; see {hub}/{repo}."),
    (
        RevisionNotFoundError,
        "{repo} has no revision {revision!r}; see its branches and tags at {hub}/{repo}/tree/main.",
    ),
    (
        HFValidationError,
        "{repo!r} is neither a folder on this machine nor the name of a repository; give a folder, or org/name.",
    ),
)
_OF_A_STATUS = {
    401: "The Hub does not know the token that was sent for {repo}; log in again with `hf auth login`.",
    403: "The token may not do this to {repo}%s; use one with write access to it.",
    409: "{repo} was changed by someone else at the same time%s; try again.",
    412: "{repo} was changed by someone else at the same time%s; try again.",
    429: "The Hub takes no more requests for now (429) for {repo}; wait some minutes and try again.",
}


def _of_the_hub(error: BaseException) -> str | None:
    response: Any = getattr(error, "response", None)
    for kind, text in _OF_THE_HUB:
        if isinstance(error, kind):
            return text
    if isinstance(error, RepositoryNotFoundError):
        sent = "authorization" in getattr(getattr(response, "request", None), "headers", {})
        why = "your token may not read it" if sent else "no token was sent"
        return (
            "{repo} does not exist at {hub}, or it is private, and " + why + "; check the spelling, and for a private "
            "repository log in with `hf auth login` as a member with access, or pass token=…."
        )
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        file = str(getattr(response, "url", "")).partition("/resolve/")[2].partition("/")[2]
        return "{repo} (revision {revision}) lacks a file that was asked for: " + (_escaped(file) or "{said}") + "."
    if not isinstance(error, HfHubHTTPError):
        return None
    status, said = response.status_code, str(error.server_message or "").strip().splitlines()
    reason = f" ({_escaped(said[0])})" if said else ""
    if status in _OF_A_STATUS:
        return _OF_A_STATUS[status].replace("%s", reason)
    if status >= 500:
        return f"The Hub at {{hub}} has an internal error ({status}) for {{repo}}; try again later."
    return f"The Hub rejects the request for {{repo}} ({status}){reason}."


def _of_the_connection(error: BaseException) -> str | None:
    # The HTTP library is httpx in one supported version of huggingface_hub and httpx2 in another, hence the names.
    broken = is_a(error, "RemoteProtocolError", "ReadError", "WriteError")
    if broken or "Consistency check failed" in str(error):
        return "The transfer of {repo} broke off before its end; run it again, what has arrived is kept."
    absent = isinstance(error, LocalEntryNotFoundError)
    if isinstance(error, OfflineModeIsEnabled) or (absent and constants.is_offline_mode()):
        return (
            "{repo} is not in the cache and HF_HUB_OFFLINE=1 forbids to fetch it; load it once online, or unset the "
            "variable."
        )
    if absent or isinstance(error, ConnectionError) or is_a(error, "TransportError"):
        missing = ", and {repo} is not in the cache" if absent else ""
        return "The Hub at {hub} cannot be reached" + missing + "; check the network and try again."
    return None


def _of_the_files(error: BaseException) -> str | None:
    if is_a(error, "SafetensorError"):
        return (
            "The weights of {repo} are truncated or damaged ({said}); fetch them again with force_download=True, or "
            "copy the folder again."
        )
    if isinstance(error, JSONDecodeError) or "is not a valid JSON file" in str(error):
        return "A file of {repo} is truncated or damaged ({said}); fetch it again (force_download=True)."
    if "does not appear to have a file named config.json" in str(error):
        return "{repo} (revision {revision}) holds no model: it has no config.json."
    return None


def is_a(error: BaseException, *names: str) -> bool:
    """Whether the class of an error, or one that it comes from, has one of these names."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
