"""The fixtures `hub` and `hub_client_environment`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loopback_hub.client import forget_remote_code, talk_to
from loopback_hub.server import LoopbackHub


@pytest.fixture(scope="session")
def running_hub() -> Iterator[LoopbackHub]:
    """One Hub for all tests of a process."""
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub: LoopbackHub) -> LoopbackHub:
    """A Hub without repositories, faults or counts."""
    running_hub.reset()
    return running_hub


@pytest.fixture
def hub_client_environment(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let this process talk to the Hub as its user; gives the folder that stands for HF_HOME."""
    # Both may be imported later than this otherwise, with the settings of the caller.
    import transformers.dynamic_module_utils  # noqa: F401
    from huggingface_hub.utils import close_session

    home = tmp_path / "hf_home"
    talk_to(hub, home, monkeypatch)
    close_session()
    yield home
    close_session()
    forget_remote_code()
