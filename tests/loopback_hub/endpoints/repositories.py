"""Who am I; create, change and delete repositories."""

from __future__ import annotations

from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.refusals import RefusalError, bad_request, bad_token, repository_not_found
from loopback_hub.repository import Repository
from loopback_hub.routes import route
from loopback_hub.state import HubState

SDKS = ("docker", "gradio", "static", "streamlit")


@route("GET", "/api/whoami-v2")
def who_am_i(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """The account of the token."""
    account = request.account
    if account is None:
        raise bad_token()
    namespaces = sorted({repository.namespace for repository in state.repositories.values()})
    member = [name for name in namespaces if name != account.name and state.accounts.is_member(account, name)]
    token = {"displayName": "tests", "role": "write" if account.can_write else "read"}
    return json_answer(
        {
            "type": "user",
            "id": f"id-of-{account.name}",
            "name": account.name,
            "fullname": account.name.title(),
            "orgs": [{"type": "org", "name": name, "roleInOrg": "write"} for name in member],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@route("POST", "/api/repos/create")
def create(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A new repository; 409 with its address if it is there."""
    payload = request.json()
    kind, namespace, name = _named(request, payload)
    account = state.accounts.check_write(request.account, namespace)
    repository_id = f"{namespace}/{name}"
    prefix = "" if kind == "model" else f"{kind}s/"
    url = f"{state.endpoint}/{prefix}{repository_id}"
    with state.lock:
        if (kind, repository_id) in state.repositories:
            message = "You already created this model repo"
            raise RefusalError(409, message, body={"error": message, "url": url})
        private = bool(payload.get("private")) or payload.get("visibility") == "private"
        sdk = payload.get("sdk")
        if kind == "space" and sdk not in SDKS:
            raise bad_request(f"Invalid Space SDK {sdk!r}; one of {', '.join(SDKS)}")
        repository = Repository(kind, repository_id, author=account.name, private=private, sdk=sdk)
        state.repositories[kind, repository_id] = repository
    return json_answer({"url": url, "name": repository_id, "id": repository.commit().oid})


@route("DELETE", "/api/repos/delete")
def delete(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """A repository is gone."""
    kind, namespace, name = _named(request, request.json())
    state.writable(request, {"kinds": kind, "namespace": namespace, "name": name})
    with state.lock:
        del state.repositories[kind, f"{namespace}/{name}"]
    return json_answer({})


@route("PUT", "/api/{kinds}/{namespace}/{name}/settings")
def change_settings(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Make a repository private, public or gated."""
    repository, _ = state.writable(request, values)
    payload = request.json()
    if "private" in payload or "visibility" in payload:
        repository.private = bool(payload.get("private")) or payload.get("visibility") == "private"
    if "gated" in payload:
        repository.gated = payload["gated"]
    return json_answer({"private": repository.private, "gated": repository.gated})


@route("GET", "/api/{kinds}/{namespace}/{name}/auth-check")
def check_access(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """Whether the account may read the files."""
    state.accounts.check_content(request.account, state.repository(request, values))
    return json_answer({})


def _named(request: Request, payload: dict[str, object]) -> tuple[str, str, str]:
    if request.account is None:
        raise repository_not_found(authenticated=False)
    kind, name = str(payload.get("type") or "model"), str(payload.get("name") or "")
    if not name or "/" in name:
        raise bad_request(f"Invalid repository name {name!r}")
    return kind, str(payload.get("organization") or request.account.name), name
