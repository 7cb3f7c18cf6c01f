"""The buckets that connections share: those of their address, their tenant and their user.

Each counts its connections, so the caps need no counters of their own. Users stand below their tenant: a key of both names would
take 64 bytes a user.

Example:
    users = UserRates(max_idle=50_000)
    rates = users.acquire(tenant, identity)
    users.release(tenant, identity)
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from msgspec import Struct

from service.core.identity import Identity
from service.core.token_bucket import TokenBucket


class Refused(Struct, gc=False):
    """What is known of refused messages. Most connections and users have none, so they have no such object."""

    messages_retry_at: float = 0.0
    """Monotonic seconds at which the last refused message should be retried."""
    subscribes_retry_at: float = 0.0
    """Monotonic seconds at which the last refused subscribe should be retried."""
    violations: tuple[float, ...] = ()
    """Monotonic seconds of recent frames above the rate. Only of connections."""
    shared_refusals: TokenBucket | None = None
    """Refusals by shared buckets that are no violations: as many as the connection's own rate allows."""


class SharedRates(Struct, gc=False):
    """The buckets of one user, address or tenant."""

    messages: float = 0.0
    """Monotonic seconds at which the bucket for messages is full again."""
    subscribes: float = 0.0
    """Monotonic seconds at which the bucket for subscribes is full again."""
    refused: Refused | None = None
    connections: int = 0
    """Open connections that share these buckets."""

    def is_full(self, now: float) -> bool:
        """True if both buckets are full, as new buckets are."""
        return self.messages <= now and self.subscribes <= now


class AddressRates(SharedRates, gc=False):
    """The buckets of one address."""

    network: str = ""
    """The address, or its network, by which limits count."""


class TenantRates(SharedRates, gc=False):
    """The buckets of one tenant."""

    users: dict[str, SharedRates] = {}
    """The buckets of its users that have connections."""


Key = TypeVar("Key", bound=Hashable)
Rates = TypeVar("Rates", bound=SharedRates)


class _IdleRates(Generic[Key, Rates]):
    """The buckets of keys without a connection. Above the maximum, the key that is idle longest is evicted."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._rates: OrderedDict[Key, Rates] = OrderedDict()

    def add(self, key: Key, rates: Rates) -> None:
        """Keeps the buckets of a key whose last connection has ended, unless they are as new ones."""
        if rates.messages or rates.subscribes:
            self._rates[key] = rates
            if len(self._rates) > self._max_keys:
                self._rates.popitem(last=False)

    def pop(self, key: Key) -> Rates | None:
        """Removes and returns the buckets of a key, if they are kept."""
        return self._rates.pop(key, None) if self._rates else None

    def evict_full(self, now: float, max_keys: int) -> None:
        """Evicts at most `max_keys` keys whose buckets are full."""
        for _ in range(max_keys):
            key = next(iter(self._rates), None)
            if key is None or not self._rates[key].is_full(now):
                return
            del self._rates[key]

    def __len__(self) -> int:
        return len(self._rates)


class KeyedRates(Generic[Rates]):
    """The buckets of every address or tenant with a connection, and of at most `max_idle` idle ones."""

    def __init__(self, max_idle: int, make: Callable[[str], Rates]) -> None:
        self.used: dict[str, Rates] = {}
        """The buckets of all keys with a connection. Only this class changes it."""
        self.idle: _IdleRates[str, Rates] = _IdleRates(max_idle)
        self._make = make

    def acquire(self, key: str) -> Rates:
        """Returns the key's buckets for one more connection. Call `release` when it ends."""
        rates = self.used.get(key)
        if rates is None:
            rates = self.used[key] = self.idle.pop(key) or self._make(key)
        rates.connections += 1
        return rates

    def release(self, key: str) -> None:
        """Removes one connection from the key's buckets."""
        rates = self.used[key]
        rates.connections -= 1
        if not rates.connections:
            del self.used[key]
            self.idle.add(key, rates)


class UserRates:
    """The buckets of every user with a connection, which `TenantRates` holds, and of at most `max_idle` idle ones."""

    def __init__(self, max_idle: int) -> None:
        self.idle: _IdleRates[tuple[str, str], SharedRates] = _IdleRates(max_idle)

    def acquire(self, tenant: TenantRates, identity: Identity) -> SharedRates:
        """Returns the user's buckets for one more connection. Call `release` when it ends."""
        user = identity.user
        rates = tenant.users.get(user)
        if rates is None:
            rates = tenant.users[user] = self.idle.pop((identity.tenant, user)) or SharedRates()
        rates.connections += 1
        return rates

    def release(self, tenant: TenantRates, identity: Identity) -> None:
        """Removes one connection from the user's buckets."""
        user = identity.user
        rates = tenant.users[user]
        rates.connections -= 1
        if not rates.connections:
            del tenant.users[user]
            self.idle.add((identity.tenant, user), rates)
