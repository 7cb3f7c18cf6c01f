"""Bounds and rates. The numbers are settings; docs/settings.md lists them. Time comes in as an argument (seconds)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from random import uniform
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

Bytes = Annotated[int, Ge(1024)]
Count = Annotated[int, Ge(1)]
Seconds = Annotated[float, Gt(0)]
PerSecond = Annotated[float, Gt(0)]

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""For pydantic, which reads these classes as groups of settings: an unknown name is a fault, not a comment, and so is infinity,
which no timer can be set for."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` over time, `burst` at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    per_second: PerSecond
    burst: Count


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, address, user, tenant or node may take."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    message_bytes: Bytes = 65_536
    """One inbound message; a message of exactly this size is accepted."""
    batch: Count = 100
    """Messages in one inbound frame."""
    subscriptions: Count = 128
    """Channels a connection."""
    connections: Count = 15_000
    """Connections of this node. Fewer where the process may not open enough files; the log says so at the start."""
    connections_per_tenant: Count = 1_000_000
    """Connections of one tenant to all nodes together."""
    connections_per_user: Count = 32
    """Connections of one user to all nodes together."""
    on_user_cap: Literal["refuse", "replace"] = "refuse"
    """What happens to one connection more: it is refused, or it replaces the user's oldest (closed with 4409)."""
    connections_per_ip: Count = 1_000
    """Per IPv4 address or IPv6 /64."""
    pending: Count = 2_000
    """Connections that have not said hello yet."""
    http_connections: Count = 10_000
    """TCP connections of the public listener that are not WebSockets: those that have sent no request yet, those kept alive,
    those with a request in hand. For one more, the one that has waited longest for a request is closed."""
    http_connections_per_ip: Count | None = None
    """The same, of the one address that the TCP connection comes from (IPv6: /64). Unset, as many as `limits.connections_per_ip`,
    as they may come back all at once, and at least 1 000. Not applied with `proxy.hops`: a proxy's are everybody's."""
    ops_connections: Count = 32
    """TCP connections of the listener for health and metrics. For one more, the one that has waited longest is closed."""
    connection_rate: Rate = Rate(per_second=20, burst=100)
    """Inbound messages of one connection. Subscribes have a budget of their own, which refills as fast, and whose burst is
    `limits.subscriptions` for each connection that there may be; so do those of the next three."""
    user_rate: Rate = Rate(per_second=50, burst=200)
    """Inbound messages of one user over all connections."""
    ip_rate: Rate = Rate(per_second=500, burst=2_000)
    """Inbound messages from one address."""
    tenant_rate: Rate = Rate(per_second=5_000, burst=10_000)
    """Inbound messages of one tenant."""
    connect_rate_per_ip: Rate = Rate(per_second=50, burst=500)
    """Upgrades and tickets asked for by one address."""
    api_rate_per_key: Rate = Rate(per_second=2_000, burst=10_000)
    """Requests of the backend API with one key."""
    api_rate_per_ip: Rate = Rate(per_second=2_000, burst=10_000)
    """Requests of the backend API from one address. One without a valid key uses up a hundredth of the burst, so that keys cannot
    be tried fast."""
    rate_violations: Count = 20
    """Frames with messages above its own rate that a connection may send within 10 s before it is closed with 4429."""
    tracked: Count = 50_000
    """Users and addresses without a connection whose rates are remembered; the one idle longest is forgotten first."""

    @property
    def subscribe_rate(self) -> Rate:
        """Subscribes of one connection."""
        return self._subscribes(self.connection_rate, 1)

    @property
    def user_subscribe_rate(self) -> Rate:
        """Subscribes of one user over all connections."""
        return self._subscribes(self.user_rate, self.connections_per_user)

    @property
    def ip_subscribe_rate(self) -> Rate:
        """Subscribes from one address."""
        return self._subscribes(self.ip_rate, self.connections_per_ip)

    @property
    def tenant_subscribe_rate(self) -> Rate:
        """Subscribes of one tenant."""
        return self._subscribes(self.tenant_rate, self.connections_per_tenant)

    def _subscribes(self, messages: Rate, connections: int) -> Rate:
        """Over time as many as messages; at once what that many connections need to get all their channels back."""
        burst = min(connections, self.connections) * self.subscriptions
        return Rate(messages.per_second, max(messages.burst, burst))

    @property
    def max_http_connections_per_ip(self) -> int:
        """`http_connections_per_ip`, or what it is where it is not set."""
        return self.http_connections_per_ip or max(self.connections_per_ip, 1_000)


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How far a connection may fall behind."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    bytes: Bytes = 262_144
    """Bytes of events that may wait for one connection; what happens then depends on the delivery class. When events and
    replies together are over it, no further command of the connection is read."""
    messages: Count = 512
    """Events that may wait for one connection; the same then."""
    stall: Seconds = 10.0
    """Seconds one write may wait for the peer to read; then 4450."""
    close_grace: Seconds = 1.0
    """Seconds between asking a connection to close and cutting it."""
    node_bytes: Bytes = 268_435_456
    """All that this node holds for its peers: what waits in outboxes, what has been written and not sent, messages that have come
    in part, those that wait behind a command, request bodies."""
    tenant_share: Annotated[float, Gt(0), Le(1)] = 0.9
    """The part of `node_bytes` that the clients of one tenant, or its backend, may hold, of what the others leave of it."""
    send_buffer: Bytes = 65_536
    """Kernel send buffer a connection asks for; what hides there no delivery class can reach."""
    recovery_events: Count = 1_000
    """Missed events in one `subscribed`; a client further behind is told recovered:false and pages through history."""
    recovery_bytes: Bytes = 1_048_576
    """Bytes of missed events in one `subscribed`; the same beyond."""


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """How gaps between a node and the broker are looked for, and how much is read to close one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    check: Seconds = 10.0
    """Seconds within which every channel's position is compared with the stream's, in case that a delivery was lost."""
    events: Count = 10_000
    """Missed events of one channel that a node reads; more are announced as lost to its subscribers."""
    bytes: Bytes = 16_777_216
    """Bytes of those."""


@dataclass(frozen=True, slots=True)
class Compression:
    """Which messages are sent compressed, to clients that offer permessage-deflate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool = False
    """Compresses what is sent to clients that offer it, and reads what they compress. Leave it off where a message can hold a
    secret beside text that somebody else chose (docs/adr/0015-compression.md)."""
    min_bytes: Annotated[int, Ge(0)] = 256
    """Bytes from which on a message is compressed, unless the contract says `compress` for its type; small ones gain little."""
    level: Annotated[int, Ge(1), Le(9)] = 5
    """From 1 (fast) to 9 (small)."""

    def wanted(self, asked: bool | None, size: int) -> bool:
        """Whether to compress a message of `size` bytes, given what the contract asks for its type (None: nothing)."""
        return self.enabled and (size >= self.min_bytes if asked is None else asked)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long things may take, in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    header: Seconds = 10.0
    """From accepting a TCP connection (or the last response) to a complete request header; keep-alive adds its own."""
    body: Seconds = 10.0
    """Reading a request body."""
    message: Seconds = 10.0
    """From the first byte of a WebSocket message to its last."""
    hello: Seconds = 5.0
    """From an upgrade without credentials to hello."""
    keep_alive: Seconds = 30.0
    """Idle time of an HTTP connection between two requests."""
    heartbeat: Seconds = 25.0
    """Between WebSocket pings; below half of every idle timeout on the way (docs/protocol.md)."""
    ticket: Seconds = 30.0
    """Life of a ticket."""
    expiry_notice: Seconds = 60.0
    """How long before a token's expiry `expiring` is sent."""
    expiry_grace: Seconds = 10.0
    """How long after its token's expiry a connection is closed."""
    presence_leave: Annotated[float, Ge(0)] = 5.0
    """How long after a user's last connection went `presence.left` is told."""
    shutdown: Seconds = 20.0
    """From SIGTERM to the last connection closed."""
    last_scrape: Annotated[float, Ge(0)] = 35.0
    """After a drain that timed out: how long the ops listener stays open, at most, until whoever scrapes `/metrics` has done so
    once more. Longer than the scrape interval. 0: it closes at once, and no alert tells of connections that were cut."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How connections move between nodes: when a node goes away, and when one comes."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    drain_rate: PerSecond = 200.0
    """Connections closed a second when this node shuts down, evenly, so that the other nodes get as many back; more where
    three quarters of `deadlines.shutdown` are too short for that."""
    accept_rate: Rate = Rate(per_second=1_000, burst=1_000)
    """Upgrades that this node accepts; the others are refused with 503, each with a moment of its own to come back. Less than
    half of what a core can do: a crowd must not slow down those who are connected. `burst` should be a second's worth or more,
    as crowds come back at whole seconds. Keep it far above `limits.connect_rate_per_ip`: who comes without credentials has a
    place until it says hello, or does not."""
    accept_max_lag: Seconds = 0.1
    """Seconds that the event loop may be late. While it is later, the node accepts fewer upgrades than `rollout.accept_rate`:
    half as many, each second again; after that a tenth of the setting more each second, up to all of it."""
    max_age: Annotated[float, Ge(0)] = 0.0
    """Seconds after which a connection is asked to come back, less up to a half by chance; 0: never. So connections come to
    nodes that are new, and none outlives what was decided when it came, such as which proxy it goes through."""
    rebalance: bool = True
    """Asks connections to come back while this node has more than others that take some, so that new nodes get their share. Off
    where persistent sticky cookies lead clients back to the same node."""
    rebalance_margin: Annotated[float, Gt(0)] = 0.1
    """How far above the mean a node may be, as a share of that; with few connections at least three times the mean's square
    root, as chance does that."""
    rebalance_rate: PerSecond = 10.0
    """Connections a second that one node asks to move, at most."""
    rebalance_least_age: Annotated[float, Ge(0)] = 60.0
    """Seconds that a connection is left alone after it has come, from wherever."""


@dataclass(frozen=True, slots=True)
class Probing:
    """The latency probe: an event of the node's own, published, delivered over a connection to itself, and echoed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    interval: Annotated[float, Ge(0)] = 5.0
    """Seconds between two; 0 measures nothing."""
    timeout: Seconds = 5.0
    """Seconds without an echo after which one has failed. Longer than the interval, it puts the next one off."""


LONGEST_WAIT = 60.0
"""Seconds that anybody is told to stay away, at most: the longer the wait, the less is known of what will be then."""


def jittered(seconds: float) -> float:
    """A time to come back that many could be told at once: up to twice as long, by chance."""
    return round(uniform(seconds, 2 * seconds), 3)  # noqa: S311  # spreads load, guards nothing


def next_place(last: float, now: float, soonest: float, step: float, full: float) -> tuple[float, float]:
    """The time that one who is refused is told to come at, and how long that is, in seconds: behind the `last` that was told.

    `soonest`: until it could succeed. `step`: what it costs. `full`: what a full bucket is worth; beyond that nothing is known
    of who will still be there, and those are spread over the second half of it.
    """
    longest = min(LONGEST_WAIT, full)
    place = max(last, now + soonest - step) + step
    if place <= now + longest:
        return place, max(soonest, place - now)
    return now + longest, max(soonest, uniform(longest / 2, longest))  # noqa: S311  # spreads load, guards nothing


class TokenBucket:
    """Allows `rate.per_second` over time and `rate.burst` at once. `now` is seconds that never go back."""

    __slots__ = ("_last_place", "_rate", "_tokens", "_updated")

    def __init__(self, rate: Rate, now: float) -> None:
        self._rate = rate
        self._tokens = float(rate.burst)
        self._updated = now
        self._last_place = 0.0
        """When the last one that was refused was told to come back."""

    def take(self, now: float, cost: float = 1.0) -> float:
        """Takes `cost` and returns 0.0, or takes nothing and returns the seconds until it would succeed (inf: never)."""
        tokens = self._refill(now)
        if tokens >= cost:
            self._tokens = tokens - cost
            return 0.0
        if cost > self._rate.burst:
            return inf
        return (cost - tokens) / self._rate.per_second

    def place(self, now: float, cost: float = 1.0) -> float:
        """Seconds after which one that was refused should try again. Each that is refused meanwhile is told a later time: told
        the same, all but one would come in vain. Nothing is reserved: whoever comes while there are tokens gets them."""
        rate = self._rate
        soonest = (cost - self._refill(now)) / rate.per_second
        self._last_place, wait = next_place(
            self._last_place, now, soonest, cost / rate.per_second, rate.burst / rate.per_second
        )
        return wait

    def charge(self, cost: float) -> None:
        """Takes `cost` even if there is less: what comes next waits until that is paid."""
        self._tokens -= cost

    def give_back(self, cost: float = 1.0) -> None:
        """Puts back what was taken for nothing."""
        self._tokens = min(self._rate.burst, self._tokens + cost)

    def change(self, rate: Rate, now: float) -> None:
        """Goes on with another rate, and no more tokens than fit into its burst."""
        self._refill(now)
        self._rate = rate
        self._tokens = min(rate.burst, self._tokens)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return self._tokens + (now - self._updated) * self._rate.per_second >= self._rate.burst

    def _refill(self, now: float) -> float:
        self._tokens = min(self._rate.burst, self._tokens + (now - self._updated) * self._rate.per_second)
        self._updated = now
        return self._tokens


class KeyedBuckets:
    """A bucket per key, for at most `most` keys: the one idle longest is forgotten first, so memory is bounded."""

    __slots__ = ("_buckets", "_most", "_rate")

    def __init__(self, rate: Rate, most: int) -> None:
        self._rate = rate
        self._most = most
        self._buckets: OrderedDict[Hashable, TokenBucket] = OrderedDict()

    def take(self, key: Hashable, now: float, cost: float = 1.0) -> float:
        """As `TokenBucket.take`, on the key's bucket."""
        return self.of(key, now).take(now, cost)

    def of(self, key: Hashable, now: float) -> TokenBucket:
        """The key's bucket, for use at once: it may be forgotten later."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = TokenBucket(self._rate, now)
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(key)
        return bucket

    def forget_full(self, now: float, most: int) -> None:
        """Lets go of those that have not been used for so long that they are full again: at most so many."""
        for _ in range(most):
            key = next(iter(self._buckets), None)
            if key is None or not self._buckets[key].is_full(now):
                return
            del self._buckets[key]

    def __len__(self) -> int:
        return len(self._buckets)
