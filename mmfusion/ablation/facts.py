"""Where an ablation ran: commit, hardware and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

_PACKAGES = ("torch", "lightning", "transformers", "mmfusion")


def git_commit() -> str:
    """Short hash of the commit, with a remark where files differ from it; "not available" outside a checkout."""
    checkout = Path(__file__).resolve().parents[2]
    # An installed package may lie in a repository of something else.
    commit = _git(checkout, "rev-parse", "--short=10", "HEAD") if (checkout / ".git").exists() else None
    if commit is None:
        return "not available"
    changed = _git(checkout, "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with uncommitted changes" if changed else commit


def hardware_line() -> str:
    """Processor, cores, threads and accelerators in one line."""
    parts = [f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    parts += [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())]
    return "; ".join(parts)


def versions_line() -> str:
    """Versions of Python and of the packages that numbers depend on."""
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in _PACKAGES)])


def _git(checkout: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=checkout, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
