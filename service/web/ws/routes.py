"""The aiohttp routes of the WebSocket transport: `/ws` and `/tickets`."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from aiohttp import hdrs, web

from service.errors import ErrorCode, ServiceError
from service.realtime.admission.slots import network_of
from service.web.client_info import add_cors_headers, check_origin, client_ip, parse_credentials, preflight_response
from service.web.http.header_list import offers_websocket
from service.web.http.http_connections import HTTP_CONNECTIONS
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HTTP_CONFIG, NODE
from service.web.problem import problem_response
from service.web.ws.upgrade import UPGRADE_HANDLER, DetachedConnection

if TYPE_CHECKING:
    from aiohttp.http import WebSocketReader


def routes() -> list[web.RouteDef]:
    """The routes, for an application with NODE, HTTP_CONFIG, HTTP_CONNECTIONS and UPGRADE_HANDLER."""
    return [
        web.get("/ws", _upgrade, allow_head=False),
        web.options("/ws", _preflight_upgrade),
        web.post("/tickets", _issue_ticket),
        web.options("/tickets", _preflight_ticket),
    ]


async def _upgrade(request: web.Request) -> web.StreamResponse:
    """Handles upgrades that UpgradeQueue passes on, and plain GET requests, whose response says why an upgrade would
    fail.

    UpgradeQueue passes on very large heads, and later requests of a connection that a proxy reuses.
    """

    def detach() -> DetachedConnection:
        protocol, transport = request.protocol, request.transport
        if transport is not None:
            request.app[HTTP_CONNECTIONS].remove(transport)
        trailing = _TrailingBytes()
        protocol.set_parser(cast("WebSocketReader", trailing))
        if isinstance(protocol, HttpProtocol):
            trailing.feed_data(protocol.pop_unparsed())
        protocol.transport = None  # otherwise aiohttp closes it in the next line
        protocol.connection_lost(None)
        has_eof = isinstance(protocol, HttpProtocol) and protocol.has_eof
        return DetachedConnection(transport, bytes(trailing.data), has_eof)

    received_at = request.app[NODE].runtime.clock.monotonic()
    refusal = await request.app[UPGRADE_HANDLER].answer(request, detach, received_at)
    if refusal is None:
        return _UpgradedResponse()
    if offers_websocket(request.headers):
        refusal.force_close()  # the client may have sent frames after the request, which are not HTTP
    return refusal


class _UpgradedResponse(web.StreamResponse):
    """aiohttp's response to a request whose connection is a WebSocket now: writes nothing."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Writes nothing: the head of the response was sent with the upgrade."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Writes nothing: the connection belongs to the WebSocket."""


class _TrailingBytes:
    """Takes the place of aiohttp's WebSocketReader, and collects the bytes after the request."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Collects the bytes."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Does nothing: the WebSocket handles the end of the stream."""


async def _issue_ticket(request: web.Request) -> web.StreamResponse:
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    try:
        node.admission.check_open()
        node.admission.requests.check_connect(network)
        check_origin(request, config)
        token = parse_credentials(request, config).token
        if token is None:
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "send the token as Authorization: Bearer <token>")
        await node.cluster.authenticator.authenticate(token)
        ttl = node.bounds.deadlines.ticket
        ticket = await node.tickets.issue(token, ttl)
        response: web.StreamResponse = web.json_response(
            {"ticket": ticket, "expires_in": ttl}, status=201, headers={hdrs.CACHE_CONTROL: "no-store"}
        )
    except ServiceError as error:
        node.admission.refusals.count(error, "ticket", network)
        response = problem_response(error)
    add_cors_headers(request, response, config)
    return response


async def _preflight_upgrade(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "GET")


async def _preflight_ticket(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "POST")


def _preflight(request: web.Request, methods: str) -> web.StreamResponse:
    response = preflight_response(request, methods)
    add_cors_headers(request, response, request.app[HTTP_CONFIG])
    return response
