"""Push, pull, compare checksums: against the loopback Hub always, against the real one with a token and if asked."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path

import pytest
from loopback_hub.round_trip import CONTENT
from loopback_hub.server import LoopbackHub
from processes import run_to_end

TESTS = Path(__file__).resolve().parents[1]
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_XET", "HF_ENDPOINT")
WANTED = bool(os.environ.get("HF_TOKEN")) and os.environ.get("MMFUSION_TEST_HUB") == "1"


def run_round_trip(environment: dict[str, str], work: Path) -> dict[str, object]:
    paths = [str(TESTS), *filter(None, [environment.get("PYTHONPATH")])]
    name = f"mmfusion-test-{secrets.token_hex(4)}"
    command = [sys.executable, "-m", "loopback_hub.round_trip", name, work]
    done = run_to_end(command, env={**environment, "PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_what_is_pushed_to_the_loopback_hub_comes_back(tmp_path: Path) -> None:
    with LoopbackHub(part_size=1 << 17) as hub:
        result = run_round_trip(hub.environment(tmp_path / "home"), tmp_path)
        assert result == {"compared": 2 * (len(CONTENT) + 1), "bytes": 2 * sum(CONTENT.values()), "xet": False}
        parts = [seen.path for seen in hub.requests if seen.method == "PUT" and seen.path.split("?")[0].endswith("/3")]
        assert len(parts) == 2, "the larger file goes in three parts, twice"
        assert not hub.has_repo(f"{hub.user}/mmfusion-test"), "the repository is removed at the end"


@pytest.mark.hub
@pytest.mark.skipif(not WANTED, reason="pushes to the real Hub: needs HF_TOKEN and MMFUSION_TEST_HUB=1")
def test_what_is_pushed_to_the_real_hub_comes_back(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in OFFLINE}
    result = run_round_trip({**environment, "HF_HOME": str(tmp_path / "home")}, tmp_path)
    assert result["compared"] == 2 * (len(CONTENT) + 1)
    assert result["xet"] is True, "the real Hub is tested with its Xet storage: install hf_xet"
