"""A Ray cluster for as long as a job takes: the one that RAY_ADDRESS names, or one on this machine alone."""

import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmfusion.model.errors import MMFusionError

# Of a path of a socket, the fewest that an operating system allows; and what such a path has below a temporary folder.
_SOCKET_CHARACTERS = 103
_SOCKET = "/mmfusion_ray_12345678/session_2026-11-26_12-00-00_123456_1234567/sockets/plasma_store"
# Products travel through files, and 24 bytes of each, its row and digest, through this memory for objects. What is more
# goes to the temporary folder: 200 MB for ten million products.
_OBJECT_BYTES = 128 << 20
_ANSWER_SECONDS = 10.0


class RayJobError(MMFusionError):
    """A job on Ray cannot begin, or cannot go on."""


def import_ray() -> Any:
    """The library.

    Raises:
        RayJobError: It is not installed.
    """
    if not os.environ.get("RAY_ADDRESS") and "ray" not in sys.modules:
        _keep_to_this_machine()
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RayJobError(
            f"--engine ray needs the library ray with its data sets ({error}); install it with: "
            "pip install 'mmfusion[ray]'"
        ) from error
    return ray


def check_ray() -> None:
    """Finds out whether Ray is there before anything that takes long.

    Raises:
        RayJobError: Ray is not installed, or nothing answers at RAY_ADDRESS.
    """
    ray = import_ray()
    if ray.is_initialized():
        return
    # Of an address that is no host and port, such as `auto`, Ray soon says so itself; of one that is, after minutes.
    found = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d{1,5})", os.environ.get("RAY_ADDRESS", ""))
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(error) from error


@contextmanager
def ray_cluster(least_cpus: int) -> Iterator[Any]:
    """Ray, connected to a cluster; one that this process is connected to already stays so afterwards.

    A cluster that is started here listens on 127.0.0.1 only, has no dashboard, sends no usage statistics, and ends with
    this process, whatever ends it (of a killed one, two idle helpers of Ray's a minute later). Its sockets and logs are
    in a temporary folder, as paths of sockets have to be short; it is removed at the end, and left by a kill.

    Args:
        least_cpus: CPUs that a cluster started here offers at least, as Ray counts them.

    Raises:
        RayJobError: Ray is not installed, or no cluster answers at RAY_ADDRESS.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    temporary = None
    try:
        if os.environ.get("RAY_ADDRESS"):
            _connect(ray)
        else:
            temporary = _short_folder()
            ray.init(
                address="local",
                num_cpus=max(os.cpu_count() or 1, least_cpus),
                object_store_memory=_OBJECT_BYTES,
                include_dashboard=False,
                logging_level=logging.WARNING,
                _temp_dir=str(temporary),
            )
        yield ray
    finally:
        ray.shutdown()
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _connect(ray: Any) -> None:
    try:
        ray.init(logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_cluster(error) from error


def _no_cluster(error: Exception) -> RayJobError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return RayJobError(
        f"no Ray cluster answers at RAY_ADDRESS={os.environ['RAY_ADDRESS']!r} ({reason}); check it with `ray status`, "
        "or unset RAY_ADDRESS to start Ray on this machine."
    )


def _keep_to_this_machine() -> None:
    """Settings that Ray reads when it is imported."""
    # Where no clusters are wanted, Ray binds 127.0.0.1; its name for that comes from the systems it does so on.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        # Other users of the machine reach 127.0.0.1 too. Ray's own token would be a file in the home folder.
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _short_folder() -> Path:
    usual = tempfile.gettempdir()
    is_short = len(usual) + len(_SOCKET) <= _SOCKET_CHARACTERS
    place = usual if is_short or not Path("/tmp").is_dir() else "/tmp"
    return Path(tempfile.mkdtemp(prefix="mmfusion_ray_", dir=place))
