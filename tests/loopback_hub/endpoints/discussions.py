"""Pull requests: list, show and merge them."""

from __future__ import annotations

from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError
from loopback_hub.repository import PullRequest, Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("GET", "/api/{kinds}/{namespace}/{name}/discussions")
def discussions(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """All pull requests (this Hub has no other discussions)."""
    repository = state.repository(request, values)
    found = [_described(repository, pull) for pull in repository.pull_requests.values()]
    page = int(request.query.get("p", ["0"])[0])
    return json_answer({"discussions": [] if page else found, "count": len(found), "start": 0})


@route("GET", "/api/{kinds}/{namespace}/{name}/discussions/{number}")
def discussion(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """One pull request."""
    repository = state.repository(request, values)
    pull = repository.pull_requests.get(int(values["number"]))
    if pull is None:
        raise RefusalError(404, f"Discussion {values['number']} not found")
    changes = {"base": "refs/heads/main", "mergeCommitId": None}
    return json_answer({**_described(repository, pull), "events": [], "filesWithConflicts": False, "changes": changes})


@route("POST", "/api/{kinds}/{namespace}/{name}/discussions/{number}/merge")
def merge(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The change of a pull request becomes part of the main branch."""
    repository, account = state.writable(request, values)
    commit = repository.merge(int(values["number"]), account.name)
    event = {
        "id": commit.oid,
        "type": "status-change",
        "createdAt": commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "author": {"name": account.name},
        "data": {"status": "merged"},
    }
    return json_answer({"newStatus": event})


def _described(repository: Repository, pull: PullRequest) -> dict[str, object]:
    return {
        "num": pull.number,
        "title": pull.title,
        "status": pull.status,
        "isPullRequest": True,
        "author": {"name": pull.author},
        "createdAt": repository.commit(f"refs/pr/{pull.number}").date.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
        "repo": {"name": repository.id, "type": repository.kind},
    }
