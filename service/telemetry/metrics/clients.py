"""Metrics of clients: connections, refusals, HTTP, and the limits that they reach."""

from __future__ import annotations

from service.telemetry.metrics.registry import LATENCY_BUCKETS, MetricFactory, start_at_zero

_PING = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0, 12.5)
_LENGTH = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0)
_LIMITS = (
    "message_bytes",
    "batch",
    "subscriptions",
    "connections",
    "connections_per_tenant",
    "connections_per_user",
    "connections_per_ip",
    "pending",
    "http_connections",
    "http_connections_per_ip",
    "ops_connections",
    "open_files",
    "hello_deadline",
    "header_deadline",
    "body_deadline",
    "message_deadline",
    "late_bytes",
    "outbox",
    "outbox_node",
    "stall",
    "heartbeat",
    "broker_queue",
    "revocations",
    "calls",
    "hook_connects",
    "hook_answers",
    "hook_refreshes",
    "replaced_sessions",
    "accept_rate",
)
_RATES = (
    "connection",
    "user",
    "ip",
    "tenant",
    "connection_subscribes",
    "user_subscribes",
    "ip_subscribes",
    "tenant_subscribes",
    "connect",
    "api_ip",
    "api_key",
    "http",
)


class ConnectionMetrics:
    """Client connections of this node, from the upgrade to the close."""

    def __init__(self, make: MetricFactory) -> None:
        self.connections = make.fast_gauge("connections", "Authenticated connections.")
        self.streams = make.fast_gauge("streams", "Connections that are streams of server-sent events.")
        self.polls = make.fast_gauge("polls", "Long polls that are served or wait.")
        self.poll_sessions = make.gauge(
            "poll_sessions", "Connections that are sessions of long polls, also between two polls."
        )
        self.max_connections = make.gauge("max_connections", "Maximum number of connections of this node.")
        self.pending_connections = make.fast_gauge(
            "pending_connections", "Connections that have not authenticated yet."
        )
        self.connects = make.fast_counters(
            "connects", "Connections that authenticated, by kind of credentials.", "credentials"
        )
        start_at_zero(self.connects, ("bearer", "ticket", "cookie", "hello", "anonymous", "hook"))
        self.closes = make.fast_counters("closes", "Connections closed, by close code.", "code")
        self.handshake_seconds = make.fast_histogram(
            "handshake_seconds",
            "Time from a complete upgrade request to its response 101, with the wait in the queue and all checks.",
            LATENCY_BUCKETS,
        )
        self.connection_seconds = make.fast_histogram(
            "connection_seconds", "Duration of connections that have ended.", _LENGTH
        )
        self.connection_age_seconds = make.gauge(
            "connection_age_seconds",
            "Age of the open connections: p50 (0.5), p90 (0.9), the oldest (1).",
            "quantile",
        )
        self.ping_seconds = make.fast_histogram("ping_seconds", "Time from a ping to the client's answer.", _PING)


class ClientMetrics:
    """Different clients behind connects, closes and refusals."""

    def __init__(self, make: MetricFactory) -> None:
        self.token_signatures = make.fast_counters(
            "token_signatures",
            "Tokens signed with a private key, by outcome: signature `checked`, or `remembered` from an earlier check.",
            "outcome",
        )
        start_at_zero(self.token_signatures, ("checked", "remembered"))
        self.client_versions = make.fast_counters(
            "client_versions",
            "Connections that authenticated, by the name and the version that the client announced: `unknown` without them, "
            "`other` above `limits.client_versions`.",
            *("client", "version"),
        )
        self.client_contracts = make.fast_counters(
            "client_contracts",
            "Connections that authenticated, by the contract that the client announced: the `same` as this node's, another "
            "(`other`), or `none`.",
            "contract",
        )
        start_at_zero(self.client_contracts, ("same", "other", "none"))
        self.upgrade_refusals = make.fast_counters(
            "upgrade_refusals",
            "Refused clients, by error code, by cause (`client`: its own message or limit, `service`: a limit or a fault of this "
            "node, `draining`), and by step (`upgrade`, `hello`, `ticket`, `stream`, `emit`, `poll`, `history`).",
            *("cause", "door", "reason"),
        )
        for door in ("upgrade", "hello", "ticket", "stream", "emit", "call", "poll", "history"):
            start_at_zero(
                self.upgrade_refusals,
                ("overloaded", "too_many_connections", "broker_unavailable", "internal"),
                "service",
                door,
            )
        self.refused_addresses = make.gauge(
            "refused_addresses", "Client addresses refused in the last 5 minutes with the cause `client`."
        )
        self.recent_connect_clients = make.gauge(
            "recent_connect_clients",
            "Different clients that connected in the last 2 minutes, estimated to 1 %. A client is a user at an address.",
        )
        self.recent_close_clients = make.gauge(
            "recent_close_clients", "Different clients with a connection that closed in the last 5 minutes."
        )
        self.recent_abnormal_close_clients = make.gauge(
            "recent_abnormal_close_clients",
            "Different clients with a connection that was cut or closed by a fault (close codes 1006, 1011, 1013, 4408) in the "
            "last 5 minutes.",
        )
        self.recent_slow_clients = make.gauge(
            "recent_slow_clients",
            "Different clients with a connection that was closed in the last 5 minutes because it read too slowly.",
        )


class HttpMetrics:
    """TCP connections that are not WebSockets, and HTTP requests."""

    def __init__(self, make: MetricFactory) -> None:
        self.http_connections = make.gauge(
            "http_connections", "TCP connections of the public listener that are not WebSockets."
        )
        self.max_http_connections = make.gauge(
            "max_http_connections", "Maximum number of TCP connections that are not WebSockets."
        )
        self.ops_connections = make.gauge("ops_connections", "TCP connections of the listener for health and metrics.")
        self.api_requests = make.fast_counters(
            "api_requests", "HTTP requests, by route template, method and status.", "route", "method", "status"
        )
        self.api_seconds = make.histogram(
            "api_seconds", "Duration of HTTP requests, by route template.", LATENCY_BUCKETS, "route"
        )


class LimitMetrics:
    """Limits that were reached."""

    def __init__(self, make: MetricFactory) -> None:
        self.rate_limited = make.fast_counters(
            "rate_limited",
            "Messages, subscribes, upgrades and backend API requests refused by a rate limit, by scope.",
            "scope",
        )
        start_at_zero(self.rate_limited, _RATES)
        self.limit_hits = make.fast_counters(
            "limit_hits", "Times that a limit or deadline was reached, by name.", "limit"
        )
        start_at_zero(self.limit_hits, _LIMITS)
        self.accept_rate = make.gauge(
            "accept_rate",
            "Upgrades a second that this node accepts: the setting, or less while its event loop is late.",
        )
        self.caps_unshared = make.counter(
            "caps_unshared",
            "Connections accepted by the caps of this node alone, because the shared store was unavailable.",
        )
