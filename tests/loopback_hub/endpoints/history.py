"""Commits of a revision and the refs of a repository."""

from __future__ import annotations

from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("GET", "/api/{kinds}/{namespace}/{name}/commits/{revision}")
def commits(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The history, the newest first, in pages."""
    repository = state.repository(request, values)
    page = int(request.query.get("p", ["0"])[0])
    with repository.lock:
        history = repository.commits(values["revision"])
    start, end = page * state.page_size, (page + 1) * state.page_size
    found = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "date": commit.date.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "authors": [{"user": commit.author}],
        }
        for commit in history[start:end]
    ]
    following = f'<{state.endpoint}{request.path}?p={page + 1}>; rel="next"'
    headers = {"X-Total-Count": str(len(history)), **({"Link": following} if end < len(history) else {})}
    return json_answer(found, headers=headers)


@route("GET", "/api/{kinds}/{namespace}/{name}/refs")
def refs(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Branches, tags and, if asked for, pull requests."""
    repository = state.repository(request, values)
    branches = [_ref(name, f"refs/heads/{name}", oid) for name, oid in repository.branches.items()]
    tags = [_ref(name, f"refs/tags/{name}", oid) for name, oid in repository.tags.items()]
    found: dict[str, object] = {"branches": branches, "tags": tags, "converts": []}
    if request.flag("include_prs"):
        pulls = repository.pull_refs.items()
        found["pullRequests"] = [_ref(str(number), f"refs/pr/{number}", oid) for number, oid in pulls]
    return json_answer(found)


def _ref(name: str, ref: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}
