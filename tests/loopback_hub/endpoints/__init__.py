"""The paths that the Hub answers, one subject to a file; importing this registers them all."""

from loopback_hub.endpoints import (
    branches,
    cards,
    changes,
    discussions,
    history,
    information,
    repositories,
    resolve,
    uploads,
)

__all__ = [
    "branches",
    "cards",
    "changes",
    "discussions",
    "history",
    "information",
    "repositories",
    "resolve",
    "uploads",
]
