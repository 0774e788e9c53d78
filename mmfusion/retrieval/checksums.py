"""Checksums of the files of an index, so that a damaged byte is an error and not a wrong neighbour."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmfusion.files import sha256_of

# Files up to this size are read whole when an index is opened: that takes about 0.1 s.
WHOLE_BELOW = 64 * 2**20
# Both ends of a longer file are read: FAISS describes an index at the beginning, Arrow a table at the end.
_END = 64 * 2**10
REMEDY = "build the index again, or copy it again from where it is whole"
_SEAL, _CLOSE = b',\n  "sha256": "', b'"\n}\n'


@dataclass(frozen=True)
class FileSum:
    """What a file was when it was written.

    Attributes:
        bytes: Its size.
        sha256: SHA-256 (hex) of all bytes.
        ends: SHA-256 (hex) of the first and the last 64 KiB.
    """

    bytes: int
    sha256: str
    ends: str

    @classmethod
    def of(cls, path: Path) -> "FileSum":
        """That of a file, which is read once."""
        return cls(path.stat().st_size, sha256_of(path), _ends_of(path))

    def check(self, path: Path, *, whole: bool) -> None:
        """Compares a file with what it was.

        Args:
            path: The file.
            whole: Reads all of it, not only its size and both ends.

        Raises:
            ValueError: It differs.
            OSError: It cannot be read.
        """
        size = path.stat().st_size
        if size != self.bytes:
            raise ValueError(
                f"{path} is damaged or of another index: it has {size:,} bytes, and {self.bytes:,} were written; "
                f"{REMEDY}"
            )
        expected, found = (self.sha256, sha256_of(path)) if whole else (self.ends, _ends_of(path))
        if found != expected:
            part = "it" if whole else "its beginning or end"
            raise ValueError(
                f"{path} is damaged or of another index: {part} has the checksum {found[:12]}…, and {expected[:12]}… "
                f"was written; {REMEDY}"
            )


def sealed_json(fields: dict[str, Any], sums: dict[str, FileSum]) -> bytes:
    """A JSON object with the checksums of files under `files` and, as the last field, its own under `sha256`."""
    files = {name: asdict(one) for name, one in sums.items()}
    body = json.dumps({**fields, "files": files}, indent=2, ensure_ascii=False).encode().removesuffix(b"\n}")
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode() + _CLOSE


def check_seal(path: Path, text: bytes) -> None:
    """Compares the text of a JSON file with its own checksum.

    Raises:
        ValueError: It differs, or there is none.
    """
    body, seal, rest = text.rpartition(_SEAL)
    if not seal or rest != hashlib.sha256(body).hexdigest().encode() + _CLOSE:
        raise ValueError(f"{path} is damaged: its text does not have the checksum at its end; {REMEDY}")


def _ends_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_END))
        file.seek(max(_END, path.stat().st_size - _END))
        digest.update(file.read(_END))
    return digest.hexdigest()
