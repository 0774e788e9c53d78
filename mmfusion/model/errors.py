"""One line for whatever goes wrong between this machine and the Hub: which it is, and what to do."""

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
    text = recognise(error, repo, revision)
    explained = HubError(text or f"{repo}: {_first_line(error)}")
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
        text = recognise(error, str(repo), revision, until=handled)
        if text is None:
            raise
        raise HubError(text) from error


def recognise(
    error: BaseException, repo: str, revision: str | None = None, until: BaseException | None = None
) -> str | None:
    """The line of [`explain`] if the error, or what caused it, is one that has such a line; otherwise None.

    Args:
        error, repo, revision: As for [`explain`].
        until: An error that was being handled before the failing call began, and did not cause it.
    """
    causes = list(_causes(error, until))
    for describe in (_of_the_hub, _of_the_connection, _of_the_files):
        for cause in causes:
            text = describe(cause, repo, revision)
            if text is not None:
                return text
    return None


def _causes(error: BaseException | None, until: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and error is not until and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _of_the_hub(error: BaseException, repo: str, revision: str | None) -> str | None:
    page = f"{constants.ENDPOINT}/{repo}"
    if isinstance(error, GatedRepoError):
        return f"{repo} is gated; ask for access at {page}, then log in with `hf auth login` or pass token=…."
    if isinstance(error, DisabledRepoError):
        return f"{repo} was disabled by its owner or by the Hub; see {page}."
    if isinstance(error, RepositoryNotFoundError):
        if _sent_a_token(error):
            return (
                f"{repo} does not exist at {constants.ENDPOINT}, or it is private and your token may not read it; "
                "check the spelling, and that the token belongs to a member with access."
            )
        return (
            f"{repo} does not exist at {constants.ENDPOINT}, or it is private, and no token was sent; check the "
            "spelling, and for a private repository log in with `hf auth login` or pass token=…."
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo} has no revision {revision or 'main'!r}; see its branches and tags at {page}/tree/main."
    if isinstance(error, HFValidationError):
        return f"{repo!r} is no folder on this machine and no name of a repository; give a folder, or org/name."
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"{repo} (revision {revision or 'main'}) lacks a file that was asked for: {_file_of(error)}."
    if isinstance(error, HfHubHTTPError):
        return _of_status(error, repo)
    return None


def _of_status(error: HfHubHTTPError, repo: str) -> str:
    status = error.response.status_code
    said = str(error.server_message or "").strip().splitlines()
    reason = f" ({said[0]})" if said else ""
    if status == 401:
        return f"The Hub does not know the token that was sent for {repo}; log in anew with `hf auth login`."
    if status == 403:
        return f"The token may not do this to {repo}{reason}; use one with write access to it."
    if status in (409, 412):
        return f"{repo} was changed by somebody else at the same time{reason}; try again."
    if status == 429:
        return f"The Hub refuses more requests for now (429) for {repo}; wait some minutes and try again."
    if status >= 500:
        return f"The Hub at {constants.ENDPOINT} has a fault of its own ({status}) at {repo}; try again later."
    return f"The Hub refuses the request for {repo} ({status}){reason}."


def _of_the_connection(error: BaseException, repo: str, revision: str | None) -> str | None:
    # The HTTP library is httpx in one supported version of huggingface_hub and httpx2 in another, hence the names.
    broken = is_a(error, "RemoteProtocolError", "ReadError", "WriteError")
    if broken or "Consistency check failed" in str(error):
        return f"The transfer of {repo} broke off before its end; run it again, what has arrived is kept."
    absent = isinstance(error, LocalEntryNotFoundError)
    if isinstance(error, OfflineModeIsEnabled) or (absent and constants.is_offline_mode()):
        return (
            f"{repo} is not in the cache and HF_HUB_OFFLINE=1 forbids to fetch it; load it once online, or unset the "
            "variable."
        )
    if absent or isinstance(error, ConnectionError) or is_a(error, "TransportError"):
        missing = f", and {repo} is not in the cache" if absent else ""
        return f"The Hub at {constants.ENDPOINT} cannot be reached{missing}; check the network and try again."
    return None


def _of_the_files(error: BaseException, repo: str, revision: str | None) -> str | None:
    if is_a(error, "SafetensorError"):
        return (
            f"The weights of {repo} are truncated or damaged ({_first_line(error)}); fetch them again with "
            "force_download=True, or copy the folder again."
        )
    if isinstance(error, JSONDecodeError) or "is not a valid JSON file" in str(error):
        return f"A file of {repo} is truncated or damaged ({_first_line(error)}); fetch it again (force_download=True)."
    if "does not appear to have a file named config.json" in str(error):
        return f"{repo} (revision {revision or 'main'}) holds no model: it has no config.json."
    return None


def _sent_a_token(error: HfHubHTTPError) -> bool:
    request: Any = getattr(error.response, "request", None)
    return "authorization" in getattr(request, "headers", {})


def _file_of(error: BaseException) -> str:
    url: Any = getattr(getattr(error, "response", None), "url", None)
    return str(url).partition("/resolve/")[2].partition("/")[2] or _first_line(error)


def is_a(error: BaseException, *names: str) -> bool:
    """Whether the class of an error, or one that it comes from, has one of these names."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
