"""Create and delete branches and tags; squash a branch."""

from __future__ import annotations

from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError, revision_not_found
from loopback_hub.repository import Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("POST", "/api/{kinds}/{namespace}/{name}/branch/{branch}")
def create_branch(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A branch that starts at a revision, by default at the main branch."""
    repository = _writable(state, request, values)
    repository.create_branch(values["branch"], str(request.json().get("startingPoint") or "main"))
    return json_answer({})


@route("DELETE", "/api/{kinds}/{namespace}/{name}/branch/{branch}")
def delete_branch(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A branch is gone."""
    _writable(state, request, values).delete_branch(values["branch"])
    return json_answer({})


@route("POST", "/api/{kinds}/{namespace}/{name}/tag/{revision}")
def create_tag(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A tag on a revision."""
    repository = _writable(state, request, values)
    tag = str(request.json().get("tag"))
    with repository.lock:
        if tag in repository.tags:
            raise RefusalError(409, f"Reference already exists: refs/tags/{tag}")
        repository.tags[tag] = repository.commit(values["revision"]).oid
    return json_answer({})


@route("DELETE", "/api/{kinds}/{namespace}/{name}/tag/{tag}")
def delete_tag(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A tag is gone."""
    repository = _writable(state, request, values)
    with repository.lock:
        if repository.tags.pop(values["tag"], None) is None:
            raise revision_not_found(values["tag"])
    return json_answer({})


@route("POST", "/api/{kinds}/{namespace}/{name}/super-squash/{branch}")
def squash(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """One commit in place of a branch's history."""
    repository, account = state.writable(request, values)
    message = str(request.json().get("message") or "Super-squash")
    return json_answer({"commitId": repository.squash(values["branch"], message, account.name).oid})


def _writable(state: HubState, request: Request, values: dict[str, str]) -> Repository:
    return state.writable(request, values)[0]
