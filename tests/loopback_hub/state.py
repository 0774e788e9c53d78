"""What a running Hub knows: its accounts, repositories, faults and traffic."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
from collections.abc import Mapping
from urllib.parse import quote

from loopback_hub.accounts import Account, Accounts
from loopback_hub.faults import Faults
from loopback_hub.messages import Request
from loopback_hub.refusals import RefusalError, repository_not_found
from loopback_hub.repository import Commit, Repository
from loopback_hub.traffic import Traffic

KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}


class HubState:
    """Everything but the sockets.

    Args:
        accounts: the users.
        part_size: files of more bytes than this go to the storage in parts of this size.
        large_from: files of at least this many bytes go to the large file storage whatever their name.
        page_size: entries of one page of a listing.
    """

    def __init__(self, accounts: list[Account], *, part_size: int, large_from: int, page_size: int) -> None:
        self.accounts = Accounts(accounts)
        self.part_size = part_size
        self.large_from = large_from
        self.page_size = page_size
        self.endpoint = ""
        self.storage = ""
        self.faults = Faults()
        self.traffic = Traffic()
        self.lock = threading.RLock()
        self.repositories: dict[tuple[str, str], Repository] = {}
        self._secret = secrets.token_bytes(32)

    def repository(self, request: Request, values: Mapping[str, str]) -> Repository:
        """The repository that the `kinds`, `namespace` and `name` of a path name, if the account may know of it.

        Raises:
            RefusalError: not found.
        """
        kinds = values["kinds"]
        repository = self.repositories.get((KINDS.get(kinds, kinds), f"{values['namespace']}/{values['name']}"))
        if repository is None:
            raise repository_not_found(authenticated=request.account is not None)
        self.accounts.check_read(request.account, repository)
        return repository

    def content(self, request: Request, values: Mapping[str, str]) -> tuple[Repository, Commit]:
        """The repository that a path names and the commit of its `revision`, if the account may read the files.

        Raises:
            RefusalError: not found, or gated.
        """
        repository = self.repository(request, values)
        self.accounts.check_content(request.account, repository)
        return repository, repository.commit(values["revision"])

    def writable(self, request: Request, values: Mapping[str, str]) -> tuple[Repository, Account]:
        """The repository that a path names and the account, if that may write to it.

        Raises:
            RefusalError: not found, or no right to write.
        """
        repository = self.repository(request, values)
        return repository, self.accounts.check_write(request.account, values["namespace"])

    def signed(self, method: str, path: str) -> str:
        """The URL of a path (unquoted) of the storage that anybody who knows it may use with this method."""
        quoted = quote(path)
        return f"{self.storage}{quoted}?signature={self._signature(method, quoted)}"

    def check_signed(self, request: Request) -> None:
        """Refuse what a storage refuses.

        Raises:
            RefusalError: 403 without the signature; 400 with a token besides, which must never leave the Hub's origin.
        """
        given = request.query.get("signature", [""])[0]
        if not hmac.compare_digest(given, self._signature(request.method, request.path)):
            raise RefusalError(403, "SignatureDoesNotMatch")
        if "authorization" in request.headers:
            raise RefusalError(400, "Only one auth mechanism allowed: a token was sent to the storage")

    def _signature(self, method: str, path: str) -> str:
        return hmac.new(self._secret, f"{method} {path}".encode(), hashlib.sha256).hexdigest()
