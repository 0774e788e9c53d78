"""What a revision holds: model info, tree, paths."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import parse_qs, quote

from loopback_hub.blobs import Blob
from loopback_hub.cards import card_metadata
from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import entry_not_found
from loopback_hub.repository import Commit, Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("GET", "/api/{kinds}/{namespace}/{name}")
def information(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A repository at its main branch."""
    return information_at(state, request, {**values, "revision": "main"})


@route("GET", "/api/{kinds}/{namespace}/{name}/revision/{revision}")
def information_at(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A repository at a revision, open to everybody who may know of it even when its files are gated."""
    repository = state.repository(request, values)
    with repository.lock:
        commit = repository.commit(values["revision"])
        everything = _described(repository, commit, with_blobs=request.flag("blobs"))
    wanted = request.query.get("expand[]") or request.query.get("expand")
    if wanted:
        everything = {key: value for key, value in everything.items() if key in ("_id", "id", *wanted)}
    return json_answer(everything)


@route("GET", "/api/{kinds}/{namespace}/{name}/tree/{revision}")
def tree(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The files and folders at the top of a revision, or all of them (`recursive`)."""
    return tree_below(state, request, {**values, "path": ""})


@route("GET", "/api/{kinds}/{namespace}/{name}/tree/{revision}/{path...}")
def tree_below(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The files and folders of a folder."""
    _, commit = state.content(request, values)
    folder = values["path"].strip("/")
    below = folder + "/" if folder else ""
    if folder and not any(path.startswith(below) for path in commit.files):
        raise entry_not_found(folder)
    paths = _paths_below(commit.files, below, recursive=request.flag("recursive"))
    detailed = request.flag("expand")
    return _page(state, request, [_entry(commit, path, detailed=detailed) for path in paths])


@route("POST", "/api/{kinds}/{namespace}/{name}/paths-info/{revision}")
def paths_info(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The named files and folders; those that are not there are left out."""
    _, commit = state.content(request, values)
    as_json = "json" in request.headers.get("content-type", "")
    payload = request.json() if as_json else parse_qs(request.body.decode())
    detailed = "true" in str(payload.get("expand", "")).lower()
    asked = [str(path).rstrip("/") for path in payload.get("paths", [])]
    there = _paths_below(commit.files, "", recursive=True)
    return json_answer([_entry(commit, path, detailed=detailed) for path in asked if path in there])


def _described(repository: Repository, commit: Commit, *, with_blobs: bool) -> dict[str, Any]:
    readme = commit.files.get("README.md")
    card = card_metadata(readme.content.decode(errors="replace")) if readme is not None else None
    metadata = card if isinstance(card, dict) else {}
    tags = metadata.get("tags")
    return {
        "_id": hashlib.sha1(repository.id.encode()).hexdigest()[:24],
        "id": repository.id,
        "modelId": repository.id,
        "author": repository.namespace,
        "sha": commit.oid,
        "lastModified": _date(commit),
        "createdAt": _date(repository.commits()[-1]),
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "library_name": metadata.get("library_name"),
        "pipeline_tag": metadata.get("pipeline_tag"),
        "tags": [str(tag) for tag in tags] if isinstance(tags, list) else [],
        "cardData": metadata or None,
        "model-index": metadata.get("model-index"),
        "sdk": metadata.get("sdk", repository.sdk) if repository.kind == "space" else None,
        "siblings": [_sibling(path, commit.files[path], with_blobs) for path in sorted(commit.files)],
        "spaces": [],
        "usedStorage": sum(blob.size for blob in commit.files.values()),
    }


def _sibling(path: str, blob: Blob, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    described: dict[str, Any] = {"rfilename": path, "size": blob.size, "blobId": blob.git_oid}
    if blob.lfs:
        described["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    return described


def _paths_below(files: Iterable[str], below: str, *, recursive: bool) -> list[str]:
    found: set[str] = set()
    for path in files:
        if path.startswith(below):
            parts = path[len(below) :].split("/")
            depth = len(parts) if recursive else 1
            found.update(below + "/".join(parts[: end + 1]) for end in range(depth))
    return sorted(found)


def _entry(commit: Commit, path: str, *, detailed: bool) -> dict[str, Any]:
    blob = commit.files.get(path)
    if blob is None:
        entry = {"type": "directory", "path": path, "size": 0, "oid": _folder_oid(commit.files, path)}
    else:
        entry = {"type": "file", "path": path, "size": blob.size, "oid": blob.git_oid}
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}
    if detailed:
        entry["lastCommit"] = {"id": commit.oid, "title": commit.title, "date": _date(commit)}
    return entry


def _folder_oid(files: Mapping[str, Blob], folder: str) -> str:
    inside = sorted((path, blob.git_oid) for path, blob in files.items() if path.startswith(f"{folder}/"))
    return hashlib.sha1(repr(inside).encode()).hexdigest()


def _page(state: HubState, request: Request, entries: list[dict[str, Any]]) -> Answer:
    query = request.query
    start = int(query.get("cursor", ["0"])[0])
    end = start + min(int(query.get("limit", [str(state.page_size)])[0]), state.page_size)
    if end >= len(entries):
        return json_answer(entries[start:])
    kept = "".join(f"{name}={quote(query[name][0])}&" for name in ("recursive", "expand", "limit") if name in query)
    following = f'<{state.endpoint}{request.path}?{kept}cursor={end}>; rel="next"'
    return json_answer(entries[start:end], headers={"Link": following})


def _date(commit: Commit) -> str:
    return commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z")
