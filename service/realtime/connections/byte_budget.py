"""Counts the bytes that a node holds for its clients and backends, in total and by tenant.

It counts outboxes, unsent bytes of transports, unfinished messages, messages that wait for a command, and request bodies.
The code that keeps bytes adds them, and subtracts them when it frees them. A delivery that is written at once counts nothing.

Example:
    account = budget.account("acme")
    if account.has_capacity(len(body)):
        account.add(len(body))
        ...
        account.add(-len(body))
"""

from __future__ import annotations

from weakref import WeakValueDictionary

from service.core.backoff import jittered
from service.errors import ErrorCode, ServiceError

MAX_SMALL_REPLY = 4096
"""Replies of up to this many bytes are never refused, such as an error or an ack. A larger reply must fit the budget."""
OVERLOADED_MESSAGE = "the byte budget of this node is used up; retry later"
RETRY_AFTER = 2.0
"""Mean seconds after which a refused client is told to retry."""

UNAUTHENTICATED_TENANT = ""
"""The tenant of the account for unauthenticated clients. No token has this tenant."""


def overloaded() -> ServiceError:
    """Returns the error for bytes that exceed the budget, with a jittered `retry_after`."""
    return ServiceError(ErrorCode.OVERLOADED, OVERLOADED_MESSAGE, retry_after=jittered(RETRY_AFTER))


class ByteBudget:
    """A node's limit on held bytes. Each tenant may use a share of it, so that one tenant cannot use up the whole."""

    __slots__ = ("_accounts", "limit", "tenant_share", "used")

    def __init__(self, limit: int, tenant_share: float = 1.0) -> None:
        self.limit = limit
        """Bytes."""
        self.tenant_share = tenant_share
        """The share that one account may hold of the bytes that the other accounts leave."""
        self.used = 0
        """Bytes held now. Small replies may exceed the limit, because they are never refused."""
        self._accounts: WeakValueDictionary[tuple[str, bool], Account] = WeakValueDictionary()

    @property
    def is_full(self) -> bool:
        """True if no account may hold more bytes."""
        return self.used >= self.limit

    @property
    def used_ratio(self) -> float:
        """Used bytes divided by the limit: the greatest ratio of the node and all accounts. 1 is full."""
        used = self.used / max(1, self.limit)
        for account in list(self._accounts.values()):
            capacity = self.tenant_share * (self.limit - self.used + account.held)
            if capacity > 0:
                used = max(used, account.held / capacity)
        return used

    def account(self, tenant: str, *, is_backend: bool = False) -> Account:
        """Returns the account of the tenant's clients, or that of its backend.

        Clients and backend have separate accounts: slow clients must not stop the backend from publishing. An account exists
        while something references it.
        """
        key = (tenant, is_backend)
        found = self._accounts.get(key)
        if found is None:
            found = self._accounts[key] = Account(self)
        return found


class Account:
    """The bytes that one tenant's clients, or its backend, hold of a budget."""

    __slots__ = ("__weakref__", "budget", "held")

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.held = 0
        """Bytes."""

    def has_capacity(self, size: int = 0) -> bool:
        """True if `size` more bytes are within the node's limit and the tenant's share of it."""
        budget = self.budget
        held = self.held + size
        return budget.used + size <= budget.limit and held <= budget.tenant_share * (
            budget.limit - budget.used + self.held
        )

    def check(self, size: int) -> None:
        """Raises ServiceError(OVERLOADED) if there is no capacity for `size` more bytes."""
        if not self.has_capacity(size):
            raise overloaded()

    def add(self, size: int) -> None:
        """Adds bytes that are now held. A negative size subtracts freed bytes."""
        self.held += size
        self.budget.used += size


class HeldBytes:
    """Bytes that one holder adds over time and releases together."""

    __slots__ = ("_account", "_size")

    def __init__(self, account: Account) -> None:
        self._account = account
        self._size = 0

    def add(self, size: int) -> None:
        """Counts `size` more bytes. Raises ServiceError(OVERLOADED) if there is no capacity; then it counts nothing."""
        self._account.check(size)
        self._account.add(size)
        self._size += size

    def set(self, size: int) -> bool:
        """Replaces the counted bytes by `size`. False if the size grew beyond the capacity: then close the connection."""
        change, self._size = size - self._size, size
        self._account.add(change)
        return change <= 0 or self._account.has_capacity()

    def release(self) -> None:
        """Subtracts all counted bytes. A second call does nothing."""
        size, self._size = self._size, 0
        self._account.add(-size)
