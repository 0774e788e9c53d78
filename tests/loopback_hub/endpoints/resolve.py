"""How files get out: from the Hub itself, or by a redirect to the storage for large ones."""

from __future__ import annotations

import re

from loopback_hub.blobs import Blob
from loopback_hub.messages import Answer, Request
from loopback_hub.refusals import RefusalError, entry_not_found
from loopback_hub.routes import route
from loopback_hub.state import HubState

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@route("GET", "/{namespace}/{name}/resolve/{revision}/{path...}")
def resolve_of_model(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A file of a model."""
    return resolve(state, request, {**values, "kinds": "models"})


@route("GET", "/{kinds}/{namespace}/{name}/resolve/{revision}/{path...}")
def resolve(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A file at a revision, whole or a range of it; a large one by its address on the storage."""
    repository, commit = state.content(request, values)
    path = values["path"]
    blob = commit.files.get(path)
    if blob is None:
        refusal = entry_not_found(path)
        refusal.more_headers["X-Repo-Commit"] = commit.oid
        raise refusal
    headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if not blob.lfs:
        return _content(request, blob, headers, f"{repository.id}/{path}")
    address = state.signed("GET", f"/cdn/{repository.kind}/{repository.id}/{blob.sha256}/{path}")
    linked = {"X-Linked-Size": str(blob.size), "X-Linked-ETag": f'"{blob.sha256}"', "Location": address}
    return Answer(302, b"", {**headers, **linked})


@route("GET", "/cdn/{kind}/{namespace}/{name}/{oid}/{path...}")
def deliver(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A large file from the storage, to everybody with the signed address and nobody with a token."""
    state.check_signed(request)
    repository = state.repositories.get((values["kind"], f"{values['namespace']}/{values['name']}"))
    if repository is None or not request.to_storage:
        raise RefusalError(404, "NoSuchKey")
    content = repository.large_files.verify(values["oid"], None)
    headers = {"ETag": f'"{values["oid"]}"', "Accept-Ranges": "bytes"}
    return _content(request, Blob(content, lfs=True), headers, f"{repository.id}/{values['path']}")


def _content(request: Request, blob: Blob, headers: dict[str, str], counted_as: str) -> Answer:
    headers = {**headers, "Content-Type": "application/octet-stream"}
    asked = RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or asked.groups() == ("", ""):
        return Answer(200, blob.content, headers, counted_as)
    first, last = asked.groups()
    start = int(first) if first else max(blob.size - int(last), 0)
    end = min(int(last) + 1 if first and last else blob.size, blob.size)
    if start >= end:
        refusal = RefusalError(416, "Range Not Satisfiable")
        refusal.more_headers["Content-Range"] = f"bytes */{blob.size}"
        raise refusal
    span = {"Content-Range": f"bytes {start}-{end - 1}/{blob.size}"}
    return Answer(206, blob.content[start:end], {**headers, **span}, counted_as)
