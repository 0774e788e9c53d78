"""The answers of a Hub that says no, with the headers by which the client tells them apart."""

from __future__ import annotations


class RefusalError(Exception):
    """A request that the Hub refuses.

    Args:
        status: HTTP status, 400..599.
        message: what the client shows, the `X-Error-Message` of the answer.
        code: the `X-Error-Code` that the client's exceptions are chosen by (None: no such header).
        body: JSON of the answer; by default `{"error": message}`.

    `more_headers` may be added to before it is raised.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, body: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.more_headers: dict[str, str] = {}
        self.body: dict[str, object] = {"error": message} if body is None else body

    def headers(self) -> dict[str, str]:
        """The headers of the answer, besides its type and length."""
        headers = {"X-Error-Message": self.message, **self.more_headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return headers


def bad_request(message: str) -> RefusalError:
    """The request itself is wrong (400)."""
    return RefusalError(400, message)


def repository_not_found(*, authenticated: bool) -> RefusalError:
    """No such repository, or none that this account may know of: 401 to a stranger, 404 to anybody else."""
    if authenticated:
        return RefusalError(404, "Repository not found", code="RepoNotFound")
    return RefusalError(401, "Invalid username or password.", code="RepoNotFound")


def revision_not_found(revision: str) -> RefusalError:
    """The repository has no such branch, tag, pull request or commit."""
    return RefusalError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str) -> RefusalError:
    """The revision has no such file or folder."""
    return RefusalError(404, f"{path} does not exist", code="EntryNotFound")


def gated(repository: str, *, authenticated: bool) -> RefusalError:
    """A gated repository whose terms this account has not accepted."""
    if authenticated:
        message = f"Access to model {repository} is restricted and you are not in the authorized list."
        return RefusalError(403, f"{message} Visit its page to ask for access.", code="GatedRepo")
    message = f"Access to model {repository} is restricted. You must have access to it and be authenticated"
    return RefusalError(401, f"{message} to access it. Please log in.", code="GatedRepo")


def bad_token() -> RefusalError:
    """The Authorization header holds no token that the Hub knows."""
    return RefusalError(401, "Invalid credentials in Authorization header")


def forbidden(message: str) -> RefusalError:
    """The account is known and may not do this (403)."""
    return RefusalError(403, message)
