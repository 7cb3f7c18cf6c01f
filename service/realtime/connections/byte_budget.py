"""Bytes that a node holds for its peers, in all and by tenant.

Counted: what waits in outboxes, what transports have not written, messages that have come in part, frames that wait behind a
command, request bodies. Each holder adds what it keeps and takes it away again; nothing is counted a delivery.

Example:
    account = budget.account("acme")
    if account.fits(len(body)):
        account.add(len(body))
        ...
        account.add(-len(body))
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from service.core.backoff import jittered
from service.errors import ErrorCode, ServiceError

SMALL_REPLY = 4096
"""Bytes of an answer that is never refused: errors, acknowledgements. A larger one must fit the budget."""
FULL = "this node holds as many bytes for its peers as it may; ask again later"
RETRY_AFTER = 2.0
"""Seconds after which, about, whoever is refused is told to come back."""

UNAUTHENTICATED = ""
"""The account of peers that have not authenticated. No token carries this tenant."""


def overloaded() -> ServiceError:
    """The refusal of what does not fit, with a moment of its own to come back."""
    return ServiceError(ErrorCode.OVERLOADED, FULL, retry_after=jittered(RETRY_AFTER))


class ByteBudget:
    """The limit of a node, shared so that no tenant can use up what the others need."""

    __slots__ = ("_accounts", "limit", "tenant_share", "used")

    def __init__(self, limit: int, tenant_share: float = 1.0) -> None:
        self.limit = limit
        """Bytes."""
        self.tenant_share = tenant_share
        """The part of what the other accounts leave that one may hold."""
        self.used = 0
        """Bytes held now. May pass the limit by what is never refused: small replies."""
        self._accounts: WeakValueDictionary[tuple[str, bool], Account] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """Whether nothing more fits, whoever asks."""
        return self.used >= self.limit

    @property
    def used_ratio(self) -> float:
        """How near the limit is: the node's bytes in use as a share of its limit, or an account's as a share of what it may
        hold, whichever is greater."""
        used = self.used / max(1, self.limit)
        for account in list(self._accounts.values()):
            part = self.tenant_share * (self.limit - self.used + account.held)
            if part > 0:
                used = max(used, account.held / part)
        return used

    def account(self, tenant: str, *, is_backend: bool = False) -> Account:
        """The account of the tenant's clients, or of its backend: clients that do not read must not keep it from publishing.

        It lasts as long as somebody holds it.
        """
        key = (tenant, is_backend)
        found = self._accounts.get(key)
        if found is None:
            found = self._accounts[key] = Account(self)
        return found


class Account:
    """What one tenant's clients, or its backend, hold of a budget."""

    __slots__ = ("__weakref__", "budget", "held")

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.held = 0
        """Bytes."""

    def fits(self, size: int = 0) -> bool:
        """Whether `size` bytes more stay within the node's limit and within the tenant's share of it."""
        budget = self.budget
        held = self.held + size
        return budget.used + size <= budget.limit and held <= budget.tenant_share * (
            budget.limit - budget.used + self.held
        )

    def check(self, size: int) -> None:
        """Raises ServiceError(OVERLOADED), with a moment of its own to come back, if so many bytes do not fit."""
        if not self.fits(size):
            raise overloaded()

    def add(self, size: int) -> None:
        """Counts bytes that are held from now on; a negative number, bytes that are no longer held."""
        self.held += size
        self.budget.used += size


class Holding:
    """Bytes that are held together and released together, at once or in parts."""

    __slots__ = ("_account", "_size")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._size = 0

    def add(self, size: int) -> None:
        """Counts so many bytes more. Raises ServiceError(OVERLOADED) if they do not fit; then they are not counted."""
        self._account.check(size)
        self._account.add(size)
        self._size += size

    def set(self, size: int) -> bool:
        """Counts so many bytes instead of those before; False if they are more and do not fit: then the peer must go."""
        change, self._size = size - self._size, size
        self._account.add(change)
        return change <= 0 or self._account.fits()

    def release(self) -> None:
        """Counts none of them any more; harmless the second time."""
        size, self._size = self._size, 0
        self._account.add(-size)
