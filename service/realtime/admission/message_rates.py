"""Limits the messages that connections may send.

Every connection has its own token buckets, and shares buckets with the connections of its user, its address and its tenant.
Subscribes have separate buckets. These are large enough for all clients to subscribe again at once.

A bucket is one number: the monotonic time at which it is full again. This is the generic cell rate algorithm. It equals a token
bucket and saves memory, because each connection has several buckets.

Example:
    rates = MessageRates(limits)
    connection_rates = rates.register(network, identity)
    exceeded = rates.acquire_message(connection_rates, now)  # None: the message is within every rate
    rates.unregister(network, identity)
"""

from __future__ import annotations

from collections import deque
from typing import Literal

from msgspec import UNSET, Struct

from service.core.backoff import next_retry_slot
from service.core.identity import Identity
from service.core.limits import Limits, Rate
from service.core.token_bucket import TokenBucket
from service.realtime.admission.shared_rates import (
    AddressRates,
    KeyedRates,
    Refused,
    SharedRates,
    TenantRates,
    UserRates,
)

VIOLATION_WINDOW = 10.0
"""Seconds within which `limits.rate_violations` frames above its rate close a connection."""
_TOLERANCE = 1e-3
"""Messages that rounding of added times may cost."""
_MAX_RESET = 4_000
"""Connections whose buckets one `reset_full` looks at: more than a node can accept between two calls."""

Kind = Literal["messages", "subscribes"]


class ConnectionRates(Struct, gc=False):
    """The own and the shared buckets of one connection. The fields have the same meaning as in SharedRates."""

    address: AddressRates
    tenant: TenantRates = UNSET  # type: ignore[assignment]  # set with the identity, before anything reads it
    user: SharedRates | None = None
    """None for an anonymous connection."""
    messages: float = 0.0
    subscribes: float = 0.0
    refused: Refused | None = None


class _Bucket(Struct, frozen=True):
    """The size of a bucket, in seconds."""

    scope: str
    interval: float
    """Seconds until one message is refilled."""
    full: float
    """Seconds until an empty bucket is full."""
    slack: float
    """Seconds until a bucket with exactly one message is full."""


_Buckets = tuple[_Bucket, _Bucket, _Bucket, _Bucket]
"""The buckets of a connection, an address, a tenant and a user, in this order."""


class Exceeded(Struct, frozen=True):
    """The bucket that refused a message."""

    scope: str
    wait: float
    """Seconds until the client should retry. Each refused message gets a later time."""


class MessageRates:
    """The rates of all connections of this node."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.addresses: KeyedRates[AddressRates] = KeyedRates(limits.tracked, lambda key: AddressRates(network=key))
        self.tenants: KeyedRates[TenantRates] = KeyedRates(limits.tracked, lambda _: TenantRates())
        self.users = UserRates(limits.tracked)
        self._charged: deque[ConnectionRates] = deque()
        """Connections whose buckets for subscribes `reset_full` has to look at, the oldest first."""
        message_buckets = _buckets(limits.connection_rate, limits.ip_rate, limits.tenant_rate, limits.user_rate)
        self._message_costs = tuple(
            seconds for bucket in message_buckets for seconds in (bucket.interval, bucket.slack)
        )
        """Interval and slack of each bucket for messages."""
        self._subscribe_buckets = _buckets(
            limits.subscribe_rate,
            limits.ip_subscribe_rate,
            limits.tenant_subscribe_rate,
            limits.user_subscribe_rate,
        )
        self._buckets: dict[Kind, _Buckets] = {
            "messages": message_buckets,
            "subscribes": self._subscribe_buckets,
        }

    def register(self, network: str, identity: Identity) -> ConnectionRates:
        """Returns the buckets of a new connection. Call `unregister` when it ends."""
        tenant = self.tenants.acquire(identity.tenant)
        user = None if identity.is_anonymous else self.users.acquire(tenant, identity)
        return ConnectionRates(self.addresses.acquire(network), tenant, user)

    def unregister(self, network: str, identity: Identity) -> None:
        """Removes a connection from its shared buckets."""
        self.addresses.release(network)
        if not identity.is_anonymous:
            self.users.release(self.tenants.used[identity.tenant], identity)
        self.tenants.release(identity.tenant)

    def acquire_message(self, rates: ConnectionRates, now: float) -> Exceeded | None:
        """Does what `acquire` does for one message. Written out for speed, because it runs for every message."""
        address, tenant, user = rates.address, rates.tenant, rates.user
        (
            connection_interval,
            connection_slack,
            address_interval,
            address_slack,
            tenant_interval,
            tenant_slack,
            user_interval,
            user_slack,
        ) = self._message_costs
        of_connection, of_address, of_tenant = rates.messages, address.messages, tenant.messages
        of_user = now if user is None else user.messages
        # Mostly a bucket is full. Comparisons, because each `max` would be a call.
        if of_connection < now:
            of_connection = now
        elif of_connection - now > connection_slack:
            return self.acquire(rates, "messages", now)
        if of_address < now:
            of_address = now
        elif of_address - now > address_slack:
            return self.acquire(rates, "messages", now)
        if of_tenant < now:
            of_tenant = now
        elif of_tenant - now > tenant_slack:
            return self.acquire(rates, "messages", now)
        if user is not None:
            if of_user < now:
                of_user = now
            elif of_user - now > user_slack:
                return self.acquire(rates, "messages", now)
            user.messages = of_user + user_interval
        rates.messages = of_connection + connection_interval
        address.messages = of_address + address_interval
        tenant.messages = of_tenant + tenant_interval
        return None

    def acquire_subscribes(self, rates: ConnectionRates, now: float, count: int) -> Exceeded | None:
        """Does what `acquire` does for `count` subscribes. Written out for speed, because it runs for every connection."""
        address, tenant, user = rates.address, rates.tenant, rates.user
        of_connection, of_address, of_tenant, of_user = self._subscribe_buckets
        # Not max, which would be four calls.
        connection_full = rates.subscribes if rates.subscribes > now else now  # noqa: FURB136  # see above
        address_full = address.subscribes if address.subscribes > now else now  # noqa: FURB136
        tenant_full = tenant.subscribes if tenant.subscribes > now else now  # noqa: FURB136
        user_full = now
        if user is not None:
            user_full = user.subscribes if user.subscribes > now else now  # noqa: FURB136
            user_full += count * of_user.interval
        connection_full += count * of_connection.interval
        address_full += count * of_address.interval
        tenant_full += count * of_tenant.interval
        if (
            connection_full - now > of_connection.full
            or address_full - now > of_address.full
            or tenant_full - now > of_tenant.full
            or user_full - now > of_user.full
        ):
            return self.acquire(rates, "subscribes", now, count)
        charged = self._charged
        if not rates.subscribes:
            while charged and charged[0].subscribes <= now:
                _reset(charged.popleft(), now)
            charged.append(rates)
        rates.subscribes = connection_full
        address.subscribes = address_full
        tenant.subscribes = tenant_full
        if user is not None:
            user.subscribes = user_full
        return None

    def reset_full(self, now: float) -> None:
        """Resets buckets for subscribes that are full again to the value of new ones, which all share. Two times of its own would
        take 64 bytes of an idle connection."""
        charged = self._charged
        for _ in range(min(len(charged), _MAX_RESET)):
            rates = charged.popleft()
            if rates.subscribes <= now:
                _reset(rates, now)
            else:
                charged.append(rates)

    def acquire(self, rates: ConnectionRates, kind: Kind, now: float, cost: int = 1) -> Exceeded | None:
        """Removes `cost` messages from every bucket. If one bucket has too few, removes none and returns that bucket."""
        owners, buckets = _owners(rates), self._buckets[kind]
        times = []
        for owner, bucket in zip(owners, buckets, strict=False):
            full_at = getattr(owner, kind)
            spent = max(now, full_at) + cost * bucket.interval
            if spent - now > bucket.full:
                return self._exceeded(owner, kind, bucket, now, cost)
            times.append(spent)
        for owner, spent in zip(owners, times, strict=True):
            setattr(owner, kind, spent)
        return None

    def refund(self, rates: ConnectionRates, kind: Kind, cost: int) -> None:
        """Returns acquired messages to every bucket."""
        for owner, bucket in zip(_owners(rates), self._buckets[kind], strict=False):
            setattr(owner, kind, getattr(owner, kind) - cost * bucket.interval)

    def _exceeded(
        self, owner: ConnectionRates | SharedRates, kind: Kind, bucket: _Bucket, now: float, cost: int
    ) -> Exceeded:
        step = cost * bucket.interval
        soonest = max(getattr(owner, kind), now) + step - now - bucket.full
        refused = owner.refused = owner.refused or Refused()
        retry_at, wait = next_retry_slot(getattr(refused, f"{kind}_retry_at"), now, soonest, step, bucket.full)
        setattr(refused, f"{kind}_retry_at", retry_at)
        return Exceeded(bucket.scope, wait)

    def is_abusive(self, rates: ConnectionRates, scope: str, now: float) -> bool:
        """Records a refused frame. True if the connection has had too many violations lately.

        Other connections may have emptied a shared bucket. So its refusals are violations only above the connection's own rate.
        """
        refused = rates.refused = rates.refused or Refused()
        if scope != "connection":
            if refused.shared_refusals is None:
                refused.shared_refusals = TokenBucket(self._limits.connection_rate, now)
            if not refused.shared_refusals.acquire(now):
                return False
        refused.violations = (*(at for at in refused.violations if at > now - VIOLATION_WINDOW), now)
        return len(refused.violations) > self._limits.rate_violations

    def evict_full(self, now: float, max_keys: int) -> None:
        """Evicts users, addresses and tenants without connections whose buckets are full: at most `max_keys` of each."""
        self.users.idle.evict_full(now, max_keys)
        self.addresses.idle.evict_full(now, max_keys)
        self.tenants.idle.evict_full(now, max_keys)


def _reset(rates: ConnectionRates, now: float) -> None:
    """Resets the own bucket, which is full, and that of the user if it is full, too."""
    rates.subscribes = 0.0
    user = rates.user
    if user is not None and user.subscribes <= now:
        user.subscribes = 0.0


def _owners(rates: ConnectionRates) -> tuple[ConnectionRates | SharedRates, ...]:
    """The owners of the buckets, in the order of `_Buckets`. The user is last, because anonymous connections have none."""
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
