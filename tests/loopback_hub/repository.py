"""One repository: commits, branches, tags and pull requests, all in memory."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

from loopback_hub.blobs import Blob
from loopback_hub.large_files import LargeFiles
from loopback_hub.refusals import RefusalError, revision_not_found

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LFS_SUFFIXES = ("bin", "ckpt", "h5", "model", "npy", "npz", "onnx", "parquet", "pkl", "pt", "pth", "safetensors", "zip")
GITATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)


@dataclass(frozen=True)
class Commit:
    """One revision: the whole tree of files, and who wrote it on top of what."""

    oid: str
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime
    files: Mapping[str, Blob] = field(repr=False)


@dataclass(frozen=True)
class PullRequest:
    """A proposed change to a commit, the base; its own commits are on the ref `refs/pr/<number>`."""

    number: int
    title: str
    author: str
    base: Commit
    status: str = "open"


class Repository:
    """A repository as the Hub keeps it. A new one has a branch "main" whose first commit holds `.gitattributes`.

    Args:
        kind: "model", "dataset" or "space".
        repository_id: "namespace/name".
        author: who creates it.
        private: whether only members of its namespace may see it.
        sdk: what a space runs by, such as "docker", until its README names another.
    """

    def __init__(
        self, kind: str, repository_id: str, *, author: str, private: bool = False, sdk: str | None = None
    ) -> None:
        self.kind = kind
        self.id = repository_id
        self.private = private
        self.sdk = sdk
        self.gated: bool | str = False
        self.accepted_by: set[str] = set()
        self.large_files = LargeFiles()
        self.tags: dict[str, str] = {}
        self.pull_requests: dict[int, PullRequest] = {}
        self.lock = threading.RLock()
        self._branches: dict[str, str] = {}
        self._pull_refs: dict[int, str] = {}
        self._commits: dict[str, Commit] = {}
        self._written = 0
        first = {".gitattributes": Blob(GITATTRIBUTES.encode())}
        self._branches["main"] = self._write(None, first, "initial commit", "", author).oid

    @property
    def namespace(self) -> str:
        """The user or organisation that owns it."""
        return self.id.split("/")[0]

    @property
    def branches(self) -> dict[str, str]:
        """Commit of every branch, by its name (a copy)."""
        return dict(self._branches)

    @property
    def pull_refs(self) -> dict[int, str]:
        """Commit of every pull request, by its number (a copy)."""
        return dict(self._pull_refs)

    def commit(self, revision: str = "main") -> Commit:
        """The commit of a branch, a tag, `refs/...`, or a commit's name (at least its first 7 digits).

        Raises:
            RefusalError: 404 if there is none.
        """
        with self.lock:
            name = self._resolve(revision)
            if name is None:
                raise revision_not_found(revision)
            return self._commits[name]

    def commits(self, revision: str = "main") -> list[Commit]:
        """The history of a revision, the newest first."""
        history = [self.commit(revision)]
        while (parent := history[-1].parent) is not None:
            history.append(self._commits[parent])
        return history

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The content of every file of a revision, by its path."""
        return {path: blob.content for path, blob in self.commit(revision).files.items()}

    def plant(self, files: Mapping[str, bytes], *, revision: str = "main", title: str = "Planted by a test") -> str:
        """Commit files past all of the Hub's checks, as hostile names or contents need; gives the commit's name."""
        large = tuple(f".{suffix}" for suffix in LFS_SUFFIXES)
        blobs = {path: Blob(content, lfs=path.endswith(large)) for path, content in files.items()}
        for blob in blobs.values():
            if blob.lfs:
                self.large_files.receive(blob.sha256, blob.content)
                self.large_files.verify(blob.sha256, blob.size)
        return self.append(revision, {**self.commit(revision).files, **blobs}, title, "", "a test").oid

    def append(self, ref: str, files: Mapping[str, Blob], title: str, message: str, author: str) -> Commit:
        """Commit a whole tree on top of a branch or a pull request: all of it, or nothing.

        Raises:
            RefusalError: the ref is neither a branch nor a pull request.
        """
        with self.lock:
            kind, name = self._ref(ref)
            parent = self._pull_refs[int(name)] if kind == "pull" else self._branches[name]
            commit = self._write(parent, files, title, message, author)
            self._point(kind, name, commit.oid)
            return commit

    def open_pull_request(self, revision: str, title: str, author: str) -> PullRequest:
        """A new pull request that starts at a revision."""
        with self.lock:
            base = self.commit(revision)
            pull = PullRequest(len(self.pull_requests) + 1, title, author, base)
            self._pull_refs[pull.number] = base.oid
            self.pull_requests[pull.number] = pull
            return pull

    def create_branch(self, name: str, revision: str) -> None:
        """A new branch that starts at a revision.

        Raises:
            RefusalError: 409 if there is one of this name, 404 if there is no such revision.
        """
        with self.lock:
            if name in self._branches:
                raise RefusalError(409, f"Reference already exists: refs/heads/{name}")
            self._branches[name] = self.commit(revision).oid

    def delete_branch(self, name: str) -> None:
        """Remove a branch and the commits that only it held.

        Raises:
            RefusalError: 404 if there is none, 403 for "main".
        """
        with self.lock:
            if name == "main":
                raise RefusalError(403, "The branch main cannot be deleted")
            if name not in self._branches:
                raise revision_not_found(name)
            del self._branches[name]
            self._prune()

    def squash(self, branch: str, message: str, author: str) -> Commit:
        """Replace the history of a branch by one commit with the same files; the old commits are gone.

        Raises:
            RefusalError: 404 if there is no such branch.
        """
        with self.lock:
            if branch not in self._branches:
                raise revision_not_found(branch)
            commit = self._write(None, self.commit(branch).files, message, "", author)
            self._branches[branch] = commit.oid
            self._prune()
            return commit

    def merge(self, number: int, author: str) -> Commit:
        """Put the files that a pull request changed on top of "main".

        Raises:
            RefusalError: 404 if there is no such pull request.
        """
        with self.lock:
            if number not in self.pull_requests:
                raise RefusalError(404, f"Discussion {number} not found")
            pull = self.pull_requests[number]
            base, proposed = pull.base.files, self.commit(f"refs/pr/{number}").files
            removed = base.keys() - proposed.keys()
            kept = {path: blob for path, blob in self.commit("main").files.items() if path not in removed}
            changed = {path: blob for path, blob in proposed.items() if base.get(path) != blob}
            commit = self.append("main", {**kept, **changed}, pull.title, "", author)
            self.pull_requests[number] = replace(pull, status="merged")
            return commit

    def _ref(self, ref: str) -> tuple[str, str]:
        name = ref.removeprefix("refs/heads/")
        if name in self._branches:
            return "branch", name
        number = ref.removeprefix("refs/pr/")
        if number != ref and number.isdigit() and int(number) in self._pull_refs:
            return "pull", number
        raise revision_not_found(ref)

    def _point(self, kind: str, name: str, oid: str) -> None:
        if kind == "pull":
            self._pull_refs[int(name)] = oid
        else:
            self._branches[name] = oid

    def _resolve(self, revision: str) -> str | None:
        if (name := revision.removeprefix("refs/heads/")) in self._branches:
            return self._branches[name]
        if (name := revision.removeprefix("refs/tags/")) in self.tags:
            return self.tags[name]
        number = revision.removeprefix("refs/pr/")
        if number != revision and number.isdigit():
            return self._pull_refs.get(int(number))
        matches = [oid for oid in self._commits if oid.startswith(revision)]
        return matches[0] if len(revision) >= 7 and len(matches) == 1 else None

    def _write(self, parent: str | None, files: Mapping[str, Blob], title: str, message: str, author: str) -> Commit:
        self._written += 1
        date = EPOCH + timedelta(seconds=self._written)
        tree = "".join(f"{path}\0{files[path].git_oid}\n" for path in sorted(files))
        text = f"{self.id}\n{parent}\n{self._written}\n{title}\n{message}\n{author}\n{tree}"
        oid = hashlib.sha1(text.encode(errors="surrogateescape")).hexdigest()
        commit = Commit(oid, parent, title, message, author, date, MappingProxyType(dict(files)))
        self._commits[oid] = commit
        return commit

    def _prune(self) -> None:
        reached: set[str] = set()
        for tip in [*self._branches.values(), *self.tags.values(), *self._pull_refs.values()]:
            name: str | None = tip
            while name is not None and name not in reached:
                reached.add(name)
                name = self._commits[name].parent
        self._commits = {oid: commit for oid, commit in self._commits.items() if oid in reached}
