"""A Python that has what mmfusion needs and not mmfusion itself: that of somebody who never heard of us."""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from collections.abc import Mapping
from pathlib import Path


def build_bare_environment(folder: Path) -> Path:
    """Makes a virtual environment that borrows the packages of this one, where `import mmfusion` fails.

    Returns:
        Its Python.
    """
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    (own,) = folder.glob("lib/python*/site-packages")
    # A path named by a .pth is searched, but its own .pth files are not read: editable installs stay behind.
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    (own / "borrowed.pth").write_text("\n".join(paths))
    (own / "mmfusion.py").write_text("raise ModuleNotFoundError(\"No module named 'mmfusion' (bare environment)\")\n")
    return folder / "bin" / "python"


def run_bare(python: Path, code: str, *arguments: str, environment: Mapping[str, str], cwd: Path) -> str:
    """Runs code in the bare environment, which must succeed; returns what it prints."""
    kept = {name: value for name, value in environment.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), "-c", code, *arguments],
        env={**kept, "OMP_NUM_THREADS": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


__all__ = ["build_bare_environment", "run_bare"]
