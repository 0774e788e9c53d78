"""The result of a row of docs/benchmarks/peers.md: one JSON file that `peers.py` collects."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

Ratios = Mapping[str, Sequence[float]]


def machine() -> dict[str, Any]:
    """Cores, kind of processor and load of this machine; to be asked for before a measurement."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {"cores": os.cpu_count(), "processor": name, "load_at_start": round(os.getloadavg()[0], 1)}


def interpreter(checkout: Path) -> str:
    """Python of the environment in a checkout's folder .venv; the one that runs this where there is none."""
    own = checkout.absolute() / ".venv/bin/python"
    return str(own) if own.is_file() else sys.executable


def environment(checkout: Path | None, packages: Sequence[str]) -> dict[str, str]:
    """A setting that says which environment a checkout of f4b0012 has; nothing without a checkout."""
    if checkout is None:
        return {}
    program = interpreter(checkout)
    if program == sys.executable:
        return {"environment of f4b0012": "this one"}
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    found = subprocess.run([program, "-c", code, *packages], capture_output=True, text=True, check=True).stdout
    versions = ", ".join(f"{name} {version}" for name, version in zip(packages, found.split(), strict=True))
    return {"environment of f4b0012": f"its own, {versions}"}


def write_row(
    folder: Path,
    row: int,
    *,
    what: str,
    beside: str,
    target: float | Mapping[str, float],
    ratios: Ratios,
    packages: Sequence[str],
    measured_on: Mapping[str, Any],
    settings: Mapping[str, Any],
    **more: Any,
) -> Path:
    """Writes OUTPUT/row<N>.json.

    Args:
        folder: Where to; made if missing.
        row: Number of the row in the table.
        what: What was measured.
        beside: What it was measured beside.
        target: Of the median: one for all parts, or by part.
        ratios: Of each repetition, by part.
        packages: Whose versions matter.
        measured_on: What `machine` said before the measurement.
        settings: Sizes, repetitions, threads …
        **more: JSON values that explain the ratios, such as seconds.
    """
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    result = {
        "row": row,
        "what": what,
        "beside": beside,
        "target": target,
        "ratios": {part: [float(value) for value in values] for part, values in ratios.items()},
        "median": {part: median(values) for part, values in ratios.items()},
        "versions": versions,
        "machine": dict(measured_on),
        "settings": dict(settings),
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"row{row}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return path
