"""The wheel of the mmfusion that runs, for where no index of packages has it."""

import base64
import hashlib
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import mmfusion
from mmfusion.model.errors import HubError

# What pip writes about this machine, and what is written anew.
_LEFT_OUT = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}


def wheel_of(folder: Path) -> Path:
    """Writes the wheel into a folder: built from the checkout, or of the files that are installed.

    Raises:
        HubError: There is neither; the message says what to do.
    """
    checkout = Path(mmfusion.__file__).absolute().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return _built(checkout, folder)
    return _packed(metadata.distribution("mmfusion"), folder)


def torch_range(wheel: Path) -> str:
    """Which torch a wheel of mmfusion needs, e.g. "torch<2.17,>=2.11".

    Raises:
        HubError: The file is no wheel of mmfusion.
    """
    try:
        if not re.fullmatch(r"mmfusion-[^-]+-py3-none-any\.whl", wheel.name):
            raise ValueError("pip reads the version in the name")
        with zipfile.ZipFile(wheel) as archive:
            about = next(name for name in archive.namelist() if re.fullmatch(r"mmfusion-[^/]*/METADATA", name))
            (needed,) = re.findall(r"^Requires-Dist: (torch\b[^;\n]*)$", archive.read(about).decode(), re.MULTILINE)
    except (ValueError, StopIteration, OSError, zipfile.BadZipFile) as error:
        raise HubError(
            f"{wheel} is no wheel of mmfusion ({error}); give --wheel mmfusion-VERSION-py3-none-any.whl."
        ) from error
    return str(needed)


def _built(checkout: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder.absolute())]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
        raise HubError(f"no wheel of {checkout} can be built ({last}); pip install hatchling, or give --wheel FILE.")
    (wheel,) = folder.glob("*.whl")
    return wheel


def _packed(installed: metadata.Distribution, folder: Path) -> Path:
    name = f"mmfusion-{installed.version}"
    tops = ("mmfusion", f"{name}.dist-info")
    files = [one for one in installed.files or () if one.parts[0] in tops and "__pycache__" not in one.parts]
    files = [one for one in files if one.parts[0] == "mmfusion" or one.name not in _LEFT_OUT]
    if "mmfusion/__init__.py" not in map(str, files):
        raise HubError("it is not known which files of mmfusion are installed; build its wheel, and give --wheel FILE.")
    wheel, record = folder / f"{name}-py3-none-any.whl", []
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in files:
            data = one.read_binary()
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
            record.append(f"{one.as_posix()},sha256={digest},{len(data)}\n")
            archive.writestr(one.as_posix(), data)
        archive.writestr(f"{name}.dist-info/RECORD", "".join([*record, f"{name}.dist-info/RECORD,,\n"]))
    return wheel
