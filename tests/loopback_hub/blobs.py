"""The content of one file of a repository, and the names that git and LFS give it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Blob:
    """One file: kept by git itself, or in the large file storage with a pointer in git."""

    content: bytes
    lfs: bool = False

    @property
    def size(self) -> int:
        """Bytes of the content (not of the pointer)."""
        return len(self.content)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the content, 64 hexadecimal digits: the name of an LFS object."""
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The text that git holds in place of an LFS object."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def git_oid(self) -> str:
        """SHA-1 of the git blob, 40 hexadecimal digits: of the content, or of the pointer to it."""
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        """What the client keeps the file under in its cache."""
        return self.sha256 if self.lfs else self.git_oid
