"""What the service holds in memory."""

import os
from pathlib import Path
from typing import Any


def memory_of(encoder: Any) -> dict[str, Any]:
    """MiB of the process that are in RAM, and of the query tower's weights; no vision encoder is ever among them."""
    return {"resident_mib": _resident_mib(), **encoder.memory()}


def _resident_mib() -> float | None:
    """MiB in RAM, memory-mapped files that were looked at included; None where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.is_file():
        return None
    return round(int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
