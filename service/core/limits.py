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
"""For pydantic, which reads these classes as settings. Unknown names, infinity and NaN are faults."""

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
"""Seconds that the store keeps the position of a channel after its last publish."""
EMPTY_TTL = 60.0
"""Seconds that the store keeps the position of a channel without any publish, after its last subscriber has left."""
IDEMPOTENCY_WINDOW = 300.0
"""Seconds in which a repeated id is detected."""
UNREADY_AFTER = 30.0
"""Seconds without the broker after which a node is not ready."""
PRESENCE_MEMBERS = 200
"""A channel with more users shows presence as a count."""
PRESENCE_TTL = 30.0
"""Seconds after which a presence entry expires unless it is renewed."""
PRESENCE_UPDATE_BYTES = 1_024
"""Bytes of `data` in a `presence.update`: as many as the info in a token may have."""
REVOCATION_TTL = 86_400.0
"""Seconds that a revocation lasts."""
MAX_REVOCATIONS = 10_000
"""Maximum number of revocations of one tenant."""
MAX_TOTAL_REVOCATIONS = 100_000
"""Maximum number of revocations of all tenants together."""


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `per_second` over time, `burst` at once."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    per_second: PerSecond
    burst: Count


CONNECT_HOOK_RATE = Rate(per_second=200, burst=400)
"""Questions to the backend about clients that connect."""
MAX_HOOK_ANSWERS = 10_000
"""Answers of the backend that are remembered, of each kind."""
WEBHOOK_QUEUES = 4
"""Queues of each endpoint and tenant."""
WEBHOOK_QUEUE_ENTRIES = 20_000
"""Entries that one queue holds."""
WEBHOOK_KEEP = 86_400.0
"""Seconds that an undelivered entry is kept until it becomes a dead letter."""
WEBHOOK_ATTEMPTS = 5
"""Refusals after which an entry becomes a dead letter."""
MAX_WEBHOOK_DEAD_LETTERS = 10_000
"""Dead letters of each endpoint and tenant."""
WEBHOOK_BATCH = 100
"""Entries in one request to an endpoint."""
MAX_WAITING_ENDS = 10_000
"""Ends of connections, channels and users that a node keeps in memory while the store is away."""
WEBHOOK_TIMEOUT = 10.0
"""Seconds that such a request may take."""


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
    calls: Count = 16
    """Calls to the backend that one connection may have under way. The calls of a user over HTTP count together."""
    connections: Count = 15_000
    """Connections of this node. If the limit of open files is too low, the node lowers this cap and logs that at the start."""
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
    """TCP connections of the public listener that are not WebSockets, idle ones included. One more closes the connection that has
    waited longest for a request."""
    http_connections_per_ip: Count | None = None
    """The same for one IPv4 address or IPv6 /64 of the TCP connection. Unset: `limits.connections_per_ip`, so that all of them
    can reconnect at once, but at least 1 000. Not applied with `proxy.hops`, because the address is the proxy's."""
    ops_connections: Count = 32
    """TCP connections of the listener for health and metrics. One more closes the connection that has waited longest."""
    connection_rate: Rate = Rate(per_second=20, burst=100)
    """Inbound messages of one connection. Subscribes have a separate rate with the same refill. Its burst is
    `limits.subscriptions` times the allowed connections. The same is true for the next three rates."""
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
    """Backend API requests from one address. A request without a valid key costs a hundredth of the burst, so that nobody can
    guess keys fast."""
    rate_violations: Count = 20
    """Frames above its own rate that a connection may send within 10 s before it is closed with 4429."""
    client_versions: Annotated[int, Ge(1), Le(900)] = 50
    """Client versions (`client=name/version` in the address) that metrics count apart: the first ones since the start of the
    node. All others are counted as `other`."""
    tracked: Count = 50_000
    """Users and addresses without a connection whose rates the node keeps. One more evicts the one that is idle longest."""

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
        """The refill of `messages`, with a burst that lets `connections` connections resubscribe to all channels at once."""
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
    replies together exceed it, the connection's commands wait."""
    messages: Count = 512
    """Events that may wait for one connection. Above that, the same happens as for `outbox.bytes`."""
    stall: Seconds = 10.0
    """Seconds that a write may wait until the client reads. Then the connection is closed with 4450."""
    close_grace: Seconds = 1.0
    """Seconds between the close frame and the end of the TCP connection."""
    node_bytes: Bytes = 268_435_456
    """Bytes that this node may hold for its clients and backends: outboxes, unsent writes, partial messages, waiting commands,
    request bodies."""
    tenant_share: Annotated[float, Gt(0), Le(1)] = 0.9
    """Share that the clients of one tenant may hold of the bytes that all others leave: of `node_bytes` less what those hold. Its
    backend may hold the same share."""
    send_buffer: Bytes = 65_536
    """Kernel send buffer of a connection. Bytes in it can no longer be dropped by delivery class."""
    recovery_events: Count = 1_000
    """Missed events in one `subscribed`. A client that has missed more gets `recovered: false` and reads the history in pages."""
    recovery_bytes: Bytes = 1_048_576
    """Bytes of missed events in one `subscribed`. Above that, the same happens as for `outbox.recovery_events`."""


@dataclass(frozen=True, slots=True)
class RepairLimits:
    """How often a node checks for gaps, and how much it reads to recover one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    check: Seconds = 10.0
    """Seconds between two checks of all channels' positions against their streams. A check finds silently lost events."""
    events: Count = 10_000
    """Missed events of one channel that a node reads. If there are more, subscribers get `recovered: false`."""
    bytes: Bytes = 16_777_216
    """Bytes of missed events of one channel that a node reads."""


@dataclass(frozen=True, slots=True)
class HistoryPages:
    """Pages of history that caches between client and service may keep, where the contract says `cacheable`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    address_ttl: Annotated[int, Ge(60), Le(86_400)] = 3_600
    """Seconds that the address of a history page is valid at most, and half of that at least. A user whose rights have ended can
    read full pages of the channel for so long."""
    max_age: Annotated[int, Ge(0), Le(86_400)] = 300
    """Seconds that caches may keep a history page without asking again. An event that was taken back stays in caches for so
    long."""


@dataclass(frozen=True, slots=True)
class Compression:
    """Compression for clients that offer permessage-deflate."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    enabled: bool = False
    """Compresses messages to clients that offer it, and accepts compressed messages from them. Leave it off if a message can hold
    a secret beside text from another user (docs/adr/0015-compression.md)."""
    min_bytes: Annotated[int, Ge(0)] = 256
    """Smallest message that is compressed, unless the contract sets `compress` for its type. Small messages gain little."""
    level: Annotated[int, Ge(1), Le(9)] = 5
    """Compression level, from 1 (fast) to 9 (small)."""

    def wanted(self, asked: bool | None, size: int) -> bool:
        """True to compress a message of `size` bytes. `asked` is the contract's `compress` for its type; None if unset."""
        return self.enabled and (size >= self.min_bytes if asked is None else asked)


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Timeouts and other times, in seconds."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    header: Seconds = 10.0
    """Seconds from the start of a TCP connection, or from the last response, to a complete request header. After a response,
    `deadlines.keep_alive` is added."""
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
    stream_ticket: Seconds = 120.0
    """Seconds that the ticket of a stream is valid. It may be used more than once, because a browser's EventSource reconnects by
    itself."""
    expiry_notice: Seconds = 60.0
    """Seconds before a token's expiry at which `expiring` is sent."""
    expiry_grace: Seconds = 10.0
    """Seconds after a token's expiry at which its connection is closed."""
    presence_leave: Annotated[float, Ge(0)] = 5.0
    """Seconds from the close of a user's last connection to `presence.left`, and from a channel's last subscriber to the webhook
    `channel.vacated`."""
    shutdown: Seconds = 20.0
    """Seconds from SIGTERM to the close of the last connection."""
    last_scrape: Annotated[float, Ge(0)] = 35.0
    """Seconds that the ops listener stays open after a drain that timed out, for one more scrape of `/metrics`. Set it above the
    scrape interval. 0 closes the listener at once; then no alert reports the aborted connections."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """How connections move between nodes when one starts or stops."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    drain_rate: PerSecond = 200.0
    """Connections that this node closes per second when it shuts down. It closes them faster if three quarters of
    `deadlines.shutdown` are too short for this rate."""
    accept_rate: Rate = Rate(per_second=1_000, burst=1_000)
    """Upgrades that this node accepts. Others are refused with 503 and a time to retry. The default is less than half of what one
    core can do, so that a mass reconnect does not slow down connected clients. Set `burst` to at least `per_second`, because
    clients often return at whole seconds. Keep the rate far above `limits.connect_rate_per_ip`, so that one address cannot use it
    up."""
    accept_max_lag: Seconds = 0.1
    """Seconds that the event loop may be late. While it is later, the rate of accepted upgrades halves each second. Afterwards it
    grows by a tenth of `rollout.accept_rate` per second."""
    max_age: Annotated[float, Ge(0)] = 0.0
    """Seconds after which a connection is asked to reconnect, less a random part of up to one half; 0: never. Reconnects bring
    connections to new nodes, and through new proxies."""
    rebalance: bool = True
    """Asks connections to reconnect while this node has more of them than others. Turn it off if sticky cookies lead clients back
    to the same node."""
    rebalance_margin: Annotated[float, Gt(0)] = 0.1
    """The part of the mean by which a node's connections may exceed it. With few connections, the margin is at least three
    times the mean's square root, because chance causes such differences."""
    rebalance_rate: PerSecond = 10.0
    """Maximum number of connections per second that a node asks to move."""
    rebalance_least_age: Annotated[float, Ge(0)] = 60.0
    """Minimum age in seconds of a connection that is asked to move."""


@dataclass(frozen=True, slots=True)
class Probing:
    """The latency probe: the node publishes an event, and receives it over a connection to itself."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    interval: Annotated[float, Ge(0)] = 5.0
    """Seconds between two probes; 0 disables them."""
    timeout: Seconds = 5.0
    """Seconds after which a probe without an answer has failed. A timeout above the interval delays the next probe."""
