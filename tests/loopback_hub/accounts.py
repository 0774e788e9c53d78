"""Who asks: tokens, the accounts behind them and what they may read and write."""

from __future__ import annotations

from dataclasses import dataclass

from loopback_hub.refusals import bad_token, forbidden, gated, repository_not_found
from loopback_hub.repository import Repository


@dataclass(frozen=True)
class Account:
    """A user of the Hub and her token.

    A namespace that belongs to no user is an organisation, and every account with a write token is a member of it.
    """

    name: str
    token: str
    can_write: bool


class Accounts:
    """The users of a Hub.

    Args:
        accounts: all of them; each has its own name and token.
    """

    def __init__(self, accounts: list[Account]) -> None:
        self._by_token = {account.token: account for account in accounts}
        self._names = {account.name for account in accounts}

    def of_header(self, authorization: str | None) -> Account | None:
        """The account of an Authorization header; None for a stranger who sent none.

        Raises:
            RefusalError: 401 for a token that is nobody's.
        """
        if authorization is None:
            return None
        account = self._by_token.get(authorization.removeprefix("Bearer ").strip())
        if account is None:
            raise bad_token()
        return account

    def is_member(self, account: Account | None, namespace: str) -> bool:
        """Whether an account owns a namespace or is a member of the organisation of that name."""
        if account is None:
            return False
        return namespace == account.name or (account.can_write and namespace not in self._names)

    def check_read(self, account: Account | None, repository: Repository) -> None:
        """Refuse a private repository of others.

        Raises:
            RefusalError: the repository is "not found", as a Hub says of what it must not tell.
        """
        if repository.private and not self.is_member(account, repository.namespace):
            raise repository_not_found(authenticated=account is not None)

    def check_content(self, account: Account | None, repository: Repository) -> None:
        """Refuse the files of a private repository of others, and of a gated one before its terms are accepted.

        Raises:
            RefusalError: not found (private) or restricted (gated).
        """
        self.check_read(account, repository)
        if not repository.gated or self.is_member(account, repository.namespace):
            return
        if account is None or account.name not in repository.accepted_by:
            raise gated(repository.id, authenticated=account is not None)

    def check_write(self, account: Account | None, namespace: str) -> Account:
        """The account, if it may write into a namespace.

        Raises:
            RefusalError: 401 for a stranger, 403 for a token that cannot write there.
        """
        if account is None:
            raise repository_not_found(authenticated=False)
        if not account.can_write:
            raise forbidden("Forbidden: you must use a write token to upload to a repository.")
        if not self.is_member(account, namespace):
            raise forbidden(f'You don\'t have the rights to create or change a repository of "{namespace}"')
        return account
