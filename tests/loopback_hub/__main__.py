"""A Hub on this machine to try things against: `PYTHONPATH=tests python -m hub` runs one until it is interrupted."""

from __future__ import annotations

import signal
import tempfile
from pathlib import Path

from loopback_hub.server import LoopbackHub

SETTINGS = ("HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_DISABLE_XET")


def main() -> None:
    """Start a Hub and print what a shell has to export to use it and no other."""
    with tempfile.TemporaryDirectory(prefix="loopback-hub-") as home, LoopbackHub() as hub:
        settings = hub.environment(Path(home))
        print("export", *(f"{name}={settings[name]}" for name in SETTINGS), flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    main()
