"""Answers `POST /stream` and `GET /sse`: checks a request, and hands its connection to the realtime core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import hdrs, web
from msgspec import Struct

from service.core.last_event_id import PositionTracker
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.slots import ConnectionSlot, network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.node import Node
from service.realtime.session.accept import accept_connection
from service.realtime.session.handshake import AcceptedUpgrade
from service.realtime.session.pre_auth_buffer import PreAuthBuffer
from service.web.body import read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.connect_checks import authorise_channels, check_limits
from service.web.http.detach import DetachedResponse, detach
from service.web.http_config import HttpConfig
from service.web.http_stream.credentials import Client, authenticate
from service.web.http_stream.event_stream import EventStream, StreamContext
from service.web.http_stream.requests import Wanted, parse_address, parse_stream
from service.web.problem import problem_response

_HEADERS = {
    hdrs.CONTENT_TYPE: "text/event-stream",
    hdrs.CACHE_CONTROL: "no-store, no-transform",  # a proxy that compresses would hold events back
    "X-Accel-Buffering": "no",
    "X-Content-Type-Options": "nosniff",
    hdrs.CONNECTION: "close",
}


class _Accepted(Struct, frozen=True):
    upgrade: AcceptedUpgrade
    tracker: PositionTracker | None


class StreamHandler:
    """Opens streams of server-sent events."""

    def __init__(self, node: Node, config: HttpConfig) -> None:
        self._node = node
        self._config = config
        self._context = StreamContext(node.bounds, node.runtime.clock, node.runtime.metrics)

    async def post_stream(self, request: web.Request) -> web.StreamResponse:
        """Opens a stream whose body names channels and positions."""
        return await self._answer(request, self._read_body, has_ids=False)

    async def get_sse(self, request: web.Request) -> web.StreamResponse:
        """Opens a stream whose address names channels. Its events have ids, with which a client resumes."""
        return await self._answer(request, self._read_address, has_ids=True)

    async def _read_body(self, request: web.Request, client: Client) -> Wanted:
        node = self._node
        holding = HeldBytes(node.streams.budget.account(client.identity.tenant))
        try:
            return parse_stream(await read_json(request, node.bounds, node.runtime.metrics, holding))
        finally:
            holding.release()

    async def _read_address(self, request: web.Request, client: Client) -> Wanted:
        return parse_address(request, client.ticket)

    async def _answer(
        self, request: web.Request, read: Callable[[web.Request, Client], Awaitable[Wanted]], *, has_ids: bool
    ) -> web.StreamResponse:
        try:
            accepted = await self._check(request, read, has_ids=has_ids)
        except ServiceError as error:
            self._count_refusal(request, error)
            response = problem_response(error)
            add_cors_headers(request, response, self._config)
            return response
        except Exception:
            self._count_refusal(request, ServiceError(ErrorCode.INTERNAL, "a fault of the service"))
            raise
        await self._open(request, accepted)
        return DetachedResponse()

    def _count_refusal(self, request: web.Request, error: ServiceError) -> None:
        network = network_of(client_ip(request, self._config.hops))
        self._node.admission.refusals.count(error, "stream", network)

    async def _check(
        self, request: web.Request, read: Callable[[web.Request, Client], Awaitable[Wanted]], *, has_ids: bool
    ) -> _Accepted:
        """Runs the checks of an upgrade, in the same order. Raises ServiceError, after which nothing stays reserved."""
        node, config = self._node, self._config
        slot = node.admission.slots.acquire(check_limits(request, node, config))
        has_entered = False
        try:
            check_origin(request, config)
            node.admission.upgrades.accept(is_upgrade=True, is_browser=hdrs.ORIGIN in request.headers)
            has_entered = True
            client = await authenticate(request, node, config)
            waiting = slot.identify(client.identity)
            if waiting is not None:
                await waiting
            wanted = await read(request, client)
            accepted = self._accept(slot, client, wanted, may_add_channels=not has_ids)
            if node.decisions.asks_about_reads:
                await node.decisions.check_subscribes(client.identity, accepted.channels)
            return _Accepted(
                accepted,
                PositionTracker(wanted.channels, wanted.positions) if has_ids else None,
            )
        except BaseException:
            if has_entered:
                node.admission.upgrades.cancel()
            slot.release()
            raise

    def _accept(
        self, slot: ConnectionSlot, client: Client, wanted: Wanted, *, may_add_channels: bool
    ) -> AcceptedUpgrade:
        node = self._node
        channels = authorise_channels(node, client.identity, wanted.channels)
        node.admission.check_subscribes(slot, len(channels), is_upgrade=True)
        return AcceptedUpgrade(
            slot,
            client.identity,
            client.credentials,
            channels,
            is_ready=True,
            announcement=wanted.announcement,
            has_receipts=True,
            positions=wanted.positions,
            tails=wanted.tails,
            may_add_channels=may_add_channels,
        )

    async def _open(self, request: web.Request, accepted: _Accepted) -> None:
        node = self._node
        head = self._head(request)
        detached = detach(request)
        transport, upgrade = detached.transport, accepted.upgrade
        if detached.has_eof and transport is not None:
            transport.close()  # the client has left during the checks; the transport does not say so again
        if transport is None or transport.is_closing() or upgrade.identity is None:
            upgrade.slot.release()
            return
        account = node.streams.budget.account(upgrade.identity.tenant)
        stream = EventStream(self._context, transport, head, account=account, tracker=accepted.tracker)
        stream.handler = buffer = PreAuthBuffer(stream)
        transport.set_protocol(stream)
        stream.connection_made(transport)
        waiting = accept_connection(node, stream, buffer, upgrade)
        if waiting is not None:
            await waiting

    def _head(self, request: web.Request) -> bytes:
        response = web.Response(headers=_HEADERS)
        add_cors_headers(request, response, self._config)
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in response.headers.items())]
        return "\r\n".join((*lines, "", "")).encode()


STREAM_HANDLER = web.AppKey("stream_handler", StreamHandler)
