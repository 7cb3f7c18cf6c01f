"""Rates of connection attempts, and of requests of the backend API."""

from __future__ import annotations

from random import uniform
from typing import Any

from service.core.clock import Clock
from service.core.identity import Identity
from service.core.limits import Limits
from service.core.token_bucket import KeyedBuckets
from service.errors import ErrorCode, ServiceError
from service.telemetry.metrics import Metrics

FAILED_REQUEST_COST = 0.01
"""The part of an address's burst that a backend API request without a valid key costs."""


def rate_limited(metrics: Metrics, label: str, message: str, wait: float, **details: Any) -> ServiceError:
    """Counts a refusal under this label, and returns the error. Its `retry_after` is `wait` seconds plus up to a quarter.

    The random part spreads the retries of clients that were refused at the same time by different buckets.
    """
    metrics.limits.rate_limited.labels(scope=label).inc()
    retry_after = round(uniform(wait, 1.25 * wait), 3)  # noqa: S311  # spreads load, guards nothing
    return ServiceError(ErrorCode.RATE_LIMITED, message, **details, retry_after=retry_after)


class RequestRates:
    """The rates of HTTP requests. A `network` is a client address as `network_of` returns it."""

    def __init__(self, limits: Limits, clock: Clock, metrics: Metrics) -> None:
        self._clock = clock
        self._metrics = metrics
        self._failed_request_cost = limits.api_rate_per_ip.burst * FAILED_REQUEST_COST
        self._connects = KeyedBuckets(limits.connect_rate_per_ip, limits.tracked)
        self._senders = KeyedBuckets(limits.user_rate, limits.tracked)
        self._sender_addresses = KeyedBuckets(limits.ip_rate, limits.tracked)
        self._user_burst = limits.user_rate.burst
        self._polled_channels = KeyedBuckets(limits.user_subscribe_rate, limits.tracked)
        self._subscribe_burst = limits.user_subscribe_rate.burst
        self._api_addresses = KeyedBuckets(limits.api_rate_per_ip, limits.tracked)
        self._api_keys = KeyedBuckets(limits.api_rate_per_key, limits.tracked)
        self._all = (
            self._connects,
            self._senders,
            self._sender_addresses,
            self._polled_channels,
            self._api_addresses,
            self._api_keys,
        )

    @property
    def tracked(self) -> int:
        """Addresses, users and API keys whose rates are known."""
        return sum(map(len, self._all))

    def check_connect(self, network: str) -> None:
        """Counts an upgrade or a ticket. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        bucket = self._connects.bucket(network, now)
        if bucket.acquire(now):
            message = "too many connection attempts from this address"
            raise rate_limited(self._metrics, "connect", message, bucket.schedule_retry(now))

    def check_sender_address(self, network: str) -> None:
        """Counts a message over HTTP before its credentials are checked. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        bucket = self._sender_addresses.bucket(network, now)
        if bucket.acquire(now):
            message = "too many messages from this address"
            raise rate_limited(self._metrics, "ip", message, bucket.schedule_retry(now), scope="ip")

    def check_sender(self, network: str, identity: Identity, nodes: int, messages: int = 1) -> None:
        """Counts messages over HTTP. Raises ServiceError(RATE_LIMITED).

        A client may send each message to another node. So a message costs one for each node: all nodes together allow the rate
        of one user. Anonymous clients share the rate of their address.
        """
        now = self._clock.monotonic()
        bucket = self._senders.bucket(_sender_key(network, identity), now)
        cost = float(min(nodes * messages, self._user_burst))
        if bucket.acquire(now, cost):
            message = "too many messages from this user"
            raise rate_limited(self._metrics, "user", message, bucket.schedule_retry(now, cost), scope="user")

    def check_polled_channel(self, network: str, identity: Identity, nodes: int) -> None:
        """Counts a channel that a poll reads at the store, in the same way. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        bucket = self._polled_channels.bucket(_sender_key(network, identity), now)
        cost = float(min(nodes, self._subscribe_burst))
        if bucket.acquire(now, cost):
            message = "too many channels with news in the polls of this user"
            wait = bucket.schedule_retry(now, cost)
            raise rate_limited(self._metrics, "user_subscribes", message, wait, scope="user")

    def check_api_address(self, network: str) -> None:
        """Counts a request of the backend API before its key is checked. Raises ServiceError(RATE_LIMITED)."""
        now = self._clock.monotonic()
        bucket = self._api_addresses.bucket(network, now)
        if bucket.acquire(now):
            message = "too many requests from this address"
            raise rate_limited(self._metrics, "api_ip", message, bucket.schedule_retry(now), scope="ip")

    def check_api_key(self, network: str, tenant: str, key: str) -> None:
        """Counts a request with a valid key, after `check_api_address`.

        Raises ServiceError(RATE_LIMITED); the request has then cost the address nothing.
        """
        now = self._clock.monotonic()
        bucket = self._api_keys.bucket((tenant, key), now)
        if bucket.acquire(now):
            self._api_addresses.bucket(network, now).refund()
            message = "too many requests with this API key"
            raise rate_limited(self._metrics, "api_key", message, bucket.schedule_retry(now), scope="key")

    def charge_failed_api_request(self, network: str) -> None:
        """Charges the address more for a request without a valid key."""
        self._api_addresses.bucket(network, self._clock.monotonic()).charge(max(0.0, self._failed_request_cost - 1.0))

    def charge_api_key(self, tenant: str, key: str, requests: float) -> None:
        """Charges an API key for the further work of a request that was accepted."""
        self._api_keys.bucket((tenant, key), self._clock.monotonic()).charge(requests)

    def evict_full(self, now: float, max_evicted: int) -> None:
        """Evicts addresses and keys whose buckets are full: at most `max_evicted` of each."""
        for buckets in self._all:
            buckets.evict_full(now, max_evicted)


def _sender_key(network: str, identity: Identity) -> tuple[str, str]:
    return ("", network) if identity.is_anonymous else (identity.tenant, identity.user)
