"""The large file storage: where each object goes, its transfer in one piece or in parts, its verification."""

from __future__ import annotations

import re
from typing import Any

from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError, bad_request
from loopback_hub.repository import Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState

OID = re.compile(r"[0-9a-f]{64}")


@route("POST", "/{namespace}/{git}/info/lfs/objects/batch")
def batch_of_model(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Where each object is to be sent; nothing for those that are stored."""
    return batch(state, request, {**values, "kinds": "models"})


@route("POST", "/{kinds}/{namespace}/{git}/info/lfs/objects/batch")
def batch(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The same for data sets and spaces."""
    repository = _to_write(state, request, values)
    payload = request.json()
    if payload.get("operation") != "upload":
        raise bad_request(f"This storage has no operation {payload.get('operation')!r}")
    multipart = "multipart" in payload.get("transfers", [])
    objects = [_where(state, repository, item["oid"], item["size"], multipart) for item in payload["objects"]]
    return json_answer({"transfer": "multipart" if multipart else "basic", "objects": objects})


@route("POST", "/{namespace}/{git}/info/lfs/objects/verify")
def verify_of_model(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Check what was sent against its SHA-256 and size."""
    return verify(state, request, {**values, "kinds": "models"})


@route("POST", "/{kinds}/{namespace}/{git}/info/lfs/objects/verify")
def verify(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The same for data sets and spaces."""
    repository = _to_write(state, request, values)
    payload = request.json()
    repository.large_files.verify(payload["oid"], payload["size"])
    return json_answer({"success": True})


@route("PUT", "/storage/{kind}/{namespace}/{name}/{oid}")
def receive(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A whole file."""
    _stored_in(state, request, values).large_files.receive(values["oid"], request.body)
    return Answer()


@route("PUT", "/storage/{kind}/{namespace}/{name}/{oid}/{part}")
def receive_part(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """One part of a file."""
    if len(request.body) > state.part_size:
        raise bad_request(f"A part of {len(request.body)} bytes is larger than {state.part_size} bytes")
    files = _stored_in(state, request, values).large_files
    return Answer(headers={"ETag": files.receive_part(values["oid"], int(values["part"]), request.body)})


@route("POST", "/storage/{kind}/{namespace}/{name}/{oid}/complete")
def complete(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """All parts were sent."""
    files = _stored_in(state, request, values).large_files
    parts: list[dict[str, Any]] = sorted(request.json()["parts"], key=lambda part: part["partNumber"])
    files.complete(values["oid"], [part["etag"] for part in parts])
    return json_answer({"success": True})


def _to_write(state: HubState, request: Request, values: dict[str, str]) -> Repository:
    return state.writable(request, {**values, "name": values["git"].removesuffix(".git")})[0]


def _where(state: HubState, repository: Repository, oid: str, size: int, multipart: bool) -> dict[str, Any]:
    described: dict[str, Any] = {"oid": oid, "size": size}
    if OID.fullmatch(oid) is None or size < 0:
        return {**described, "error": {"code": 422, "message": f"Invalid object {oid!r} of {size} bytes"}}
    if oid in repository.large_files:
        return described
    path = f"/storage/{repository.kind}/{repository.id}/{oid}"
    prefix = "" if repository.kind == "model" else f"{repository.kind}s/"
    check = {"href": f"{state.endpoint}/{prefix}{repository.id}.git/info/lfs/objects/verify"}
    if not multipart or size <= state.part_size:
        return {**described, "actions": {"upload": {"href": state.signed("PUT", path)}, "verify": check}}
    count = -(-size // state.part_size)
    parts = {f"{number:05d}": state.signed("PUT", f"{path}/{number}") for number in range(1, count + 1)}
    header = {"chunk_size": str(state.part_size), **parts}
    upload = {"href": state.signed("POST", f"{path}/complete"), "header": header}
    return {**described, "actions": {"upload": upload, "verify": check}}


def _stored_in(state: HubState, request: Request, values: dict[str, str]) -> Repository:
    state.check_signed(request)
    repository = state.repositories.get((values["kind"], f"{values['namespace']}/{values['name']}"))
    if repository is None or not request.to_storage:
        raise RefusalError(404, "NoSuchKey")
    return repository
