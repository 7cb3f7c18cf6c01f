"""Limits and rates as settings: the dataclasses below are groups of the settings file. docs/settings.md lists them.

Each default is stated here once. `service/settings` and `service/realtime` use these classes and constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le

Bytes = Annotated[int, Ge(1024)]
Count = Annotated[int, Ge(1)]
Seconds = Annotated[float, Gt(0)]
PerSecond = Annotated[float, Gt(0)]

STRICT: dict[str, Any] = {"extra": "forbid", "allow_inf_nan": False}
"""For pydantic, which reads these classes as settings: unknown names are faults, and so are infinity and NaN."""

STORE_PREFIX = "tidewire"
"""Prefix of every key at the store."""
STORE_CALL_TIMEOUT = 5.0
"""Seconds that a call of the store may take."""
MAX_STORE_CALLS = 10_000
"""Calls that may wait for the store."""
STORE_PING_INTERVAL = 1.0
"""Seconds between two pings of the store."""
STORE_SILENCE_TIMEOUT = 3.0
"""Seconds without a response after which a connection to the store is lost."""
POSITION_TTL = 604_800.0
"""Seconds that a channel without publishes keeps its position."""
EMPTY_TTL = 60.0
"""Seconds that a channel without any publish keeps its position after its last subscriber."""
IDEMPOTENCY_WINDOW = 300.0
"""Seconds in which a repeated id is detected."""
UNREADY_AFTER = 30.0
"""Seconds without the broker after which a node is not ready."""
PRESENCE_MEMBERS = 200
"""Users in a channel above which presence is sent as a count."""
PRESENCE_TTL = 30.0
"""Seconds that an entry in presence lasts unless it is renewed."""
REVOCATION_TTL = 86_400.0
"""Seconds that a revocation lasts."""
MAX_REVOCATIONS = 10_000
"""Revocations that are kept of one tenant."""
MAX_TOTAL_REVOCATIONS = 100_000
"""Revocations that are kept of all tenants together."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` over time, `burst` at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    per_second: PerSecond
    burst: Count


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client, address, user, tenant or node may use."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    message_bytes: Bytes = 65_536
    """Largest inbound message, in bytes."""
    batch: Count = 100
    """Messages in one frame. A client's frame with more is refused; the service sends several frames instead."""
    subscriptions: Count = 128
    """Channels that one connection may subscribe to."""
    connections: Count = 15_000
    """Connections of this node. A low limit of open files lowers it; a log record at the start says so."""
    connections_per_tenant: Count = 1_000_000
    """Connections of one tenant to all nodes together."""
    connections_per_user: Count = 32
    """Connections of one user to all nodes together."""
    on_user_cap: Literal["refuse", "replace"] = "refuse"
    """At the cap of a user: `refuse` the new connection, or `replace` the oldest one, which is closed with 4409."""
    connections_per_ip: Count = 1_000
    """Connections of one IPv4 address or IPv6 /64 to this node."""
    pending: Count = 2_000
    """Connections that have not sent `hello` yet."""
    http_connections: Count = 10_000
    """TCP connections of the public listener that are not WebSockets: before their first request, with a request, kept alive. One
    more closes the connection that has waited longest for a request."""
    http_connections_per_ip: Count | None = None
    """The same for one address (IPv6: /64) of the TCP connection. Unset: `limits.connections_per_ip`, which may all
    reconnect at once, and at least 1 000. Not applied with `proxy.hops`: the address is the proxy's."""
    ops_connections: Count = 32
    """TCP connections of the listener for health and metrics. One more closes the connection that has waited longest."""
    connection_rate: Rate = Rate(per_second=20, burst=100)
    """Inbound messages of one connection. Subscribes have a budget of their own with the same refill; its burst is
    `limits.subscriptions` times the connections allowed. The next three rates do the same."""
    user_rate: Rate = Rate(per_second=50, burst=200)
    """Inbound messages of one user over all connections."""
    ip_rate: Rate = Rate(per_second=500, burst=2_000)
    """Inbound messages from one address."""
    tenant_rate: Rate = Rate(per_second=5_000, burst=10_000)
    """Inbound messages of one tenant."""
    connect_rate_per_ip: Rate = Rate(per_second=50, burst=500)
    """Upgrade and ticket requests from one address."""
    api_rate_per_key: Rate = Rate(per_second=2_000, burst=10_000)
    """Backend API requests with one key."""
    api_rate_per_ip: Rate = Rate(per_second=2_000, burst=10_000)
    """Backend API requests from one address. A request without a valid key costs a hundredth of the burst, so that keys cannot be
    guessed fast."""
    rate_violations: Count = 20
    """Frames above its own rate that a connection may send within 10 s before it is closed with 4429."""
    tracked: Count = 50_000
    """Users and addresses without a connection whose rates are remembered. One more evicts the one idle longest."""

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
        """The refill of `messages`, with a burst that lets so many connections resubscribe to all their channels at once."""
        burst = min(connections, self.connections) * self.subscriptions
        return Rate(messages.per_second, max(messages.burst, burst))

    @property
    def max_http_connections_per_ip(self) -> int:
        """`http_connections_per_ip`, or its default when unset."""
        return self.http_connections_per_ip or max(self.connections_per_ip, 1_000)


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How far a connection may fall behind."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    bytes: Bytes = 262_144
    """Bytes of events that may wait for one connection. Above that, the delivery class decides what is dropped. While events and
    replies together exceed it, the connection's commands are not read."""
    messages: Count = 512
    """Events that may wait for one connection; above that, as for `outbox.bytes`."""
    stall: Seconds = 10.0
    """Seconds that one write may wait for the peer to read; then the connection is closed with 4450."""
    close_grace: Seconds = 1.0
    """Seconds between the close frame and the end of the TCP connection."""
    node_bytes: Bytes = 268_435_456
    """Bytes that this node holds for its peers: outboxes, writes not sent yet, partial messages, commands that wait,
    request bodies."""
    tenant_share: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share that the clients of one tenant may hold of the bytes that all others leave: of `node_bytes` less what those hold. Its
    backend may hold the same share."""
    send_buffer: Bytes = 65_536
    """Kernel send buffer of a connection. Bytes in it can no longer be dropped by delivery class."""
    recovery_events: Count = 1_000
    """Missed events in one `subscribed`. A client further behind gets `recovered: false` and reads the history in pages."""
    recovery_bytes: Bytes = 1_048_576
    """Bytes of missed events in one `subscribed`; above that, as for `outbox.recovery_events`."""


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """How a node looks for gaps between itself and the broker, and how much it reads to close one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    check: Seconds = 10.0
    """Seconds within which each channel's position is compared with the stream's, in case a delivery was lost."""
    events: Count = 10_000
    """Missed events of one channel that a node reads. Subscribers are told that further events are lost."""
    bytes: Bytes = 16_777_216
    """Bytes of missed events of one channel that a node reads."""


@dataclass(frozen=True, slots=True)
class Compression:
    """Which messages are sent compressed, to clients that offer permessage-deflate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool = False
    """Compresses messages to clients that offer it, and reads their compressed messages. Leave it off where a message can hold a
    secret beside text that somebody else chose (docs/adr/0015-compression.md)."""
    min_bytes: Annotated[int, Ge(0)] = 256
    """Smallest message that is compressed, unless the contract sets `compress` for its type. Small messages gain little."""
    level: Annotated[int, Ge(1), Le(9)] = 5
    """Compression level, from 1 (fast) to 9 (small)."""

    def wanted(self, asked: bool | None, size: int) -> bool:
        """Whether to compress a message of `size` bytes. `asked` is what the contract sets for its type (None: nothing)."""
        return self.enabled and (size >= self.min_bytes if asked is None else asked)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """How long things may take, in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    header: Seconds = 10.0
    """Seconds from accepting a TCP connection (or the last response) to a complete request header. Keep-alive adds its own."""
    body: Seconds = 10.0
    """Seconds to read a request body."""
    message: Seconds = 10.0
    """Seconds from the first byte of a WebSocket message to its last."""
    hello: Seconds = 5.0
    """Seconds from an upgrade without credentials to `hello`."""
    keep_alive: Seconds = 30.0
    """Seconds that an HTTP connection may be idle between two requests."""
    heartbeat: Seconds = 25.0
    """Seconds between two WebSocket pings. Keep it below half of every idle timeout between client and node
    (docs/protocol.md)."""
    ticket: Seconds = 30.0
    """Seconds that a ticket is valid."""
    expiry_notice: Seconds = 60.0
    """Seconds before a token's expiry at which `expiring` is sent."""
    expiry_grace: Seconds = 10.0
    """Seconds after a token's expiry at which its connection is closed."""
    presence_leave: Annotated[float, Ge(0)] = 5.0
    """Seconds from the close of a user's last connection to `presence.left`."""
    shutdown: Seconds = 20.0
    """Seconds from SIGTERM to the close of the last connection."""
    last_scrape: Annotated[float, Ge(0)] = 35.0
    """Seconds that the ops listener stays open after a drain that timed out, for one more scrape of `/metrics`. Set it above the
    scrape interval. 0 closes the listener at once; then no alert reports the connections that were cut."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How connections move between nodes when one starts or stops."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    drain_rate: PerSecond = 200.0
    """Connections closed a second when this node shuts down, evenly spread. The node closes faster where three
    quarters of `deadlines.shutdown` would not suffice."""
    accept_rate: Rate = Rate(per_second=1_000, burst=1_000)
    """Upgrades that this node accepts. Others are refused with 503 and a time to retry. The default is below half of what one
    core can do, so that a crowd does not slow down connected clients. Set `burst` to one second's worth or more: crowds return at
    whole seconds. Keep the rate far above `limits.connect_rate_per_ip`: a client without credentials uses a place until
    `hello`."""
    accept_max_lag: Seconds = 0.1
    """Seconds that the event loop may be late. While it is later, each second halves the accepted upgrades. After that
    the rate grows by a tenth of `rollout.accept_rate` a second."""
    max_age: Annotated[float, Ge(0)] = 0.0
    """Seconds after which a connection is asked to reconnect, less up to a half at random; 0: never. Connections then reach new
    nodes, and drop what was decided when they connected, such as the proxy on their way."""
    rebalance: bool = True
    """Asks connections to reconnect while this node has more of them than others. Turn it off where persistent sticky cookies
    lead clients back to the same node."""
    rebalance_margin: Annotated[float, Gt(0)] = 0.1
    """How far above the mean a node may be, as a part of the mean. With few connections at least three times the mean's square
    root applies, which chance alone explains."""
    rebalance_rate: PerSecond = 10.0
    """Connections a second that one node asks to move, at most."""
    rebalance_least_age: Annotated[float, Ge(0)] = 60.0
    """Seconds for which a new connection is not asked to move."""


@dataclass(frozen=True, slots=True)
class Probing:
    """The latency probe: the node publishes an event of its own, and receives it over a connection to itself."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    interval: Annotated[float, Ge(0)] = 5.0
    """Seconds between two probes; 0 disables them."""
    timeout: Seconds = 5.0
    """Seconds without an answer after which a probe has failed. A timeout above the interval delays the next probe."""
