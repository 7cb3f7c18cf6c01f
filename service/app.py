"""Builds a service from settings and contract: the only module that connects the packages."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import structlog
from aiohttp import web
from pydantic import SecretStr

from service.adapters.clock import SystemClock
from service.adapters.http_backend.signing import Signer
from service.adapters.http_fetch import HttpFetch
from service.adapters.http_hooks.authenticator import ConnectHook, HookAuthenticator
from service.adapters.http_hooks.endpoint import Endpoint, EndpointConfig
from service.adapters.http_hooks.hooks import HttpHooks
from service.adapters.http_webhooks.sender import EndpointConfig as WebhookConfig
from service.adapters.http_webhooks.sender import HttpEndpoint, HttpWebhooks
from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.issuer import Issuer
from service.adapters.memory.broker import MemoryBroker
from service.adapters.memory.presence import MemoryPresence
from service.adapters.memory.quota import MemoryQuota
from service.adapters.memory.tickets import MemoryTickets
from service.adapters.nats.address import parse_nats_url
from service.adapters.nats.broker import NatsBroker
from service.adapters.nats.config import NatsConfig
from service.adapters.nats.stores.documents import Documents
from service.adapters.nats.stores.presence import NatsPresence
from service.adapters.nats.stores.quota import NatsQuota
from service.adapters.nats.stores.tickets import NatsTickets
from service.adapters.redis.address import parse_redis_url
from service.adapters.redis.broker import RedisBroker
from service.adapters.redis.config import RedisConfig
from service.adapters.redis.stores.client import RedisClient
from service.adapters.redis.stores.presence import RedisPresence
from service.adapters.redis.stores.quota import RedisQuota
from service.adapters.redis.stores.tickets import RedisTickets
from service.contract.gate import Gate
from service.contract.model import Contract
from service.core.answer_memory import AnswerMemory
from service.core.authenticator import Authenticator
from service.core.broker import Broker
from service.core.clock import Clock
from service.core.hooks import ConnectAnswer, ConnectQuestion
from service.core.identity import VouchedIdentity
from service.core.presence import PresenceStore
from service.core.quota import QuotaStore
from service.core.tickets import TicketStore
from service.core.webhooks import WebhookEndpoint, WebhookLimits
from service.protocol.messages import SYSTEM_TYPES
from service.realtime.bounds import Bounds
from service.realtime.cluster.messages import INTERNAL_CHANNELS
from service.realtime.cluster.store_clock import StoreClock
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT
from service.realtime.node import Node, Ports
from service.realtime.webhooks.records import CHANNELS_BESIDE_QUEUES
from service.settings import Settings
from service.settings.model import HookEndpoint
from service.telemetry.metrics import Metrics
from service.telemetry.process import resident_memory
from service.telemetry.runtime import GcMonitor, LoopLag
from service.web import tickets
from service.web.api import routes as api
from service.web.body import MAX_BODY_BYTES
from service.web.descriptors import DescriptorMonitor
from service.web.http.connection_caps import ConnectionCaps
from service.web.http.drain_middleware import drain_middleware
from service.web.http.http_connections import HTTP_CONNECTIONS, HttpConnections
from service.web.http.http_protocol import HttpContext, HttpProtocol
from service.web.http.parse_queue import ParseQueue
from service.web.http.plain_request import parse_plain_upgrade
from service.web.http.request_queue import RequestQueue
from service.web.http.socket_options import ACCEPTS_PER_ITERATION, Listener, listen, set_socket_options
from service.web.http_config import HTTP_CONFIG, NODE, ApiKey, HttpConfig
from service.web.http_stream import routes as http_stream
from service.web.http_stream.poll_handler import POLL_HANDLER, PollHandler
from service.web.http_stream.stream_handler import STREAM_HANDLER, StreamHandler
from service.web.not_found import readable_not_found
from service.web.ops import routes as ops
from service.web.ops.scrape_tracker import ScrapeTracker
from service.web.problem import problem_middleware, server_logger
from service.web.ws import loopback, native
from service.web.ws import routes as ws
from service.web.ws.upgrade import UPGRADE_HANDLER, UpgradeHandler
from service.web.ws.upgrade_queue import FirstRequestContext, UpgradeQueue

BACKLOG = 4096
"""Connections that the kernel queues before accept on the public listener; aiohttp's 128 loses some in a reconnect storm."""
OPS_BACKLOG = 128
"""The same for the ops listener."""

_log = structlog.get_logger("app")


class Service:
    """A node, its public and its ops application, and what they share."""

    def __init__(
        self,
        settings: Settings,
        contract: Contract,
        *,
        clock: Clock | None = None,
        broker: Broker | None = None,
        authenticator: Authenticator | None = None,
        metrics: Metrics | None = None,
        extra_routes: Sequence[web.AbstractRouteDef] = (),
    ) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.metrics = metrics or Metrics(event_types=contract.event_types | SYSTEM_TYPES)
        self.fetch = HttpFetch()
        self.hooks = _hooks(settings, self.clock, self.metrics)
        self.webhooks = _webhooks(settings, self.clock)
        self.store_clock = StoreClock(self.clock, self.metrics)
        self.broker = broker or make_broker(settings, self.clock, self.store_clock, self.metrics)
        tells_facts = contract.has_channel_webhooks or settings.webhooks.clients.endpoint is not None
        stores = _stores(settings, self.clock, self.store_clock, self.broker, tells_facts=tells_facts)
        self._close_stores = stores.close
        self._native = native.load() if settings.native_send == "auto" else None
        self.native_send = "on" if self._native is not None else "off" if settings.native_send == "off" else "not built"
        """Whether the C extension is used: on, off or not built. For the log."""
        bounds, receipt_key = _bounds(settings), _receipt_key(settings)
        ports = Ports(
            broker=self.broker,
            presence=stores.presence,
            tickets=stores.tickets,
            quota=stores.quota,
            facts=stores.facts,
            authenticator=authenticator or self._authenticator(),
            clock=self.clock,
            hooks=self.hooks,
            webhooks=self.webhooks if settings.webhooks.endpoints else None,
            store_clock=self.store_clock,
            receipt_key=receipt_key,
            page_keys=[secret.get_secret_value().encode() for secret in settings.auth.page_secrets] or [receipt_key],
            connect=partial(loopback.connect, bounds, self.clock),
            batch_sender=None if self._native is None else self._native.send,
        )
        self.node = Node(Gate(contract), ports, bounds, self.metrics)
        limits = settings.limits
        cap_per_address = None if settings.proxy.hops else limits.max_http_connections_per_ip
        self.http_connections = self._http_connections("http_connections", limits.http_connections, cap_per_address)
        self.ops_connections = self._http_connections("ops_connections", limits.ops_connections, None)
        self.descriptors = DescriptorMonitor(
            settings.limits,
            self.node.admission,
            self.node.streams.registry,
            self.http_connections,
            self.ops_connections,
            self.node.runtime,
        )
        self.metrics.http.http_connections.set_function(lambda: len(self.http_connections))
        self.metrics.http.max_http_connections.set_function(lambda: self.http_connections.caps.max_connections)
        self.metrics.http.ops_connections.set_function(lambda: len(self.ops_connections))
        self.parse_plain_upgrade = parse_plain_upgrade if self._native is None else self._native.parse
        if _http_config(settings).hook_headers:
            # A plain request has only the headers that the service itself reads, so aiohttp reads them all.
            self.parse_plain_upgrade = _parse_nothing
        self.upgrade_queue: UpgradeQueue | None = None
        """None unless the service listens."""
        self.is_listening = False
        self.upgrade_handler = UpgradeHandler(
            self.node, _http_config(settings), compresses=settings.compression.enabled
        )
        self.public = self._build_public_app(extra_routes)
        self.scrape_tracker = ScrapeTracker(self.clock)
        self.ops = ops.build_ops_app(
            self.node, self.metrics, lambda: self.is_listening, self.scrape_tracker, [self.ops_connections.middleware()]
        )

    def _authenticator(self) -> Authenticator:
        settings, clock, metrics = self.settings, self.clock, self.metrics
        tokens = JwtAuthenticator(
            _issuers(settings),
            clock,
            self.fetch,
            max_cached_signatures=settings.auth.verified_tokens,
            metrics=metrics,
        )
        connect = settings.hooks.connect
        if connect.endpoint is None:
            return tokens
        config = ConnectHook(connect.endpoint, connect.tenant, connect.rate, connect.without_token)
        answers = AnswerMemory[ConnectQuestion, ConnectAnswer | VouchedIdentity](
            settings.hooks.remembered_answers,
            clock.monotonic,
            metrics.limits.limit_hits.labels(limit="hook_answers").inc,
        )
        metrics.hooks.hook_answers.labels("connect").set_function(lambda: len(answers))
        return HookAuthenticator(tokens, self.hooks, config, answers, clock, metrics)

    def _http_connections(self, name: str, cap: int, cap_per_address: int | None) -> HttpConnections:
        caps = ConnectionCaps(name, cap, cap_per_address, self.metrics)
        deadlines, close_grace = self.settings.deadlines, self.settings.outbox.close_grace
        return HttpConnections(caps, deadlines, close_grace, self.node.runtime)

    def _build_public_app(self, extra_routes: Sequence[web.AbstractRouteDef]) -> web.Application:
        app = web.Application(
            middlewares=[
                self.http_connections.middleware(),
                RequestQueue().middleware(),
                drain_middleware(self.node),
                readable_not_found(_http_config(self.settings)),
                problem_middleware(),
            ],
            client_max_size=MAX_BODY_BYTES,
        )
        app[NODE] = self.node
        app[HTTP_CONFIG] = _http_config(self.settings)
        app[HTTP_CONNECTIONS] = self.http_connections
        app[UPGRADE_HANDLER] = self.upgrade_handler
        app[STREAM_HANDLER] = StreamHandler(self.node, app[HTTP_CONFIG])
        app[POLL_HANDLER] = PollHandler(self.node, app[HTTP_CONFIG])
        app.add_routes(ws.routes())
        app.add_routes(http_stream.routes())
        app.add_routes(tickets.routes())
        app.add_routes(api.routes())
        app.add_routes(extra_routes)
        app.on_shutdown.append(self._drain)
        app.cleanup_ctx.append(self._run_node)
        return app

    def shorten_drain(self) -> None:
        """Shortens the drain, now or when it starts: closes all connections at once, and does not wait for a scrape."""
        self.node.lifecycle.skip_drain_delays()
        self.scrape_tracker.cancel_wait()

    async def wait_for_last_scrape(self) -> None:
        """After a drain that timed out, waits for the last scrape of its counters, which are lost with the process."""
        timeout = self.settings.deadlines.last_scrape
        if not self.node.lifecycle.drain_timed_out or not timeout or not self.scrape_tracker.recent:
            return
        _log.info("waiting_for_last_scrape", seconds=timeout)
        _log.info("last_scrape_done" if await self.scrape_tracker.wait_for_each(timeout) else "last_scrape_missed")

    async def _drain(self, app: web.Application) -> None:
        await self.node.lifecycle.drain()

    async def _run_node(self, app: web.Application) -> AsyncIterator[None]:
        try:
            await self.node.start()
            yield
            await self.node.close()
        finally:
            await self._close_stores()
            await self.fetch.close()
            await self.hooks.close()
            await self.webhooks.close()


def _parse_nothing(head: bytes, remote: str | None) -> None:
    """Takes no request for a plain one."""


def build_app(settings: Settings, contract: Contract, **overrides: object) -> web.Application:
    """The public application, ready for any aiohttp runner. Overrides as for `Service`."""
    return Service(settings, contract, **overrides).public  # type: ignore[arg-type]  # passed through by name


def _issuers(settings: Settings) -> list[Issuer]:
    return [
        Issuer(
            issuer=issuer.issuer,
            audience=issuer.audience,
            algorithm=issuer.algorithm,
            secret=issuer.secret.get_secret_value() if issuer.secret is not None else None,
            jwks_file=issuer.jwks_file,
            jwks_url=issuer.jwks_url,
            tenant_claim=issuer.tenant_claim,
            default_tenant=issuer.default_tenant,
            grants_claim=issuer.grants_claim,
            info_claim=issuer.info_claim,
            channels_claim=issuer.channels_claim,
            leeway=issuer.leeway,
        )
        for issuer in settings.all_issuers()
    ]


def _hooks(settings: Settings, clock: Clock, metrics: Metrics) -> HttpHooks:
    endpoints = [_hook_endpoint(one, settings, clock) for one in settings.hooks.endpoints]
    return HttpHooks(endpoints, settings.limits.message_bytes, clock, metrics)


def _hook_endpoint(endpoint: HookEndpoint, settings: Settings, clock: Clock) -> Endpoint:
    config = EndpointConfig(
        endpoint.name,
        endpoint.url,
        frozenset(endpoint.tenants),
        endpoint.timeout,
        endpoint.concurrency,
        endpoint.tenant_concurrency,
        endpoint.ca,
    )
    signer = Signer(
        [secret.get_secret_value() for secret in endpoint.secrets], endpoint.secrets_file, clock.wall, clock.monotonic
    )
    return Endpoint(config, signer, settings.limits.message_bytes, clock.monotonic)


def _webhooks(settings: Settings, clock: Clock) -> HttpWebhooks:
    return HttpWebhooks(
        HttpEndpoint(
            WebhookConfig(one.name, one.url, frozenset(one.tenants), one.timeout, one.ca),
            Signer(
                [secret.get_secret_value() for secret in one.secrets],
                one.secrets_file,
                clock.wall,
                clock.monotonic,
                what="webhook",
            ),
            clock.wall,
        )
        for one in settings.webhooks.endpoints
        if one.url is not None
    )


def _webhook_limits(settings: Settings) -> WebhookLimits:
    webhooks = settings.webhooks
    return WebhookLimits(
        [
            WebhookEndpoint(one.name, frozenset(one.tenants), one.url is not None, one.batch)
            for one in webhooks.endpoints
        ],
        webhooks.queues,
        webhooks.queue_entries,
        webhooks.keep,
        webhooks.attempts,
        webhooks.dead_letters,
        webhooks.clients.endpoint,
        webhooks.clients.tenant,
        webhooks.waiting_ends,
        # An intent and a publish take a call of the store each. The rest is for clocks that differ.
        resolve_after=2 * settings.broker.timeout + 2,
    )


def _receipt_key(settings: Settings) -> bytes:
    """Returns the key that signs receipts. It comes from the secrets that all nodes share.

    With public keys alone there is no such secret, unless there is an API key. Then each process has a key of its own.
    """
    secret = settings.auth.receipt_secret
    if secret is not None:
        return secret.get_secret_value().encode()
    shared = [issuer.secret for issuer in settings.all_issuers()] + [key.key for key in settings.all_api_keys()]
    values = [one.get_secret_value() for one in shared if one is not None]
    if values:
        return "\n".join(values).encode()
    if settings.broker.url != "memory://":
        _log.warning(
            "receipts_not_shared",
            reason="set auth.receipt_secret, so that all nodes accept the same receipts and addresses of history pages",
        )
    return secrets.token_bytes(32)


def make_broker(settings: Settings, clock: Clock, store_clock: StoreClock, metrics: Metrics) -> Broker:
    """Creates the broker that the settings name, without starting it."""
    broker = settings.broker
    if broker.url.startswith("redis"):
        return RedisBroker(redis_config(settings), metrics, store_clock.record)
    if broker.url != "memory://":
        return NatsBroker(nats_config(settings), store_clock, metrics, store_clock.record)
    memory = MemoryBroker(
        clock,
        idempotency_window=broker.idempotency_window,
        idempotency_entries=broker.idempotency_entries,
        channels=broker.channels + _internal_channels(settings),
        max_bytes=broker.bytes,
        empty_ttl=broker.empty_ttl,
    )
    metrics.memory_broker.broker_channels.set_function(lambda: memory.stats().channels)
    metrics.memory_broker.broker_events.set_function(lambda: memory.stats().events)
    metrics.memory_broker.broker_bytes.set_function(lambda: memory.stats().bytes)
    return memory


def _internal_channels(settings: Settings) -> int:
    revoking = {key.tenant for key in settings.all_api_keys()}
    targets = sum(len(set(endpoint.tenants)) for endpoint in settings.webhooks.endpoints)
    queues = targets * (settings.webhooks.queues + CHANNELS_BESIDE_QUEUES)
    return INTERNAL_CHANNELS + len(revoking) + bool(settings.probe.interval) + queues


class Stores(NamedTuple):
    """The stores beside the broker, and what closes them."""

    presence: PresenceStore
    tickets: TicketStore
    quota: QuotaStore
    facts: PresenceStore | None
    """See `Ports.facts`."""
    close: Callable[[], Awaitable[None]]


def _stores(settings: Settings, clock: Clock, store_clock: StoreClock, broker: Broker, *, tells_facts: bool) -> Stores:
    """`tells_facts`: webhooks tell of clients or channels."""
    presence: dict[str, Any] = {"ttl": settings.presence.ttl, "max_announced_users": settings.presence.members}
    facts: dict[str, Any] = {
        "ttl": settings.presence.ttl,
        "max_announced_users": -1,
        "keep": max(settings.webhooks.keep, 3 * settings.presence.ttl),
    }
    if settings.broker.url.startswith("redis"):
        client = RedisClient(redis_config(settings))
        return Stores(
            RedisPresence(client, **presence),
            RedisTickets(client),
            RedisQuota(client),
            RedisPresence(client, **facts) if tells_facts else None,
            client.close,
        )
    if isinstance(broker, NatsBroker):
        documents = Documents(broker)
        return Stores(
            NatsPresence(documents, store_clock, **presence),
            NatsTickets(documents, store_clock),
            NatsQuota(documents, store_clock),
            NatsPresence(documents, store_clock, **facts) if tells_facts else None,
            _close_nothing,
        )
    return Stores(
        MemoryPresence(broker.publish, settings.presence.members),
        MemoryTickets(clock, settings.limits.tracked),
        MemoryQuota(),
        MemoryPresence(broker.publish, -1) if tells_facts else None,
        _close_nothing,
    )


async def _close_nothing() -> None:
    """Closes stores that hold no connections of their own."""


def redis_config(settings: Settings) -> RedisConfig:
    """Returns the settings of the Redis adapters."""
    broker = settings.broker
    return RedisConfig(
        address=parse_redis_url(broker.url),
        sentinel_user=broker.sentinel_user,
        sentinel_password=_reveal(broker.sentinel_password),
        **_store_config(settings),
    )


def nats_config(settings: Settings) -> NatsConfig:
    """Returns the settings of the NATS adapters."""
    return NatsConfig(servers=parse_nats_url(settings.broker.url), **_store_config(settings))


def _store_config(settings: Settings) -> dict[str, Any]:
    """Returns the fields of StoreConfig."""
    broker = settings.broker
    return {
        "user": broker.user,
        "password": _reveal(broker.password),
        "ca": broker.ca,
        "certificate": broker.certificate,
        "private_key": broker.private_key,
        "prefix": broker.prefix,
        "call_timeout": broker.timeout,
        "max_calls": broker.queue,
        "ping_interval": broker.ping,
        "silence_timeout": broker.silence,
        "position_ttl": broker.position_ttl,
        "empty_ttl": broker.empty_ttl,
        "idempotency_window": broker.idempotency_window,
        "start_timeout": broker.unready_after,
    }


def _reveal(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()


def _bounds(settings: Settings) -> Bounds:
    return Bounds(
        limits=settings.limits,
        outbox=settings.outbox,
        compression=settings.compression,
        repair=settings.repair,
        history_pages=settings.history_pages,
        deadlines=settings.deadlines,
        rollout=settings.rollout,
        unready_after=settings.broker.unready_after,
        presence_members=settings.presence.members,
        presence_ttl=settings.presence.ttl,
        presence_update_bytes=settings.presence.update_bytes,
        hook_answers=settings.hooks.remembered_answers,
        anonymous_tenant=settings.auth.anonymous_tenant if settings.auth.anonymous else None,
        revocation_ttl=settings.auth.revocation_ttl,
        revocations=settings.auth.revocations,
        revocations_total=settings.auth.revocations_total,
        webhooks=_webhook_limits(settings),
        probe=settings.probe,
    )


def _http_config(settings: Settings) -> HttpConfig:
    return HttpConfig(
        origins=tuple(settings.origins),
        cookie=settings.auth.cookie,
        hops=settings.proxy.hops,
        api_keys=tuple(ApiKey(key.name, key.key.get_secret_value(), key.tenant) for key in settings.all_api_keys()),
        hook_headers=None if settings.hooks.connect.endpoint is None else settings.hooks.connect.headers,
    )


Companion = Callable[[int], AbstractAsyncContextManager[None]]
"""A context that runs beside a service and gets its public port, such as the demo's backend."""


@asynccontextmanager
async def running(service: Service, max_files: Callable[[], float] | None = None) -> AsyncIterator[tuple[int, int]]:
    """Listens on both ports, yields the public and the ops port, and drains and closes at the end.

    `max_files` returns how many files the process may open; without it, the service ignores that limit. Raises
    TooFewFilesError if they are too few, OSError if a port is not available, ServiceError if the broker is not.

    During the drain only upgrades are refused. Other requests are served, even on new connections: a backend's publish
    must not fail because a proxy has not noticed the drain yet. Workers that share a port stop listening at once.
    """
    settings = service.settings
    http: dict[str, Any] = {
        "access_log": None,
        "keepalive_timeout": settings.deadlines.keep_alive,
        "lingering_time": settings.outbox.close_grace,  # for an unread body; aiohttp's default is 10 s
        "logger": server_logger(),
    }
    account = service.node.streams.budget.account(UNAUTHENTICATED_TENANT)
    http_context = HttpContext(account, settings.limits.connection_rate, service.node.runtime)
    # aiohttp's default of 60 s would exceed the time that a pod has to stop.
    public = web.AppRunner(service.public, shutdown_timeout=settings.outbox.close_grace, **http)
    private = web.AppRunner(service.ops, shutdown_timeout=settings.outbox.close_grace, **http)
    loop = asyncio.get_running_loop()
    gc_monitor = GcMonitor(service.metrics)
    loop_lag = LoopLag(service.metrics, loop, on_lag=service.node.admission.upgrades.observe_lag)
    is_shared = settings.workers > 1  # the other workers listen on the same port
    listener: Listener | None = None
    ops_listener: Listener | None = None
    try:
        ops_server = await _start_app(private, http_context, http)
        with _naming_settings("ops_host and ops_port", settings.ops_host, settings.ops_port):
            ops_protocol = partial(ops.OpsProtocol, service.ops_connections, ops_server)
            ops_listener = await listen(ops_protocol, settings.ops_host, settings.ops_port, backlog=OPS_BACKLOG)
        service.ops_connections.start()
        upgrade_queue = service.upgrade_queue = UpgradeQueue(
            FirstRequestContext(
                service.upgrade_handler,
                await _start_app(public, http_context, http),
                service.http_connections,
                service.descriptors,
                service.node.runtime,
                account,
                settings.limits.message_bytes,
                service.parse_plain_upgrade,
            )
        )
        service.http_connections.start()
        with _naming_settings("host and port", settings.host, settings.port):
            listener = await listen(
                upgrade_queue,
                settings.host,
                settings.port,
                backlog=BACKLOG,
                reuse_port=is_shared,
                accepts_per_iteration=ACCEPTS_PER_ITERATION,
            )
        set_socket_options(listener.sockets, service.node.bounds)
        if max_files is not None:
            service.descriptors.start(max_files)
        gc_monitor.install()
        loop_lag.start()
        service.metrics.process.start_memory_bytes.set(resident_memory())
        service.is_listening = True
        yield listener.port, ops_listener.port
    finally:
        service.node.admission.set_draining(draining=True)  # readiness fails before anything closes
        if listener is not None and is_shared:
            listener.close()  # the other workers accept from now on
        await service.node.lifecycle.drain()
        service.is_listening = False
        if listener is not None:
            listener.close()
        await public.cleanup()
        if service.upgrade_queue is not None:
            service.upgrade_queue.close()
        service.http_connections.stop()
        service.descriptors.stop()
        if ops_listener is not None:
            await service.wait_for_last_scrape()
        loop_lag.stop()
        gc_monitor.uninstall()
        if ops_listener is not None:
            ops_listener.close()
        await private.cleanup()
        service.ops_connections.stop()


async def _start_app(
    runner: web.AppRunner, context: HttpContext, options: Mapping[str, Any]
) -> Callable[[], HttpProtocol]:
    """Starts the application, and returns the factory of its connections' protocols."""
    await runner.setup()
    if runner.server is None:
        raise RuntimeError("AppRunner.setup made no server")
    return partial(HttpProtocol, runner.server, context, ParseQueue(), loop=asyncio.get_running_loop(), **options)


@contextmanager
def _naming_settings(names: str, host: str, port: int) -> Iterator[None]:
    """Adds the names of the settings to the error of a listener that cannot be opened."""
    try:
        yield
    except OSError as error:
        # asyncio's message only adds the address to the system's.
        # The error number of an unknown host name (gaierror) is not an errno.
        number = None if isinstance(error, socket.gaierror) else error.errno
        reason = os.strerror(number) if number else error.strerror or str(error)
        raise OSError(number, f"{reason}: {host} port {port} (settings {names})") from error
