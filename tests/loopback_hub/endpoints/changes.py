"""How files get in: what kind each will be, and the commit of all of them at once."""

from __future__ import annotations

import base64
import binascii
import fnmatch
import json
from typing import Any

from loopback_hub.accounts import Account
from loopback_hub.blobs import Blob
from loopback_hub.cards import card_problems
from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError, bad_request
from loopback_hub.repository import Commit, Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("POST", "/api/{kinds}/{namespace}/{name}/preupload/{revision}")
def preupload(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Which of the files are to go to the large file storage, and what is there under their names."""
    repository, _ = state.writable(request, values)
    commit = repository.commit(values["revision"])
    patterns = _large_patterns(commit)
    found = []
    for file in request.json().get("files", []):
        path, there = file["path"], commit.files.get(file["path"])
        named = any(fnmatch.fnmatch(path.split("/")[-1], pattern) for pattern in patterns)
        mode = "lfs" if named or file["size"] >= state.large_from else "regular"
        oid = None if there is None else there.etag
        found.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
    return json_answer({"files": found, "commitOid": commit.oid})


@route("POST", "/api/{kinds}/{namespace}/{name}/commit/{revision}")
def commit(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Put all of the changes on top of a branch, or on a new pull request, or none of them anywhere."""
    repository, account = state.writable(request, values)
    lines = _lines(request.body)
    header = next((line["value"] for line in lines if line["key"] == "header"), None)
    if header is None or not header.get("summary"):
        raise bad_request('The commit has no header with a "summary"')
    with repository.lock:
        parent = repository.commit(values["revision"])
        if header.get("parentCommit") not in (None, parent.oid):
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = _changed(repository, parent, lines)
        return _write(state, request, repository, account, values["revision"], header, files)


def _write(
    state: HubState,
    request: Request,
    repository: Repository,
    account: Account,
    revision: str,
    header: dict[str, Any],
    files: dict[str, Blob],
) -> Answer:
    ref, address = revision, None
    prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
    url = f"{state.endpoint}/{prefix}{repository.id}"
    if request.flag("create_pr"):
        pull = repository.open_pull_request(revision, header["summary"], account.name)
        ref, address = f"refs/pr/{pull.number}", f"{url}/discussions/{pull.number}"
    new = repository.append(ref, files, header["summary"], header.get("description") or "", account.name)
    answer = {"success": True, "commitOid": new.oid, "commitUrl": f"{url}/commit/{new.oid}", "hookOutput": ""}
    return json_answer({**answer, "pullRequestUrl": address} if address else answer)


def _lines(body: bytes) -> list[dict[str, Any]]:
    try:
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
    except ValueError as error:
        raise bad_request(f"A line of the commit is not JSON: {error}") from None
    if not all(isinstance(line, dict) and isinstance(line.get("value"), dict) and "key" in line for line in lines):
        raise bad_request('A line of the commit has no "key" and "value"')
    return lines


def _changed(repository: Repository, parent: Commit, lines: list[dict[str, Any]]) -> dict[str, Blob]:
    files = dict(parent.files)
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "header":
            continue
        path = _checked_path(str(value.get("path")))
        if key == "file":
            files[path] = Blob(_decoded(value))
            _check_card(path, files[path])
        elif key == "lfsFile":
            files[path] = Blob(repository.large_files.verify(value["oid"], value.get("size")), lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise bad_request(f"{path} cannot be deleted: it does not exist")
        elif key == "deletedFolder":
            files = _without_folder(files, path)
        else:
            raise bad_request(f"Unknown operation {key!r}")
    return files


def _decoded(value: dict[str, Any]) -> bytes:
    if value.get("encoding") != "base64":
        return str(value["content"]).encode()
    try:
        return base64.b64decode(value["content"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"The content of {value['path']} is not base64: {error}") from None


def _check_card(path: str, blob: Blob) -> None:
    if path == "README.md":
        errors, _ = card_problems(blob.content.decode(errors="replace"))
        if errors:
            raise bad_request("Invalid metadata in README.md: " + "; ".join(errors))


def _checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if any(part in ("", ".", "..", ".git") for part in parts) or "\\" in path or "\0" in path:
        raise bad_request(f"Invalid path {path!r}")
    return path.rstrip("/")


def _without_folder(files: dict[str, Blob], folder: str) -> dict[str, Blob]:
    kept = {path: blob for path, blob in files.items() if not path.startswith(f"{folder}/")}
    if len(kept) == len(files):
        raise bad_request(f"The folder {folder} cannot be deleted: it does not exist")
    return kept


def _large_patterns(commit: Commit) -> list[str]:
    attributes = commit.files.get(".gitattributes")
    lines = [] if attributes is None else attributes.content.decode(errors="replace").splitlines()
    return [line.split()[0] for line in lines if "filter=lfs" in line.split()]
