"""Settings of every test process: offline, one thread, no surprises from the caller's environment."""

from __future__ import annotations

import os

# Before anything imports the Hub's client, a tokenizer or torch: they read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from processes import end, end_server, left_behind, session_mark

# In the environment of all processes that tests start, those of pytest-xdist's workers too.
session_mark()
torch.set_num_threads(1)
# A busy machine is not a test's fault.
settings.register_profile("tests", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tests")

pytest_plugins = ["loopback_hub.fixtures", "small_disk"]

CHECKOUT = Path(__file__).resolve().parent.parent


# Files that take longest, and start processes: they come first, so that no worker is left with one of them at the end.
LONGEST = (
    "embedding_ray",
    "onnx",
    "strategies",
    "resume",
    "stream_recipe",
    "embedding",
    "fit",
    "recipes",
    "distributed",
    "milvus",
    "hub_session",
    "processes",
    "cli",
    "ranks_stop",
    "dry_run",
    "commands",
    "golden",
    "adding_a_fusion",
    "publish",
    "hub_load",
    "card",
    "serving_process",
    "stages",
    "hub_checkpoints",
)


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files that have most tests.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.fixture(scope="session")
def built_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built offline with the backend that the `dev` extra installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    built = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)
    assert built.returncode == 0, f"the wheel cannot be built:\n{built.stdout}{built.stderr}"
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run where a test has left a process behind, names it, and ends it."""
    end_server()
    if hasattr(session.config, "workerinput"):
        # The one that started the workers looks, when they have ended.
        return
    left = left_behind(seconds=10)
    if left:
        end(left)
        lines = "".join(f"\n  {pid}: {line[:200]}" for pid, line in left.items())
        print(f"\nTests have left processes behind, which are ended now:{lines}", file=sys.stderr)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
