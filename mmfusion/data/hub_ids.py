"""Whether a Hub id can be read at all, before a library tries for half a minute."""

import os
import socket
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from mmfusion.files import is_hub_id
from mmfusion.model.errors import HubError

# A machine that answers does so in a fraction of it.
_SECONDS = 3.0


def check_readable(source: object, kind: Literal["model", "dataset"]) -> None:
    """Raises an error at once where a name is no folder here, and can be read neither from the Hub nor from its cache.

    A mistyped folder such as `outputs/stage9` looks like a Hub id, and the libraries of the Hub try for half a minute
    where there is no network.

    Args:
        source: Folder, URL or Hub id; only the last is looked at.
        kind: What the Hub would have to hold.

    Raises:
        HubError: There is no such folder, and the Hub cannot be reached.
    """
    if not isinstance(source, (str, os.PathLike)) or not is_hub_id(name := os.fspath(source)):
        return
    cached = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    # Offline, the libraries themselves answer at once; a proxy is asked by them alone.
    if cached.is_dir() or constants.HF_HUB_OFFLINE or getproxies():
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), _SECONDS).close()
    except OSError as error:
        raise HubError(
            f"There is no folder {name!r} in {os.getcwd()!r}, and the Hub at {constants.ENDPOINT} cannot be reached to "
            f"look for a {kind} of that name ({error}); check the spelling and the working directory, or the network."
        ) from error
