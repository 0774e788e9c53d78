"""Points the client libraries of the running process at a loopback Hub, for one test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from loopback_hub.server import LoopbackHub

REMOTE_CODE = "transformers_modules"


def talk_to(hub: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make huggingface_hub and, if it is imported, transformers use a Hub with the token of its user.

    Both read their settings when they are imported, so the values themselves are replaced; the client is the real one.

    Args:
        hub: the Hub.
        home: stands for HF_HOME: cache, modules of remote code, stored tokens.
        monkeypatch: takes it all back after the test.
    """
    from huggingface_hub import constants, hf_api

    environment = hub.environment(home)
    for name in ("HF_ENDPOINT", "HF_HOME", "HF_TOKEN", "HF_HUB_DISABLE_XET", "NO_PROXY"):
        monkeypatch.setenv(name, environment[name])
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    settings = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.endpoint)
    _forget_client_of_transformers(monkeypatch)
    _move_remote_code(home / "modules", monkeypatch)


def forget_remote_code() -> None:
    """Drop the modules that transformers imported from repositories: the next test has other ones."""
    for name in [name for name in sys.modules if name.split(".")[0] == REMOTE_CODE]:
        del sys.modules[name]


def _forget_client_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers makes one client for all calls of a process, and leaves it at the address it was made for."""
    module = sys.modules.get("transformers.utils.hub")
    if module is not None:
        monkeypatch.setattr(module, "_hf_api", None)


def _move_remote_code(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_remote_code()
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if not entry.endswith("/modules")])
    for name in ("transformers.utils.hub", "transformers.utils", "transformers.dynamic_module_utils"):
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "HF_MODULES_CACHE"):
            monkeypatch.setattr(module, "HF_MODULES_CACHE", str(folder))
