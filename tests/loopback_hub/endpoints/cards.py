"""The check of a card's metadata."""

from __future__ import annotations

from loopback_hub.cards import card_problems
from loopback_hub.messages import Answer, Request, json_answer
from loopback_hub.routes import route
from loopback_hub.state import HubState


@route("POST", "/api/validate-yaml")
def validate(state: HubState, request: Request, values: dict[str, str]) -> Answer:
    """400 with the errors of a README's metadata, 200 with its warnings."""
    payload = request.json()
    errors, warnings = card_problems(str(payload.get("content") or ""))
    found = {"errors": [{"message": error} for error in errors], "warnings": [{"message": text} for text in warnings]}
    return json_answer(found, status=400 if errors else 200)
