"""How much connections may send: each has buckets of its own, and shares others with its user, its address and its tenant.

Messages and subscribes have separate buckets: those for subscribes hold enough for everybody to get their channels back at once.

A bucket is one number, the monotonic time at which it is full again (the generic cell rate algorithm, equal to a token bucket):
there are several for each connection, and most connections idle.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Literal

from msgspec import Struct

from service.core.backoff import next_retry_slot
from service.core.identity import Identity
from service.core.limits import Limits, Rate
from service.core.token_bucket import TokenBucket

VIOLATION_WINDOW = 10.0
"""Seconds within which `limits.rate_violations` frames above its rate end a connection."""
_TOLERANCE = 1e-3
"""Of a message: what adding up times may be wrong by."""

Kind = Literal["messages", "subscribes"]


class SharedRates(Struct, gc=False):
    """The buckets of one user, address or tenant."""

    messages: float = 0.0
    """When the bucket of messages is full again."""
    subscribes: float = 0.0
    """The same of subscribes."""
    messages_place: float = 0.0
    """When the last one that was refused was told to come back."""
    subscribes_place: float = 0.0
    connections: int = 0
    """That use these buckets at present."""

    def is_full(self, now: float) -> bool:
        """Whether they are as good as new ones."""
        return self.messages <= now and self.subscribes <= now


class ConnectionRates(Struct, gc=False):
    """The buckets of one connection, and those that it shares."""

    address: SharedRates
    tenant: SharedRates
    user: SharedRates | None
    """None for an anonymous connection."""
    messages: float = 0.0
    subscribes: float = 0.0
    messages_place: float = 0.0
    subscribes_place: float = 0.0
    violations: tuple[float, ...] = ()
    """When frames of it were above its rate, lately."""
    shared_refusals: TokenBucket | None = None
    """Frames that may be refused for what others have used up: as many as the connection may send anyway."""


class _Bucket(Struct, frozen=True):
    """The size of a bucket."""

    scope: str
    interval: float
    """Seconds in which one message comes in."""
    full: float
    """Seconds in which all of it comes in."""
    slack: float
    """Seconds until it is full, at most, for one message to be in it."""


_Buckets = tuple[_Bucket, _Bucket, _Bucket, _Bucket]
"""Of a connection, an address, a tenant, a user."""


class KeyedRates:
    """The buckets of every key that has a connection, and of those that had one lately.

    Of the latter at most `tracked` are remembered; the one idle longest is forgotten first.
    """

    def __init__(self, tracked: int) -> None:
        self._tracked = tracked
        self._used: dict[Hashable, SharedRates] = {}
        self._idle: OrderedDict[Hashable, SharedRates] = OrderedDict()

    def acquire(self, key: Hashable) -> SharedRates:
        """The key's buckets, for one connection; `release` must follow."""
        rates = self._used.get(key)
        if rates is None:
            rates = self._used[key] = self._idle.pop(key) if key in self._idle else SharedRates()
        rates.connections += 1
        return rates

    def release(self, key: Hashable) -> None:
        """The connection is gone."""
        rates = self._used[key]
        rates.connections -= 1
        if not rates.connections:
            del self._used[key]
            self._idle[key] = rates
            if len(self._idle) > self._tracked:
                self._idle.popitem(last=False)

    def forget_full(self, now: float, most: int) -> None:
        """Lets go of idle ones that are full again: at most so many."""
        for _ in range(most):
            key = next(iter(self._idle), None)
            if key is None or not self._idle[key].is_full(now):
                return
            del self._idle[key]

    def __len__(self) -> int:
        return len(self._used) + len(self._idle)


class Exceeded(Struct, frozen=True):
    """Why a message may not come in."""

    scope: str
    wait: float
    """Seconds after which it should come again: for each that is refused a later time."""


class Rates:
    """The rates of all connections of this node."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._users = KeyedRates(limits.tracked)
        self._addresses = KeyedRates(limits.tracked)
        self._tenants = KeyedRates(limits.tracked)
        self._message_buckets = _buckets(limits.connection_rate, limits.ip_rate, limits.tenant_rate, limits.user_rate)
        self._subscribe_buckets = _buckets(
            limits.subscribe_rate,
            limits.ip_subscribe_rate,
            limits.tenant_subscribe_rate,
            limits.user_subscribe_rate,
        )
        self._buckets: dict[Kind, _Buckets] = {
            "messages": self._message_buckets,
            "subscribes": self._subscribe_buckets,
        }

    def acquire(self, network: str, identity: Identity) -> ConnectionRates:
        """The buckets of a new connection; `release` must follow."""
        tenant, user = identity.tenant, identity.user
        of_user = None if identity.is_anonymous else self._users.acquire((tenant, user))
        return ConnectionRates(self._addresses.acquire(network), self._tenants.acquire(tenant), of_user)

    def release(self, network: str, identity: Identity) -> None:
        """The connection is gone."""
        self._addresses.release(network)
        self._tenants.release(identity.tenant)
        if not identity.is_anonymous:
            self._users.release((identity.tenant, identity.user))

    def take_message(self, rates: ConnectionRates, now: float) -> Exceeded | None:
        """As `take` of one message, written out: every message of every client comes through here."""
        address, tenant, user = rates.address, rates.tenant, rates.user
        of_connection, of_address, of_tenant, of_user = self._message_buckets
        if (
            rates.messages - now > of_connection.slack
            or address.messages - now > of_address.slack
            or tenant.messages - now > of_tenant.slack
            or (user is not None and user.messages - now > of_user.slack)
        ):
            return self.take(rates, "messages", now)
        rates.messages = max(rates.messages, now) + of_connection.interval
        address.messages = max(address.messages, now) + of_address.interval
        tenant.messages = max(tenant.messages, now) + of_tenant.interval
        if user is not None:
            user.messages = max(user.messages, now) + of_user.interval
        return None

    def take_subscribes(self, rates: ConnectionRates, now: float, count: int) -> Exceeded | None:
        """As `take` of so many, written out: every connection comes through here."""
        address, tenant, user = rates.address, rates.tenant, rates.user
        of_connection, of_address, of_tenant, of_user = self._subscribe_buckets
        connection_full = max(rates.subscribes, now) + count * of_connection.interval
        address_full = max(address.subscribes, now) + count * of_address.interval
        tenant_full = max(tenant.subscribes, now) + count * of_tenant.interval
        user_full = now if user is None else max(user.subscribes, now) + count * of_user.interval
        if (
            connection_full - now > of_connection.full
            or address_full - now > of_address.full
            or tenant_full - now > of_tenant.full
            or user_full - now > of_user.full
        ):
            return self.take(rates, "subscribes", now, count)
        rates.subscribes = connection_full
        address.subscribes = address_full
        tenant.subscribes = tenant_full
        if user is not None:
            user.subscribes = user_full
        return None

    def take(self, rates: ConnectionRates, kind: Kind, now: float, cost: int = 1) -> Exceeded | None:
        """Takes so many from every bucket that they count for, and returns None; or takes nothing from any."""
        owners, buckets = _owners(rates), self._buckets[kind]
        times = []
        for owner, bucket in zip(owners, buckets, strict=False):  # every message of every client comes through here
            full_at = getattr(owner, kind)
            spent = (max(now, full_at)) + cost * bucket.interval
            if spent - now > bucket.full:
                return self._exceeded(owner, kind, bucket, now, cost)
            times.append(spent)
        for owner, spent in zip(owners, times, strict=True):
            setattr(owner, kind, spent)
        return None

    def give_back(self, rates: ConnectionRates, kind: Kind, cost: int) -> None:
        """Puts back what was taken for nothing."""
        for owner, bucket in zip(_owners(rates), self._buckets[kind], strict=False):
            setattr(owner, kind, getattr(owner, kind) - cost * bucket.interval)

    def _exceeded(
        self, owner: ConnectionRates | SharedRates, kind: Kind, bucket: _Bucket, now: float, cost: int
    ) -> Exceeded:
        step = cost * bucket.interval
        soonest = max(getattr(owner, kind), now) + step - now - bucket.full
        place, wait = next_retry_slot(getattr(owner, f"{kind}_place"), now, soonest, step, bucket.full)
        setattr(owner, f"{kind}_place", place)
        return Exceeded(bucket.scope, wait)

    def is_abusive(self, rates: ConnectionRates, scope: str, now: float) -> bool:
        """Notes a frame that was refused; True once there were too many lately that were the connection's own fault.

        What others have used up is not: a connection is cut for that only if it keeps to no rate at all.
        """
        if scope != "connection":
            if rates.shared_refusals is None:
                rates.shared_refusals = TokenBucket(self._limits.connection_rate, now)
            if not rates.shared_refusals.acquire(now):
                return False
        rates.violations = (*(at for at in rates.violations if at > now - VIOLATION_WINDOW), now)
        return len(rates.violations) > self._limits.rate_violations

    def forget_full(self, now: float, most: int) -> None:
        """Lets go of users, addresses and tenants without a connection whose buckets are full again: at most so many of each."""
        for keyed in (self._users, self._addresses, self._tenants):
            keyed.forget_full(now, most)


def _owners(rates: ConnectionRates) -> tuple[ConnectionRates | SharedRates, ...]:
    """Whose buckets count, in the order of `_buckets`: the user's comes last, as an anonymous connection has none."""
    if rates.user is None:
        return (rates, rates.address, rates.tenant)
    return (rates, rates.address, rates.tenant, rates.user)


def _buckets(connection: Rate, ip: Rate, tenant: Rate, user: Rate) -> _Buckets:
    return _bucket("connection", connection), _bucket("ip", ip), _bucket("tenant", tenant), _bucket("user", user)


def _bucket(scope: str, rate: Rate) -> _Bucket:
    return _Bucket(
        scope,
        1.0 / rate.per_second,
        (rate.burst + _TOLERANCE) / rate.per_second,
        (rate.burst + _TOLERANCE - 1.0) / rate.per_second,
    )
