"""`GET /ws`: the checks before a WebSocket exists, in the order of docs/protocol.md, and the same answers on a plain GET."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import structlog
from aiohttp import HttpVersion11, hdrs, web
from msgspec import Struct
from multidict import CIMultiDictProxy

from service.aio.eager_start import start_eagerly
from service.contract.model import ChannelSpec
from service.core.backoff import jittered
from service.core.identity import Identity, Right
from service.errors import ErrorCode, ServiceError
from service.protocol.deflate import Agreement, negotiate
from service.protocol.framing import accept_key
from service.protocol.messages import SUBPROTOCOL
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT
from service.realtime.node import Node
from service.realtime.session.handler import serve
from service.realtime.session.handshake import NO_CHANNELS, AcceptedUpgrade
from service.realtime.session.pre_auth_buffer import PreAuthBuffer
from service.web.client_info import allow_cross_origin, check_origin, client_ip, credentials, parameters, preflight
from service.web.http.header_list import list_of, offers_websocket
from service.web.http.http_connections import HTTP_CONNECTIONS
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HTTP_CONFIG, NODE, HttpConfig
from service.web.problem import fault, problem
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import Terms, WebSocket

if TYPE_CHECKING:
    from aiohttp.http import WebSocketReader

_log = structlog.get_logger("web")

_KEY = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")
"""16 bytes as base64."""
_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: %b%b\r\n\r\n"
)


def routes() -> list[web.RouteDef]:
    """The client-facing routes of the WebSocket transport."""
    return [
        web.get("/ws", _ws, allow_head=False),
        web.options("/ws", _preflight_ws),
        web.post("/tickets", _tickets),
        web.options("/tickets", _preflight_tickets),
    ]


class _Admitted(Struct, frozen=True):
    arrival: AcceptedUpgrade
    head: bytes
    """The response."""
    window_bits: int


class Taken(Struct, frozen=True, gc=False):
    """A connection that is to become a WebSocket."""

    transport: asyncio.Transport | None
    """None if it is lost."""
    early: bytes
    """What has come behind the request."""
    has_ended: bool
    """Whether the peer has ended its sending side: nothing more can come."""


class Fresh(Protocol):
    """A connection that has sent its first request, which is still to be answered."""

    @property
    def asked_at(self) -> float:
        """Monotonic time at which the whole request was there."""

    def give(self) -> Taken:
        """The connection, which is another's from here on."""

    def abort(self) -> None:
        """Cuts the connection, if it has not been taken over."""

    def answer(self, response: web.Response) -> None:
        """Sends a response and ends the connection."""


class Upgrades:
    """Decides about upgrades and carries them out, wherever their request was read."""

    def __init__(self, node: Node, edge: HttpConfig, *, compresses: bool) -> None:
        self._node = node
        self._edge = edge
        self.reads = ReadScheduler(node.runtime.clock, node.runtime.metrics, node.bounds.deadlines.message)
        self._terms = Terms(node.bounds, node.runtime.clock, node.runtime.metrics, self.reads)
        self._compresses = compresses

    def accept(self, request: web.BaseRequest, fresh: Fresh) -> None:
        """Answers an upgrade that has come by itself, and takes its connection over."""
        rest = start_eagerly(self._arrive(request, fresh))
        if rest is not None:
            self._node.runtime.tasks.spawn("arrival", rest)

    async def _arrive(self, request: web.BaseRequest, fresh: Fresh) -> None:
        try:
            response = await self.answer(request, fresh.give, fresh.asked_at)
        except Exception:
            response = fault(request)
        except BaseException:  # the service ends, and there is nobody to answer
            fresh.abort()
            raise
        if response is not None:
            try:
                fresh.answer(response)
            except Exception:  # nobody else would ever end this connection: no deadline looks at it any more
                _log.exception("no answer was possible")
                fresh.abort()

    async def answer(self, request: web.BaseRequest, take: Callable[[], Taken], asked_at: float) -> web.Response | None:
        """A refusal, or None once the WebSocket is served. `take` gives the connection, whose request was there at
        `asked_at` (monotonic)."""
        try:
            admitted = await self._admit(request)
        except ServiceError as error:
            if error.code is not ErrorCode.UPGRADE_REQUIRED:
                self._refused(request, error)
            response = problem(error)
            if error.code is ErrorCode.INVALID_REQUEST:
                response.headers[hdrs.SEC_WEBSOCKET_VERSION] = "13"  # RFC 6455 §4.4
            allow_cross_origin(request, response, self._edge)
            return response
        except Exception:
            self._refused(request, ServiceError(ErrorCode.INTERNAL, "a fault of the service"))
            raise
        taken = take()
        transport, early, has_ended = taken.transport, taken.early, taken.has_ended
        if transport is None or transport.is_closing():
            admitted.arrival.slot.release()
            return None
        identity = admitted.arrival.identity
        account = self._node.delivery.budget.account(UNAUTHENTICATED_TENANT if identity is None else identity.tenant)
        websocket = WebSocket(self._terms, transport, admitted.window_bits, account=account)
        websocket.handler = arriving = PreAuthBuffer(websocket)
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        head = admitted.head
        # Else the head shares a write with the welcome: one that wakes a client is dear.
        if identity is None or early or has_ended:
            websocket.write(head)
            head = b""
        runtime = self._node.runtime
        runtime.metrics.connections.handshake_seconds.observe(max(0.0, runtime.clock.monotonic() - asked_at))
        if early:
            websocket.data_received(early)
        if has_ended and not websocket.eof_received():
            transport.close()
        await serve(self._node, websocket, arriving, admitted.arrival, head)
        return None

    def _refused(self, request: web.BaseRequest, error: ServiceError) -> None:
        self._node.admission.refusals.count(error, "upgrade", network_of(client_ip(request, self._edge.hops)))

    async def _admit(self, request: web.BaseRequest) -> _Admitted:
        """Raises ServiceError; then nothing is taken. UPGRADE_REQUIRED if an upgrade would have succeeded."""
        node, edge = self._node, self._edge
        slot = node.admission.slots.acquire(_check_arrival(request, node, edge))
        # It is counted before anything is awaited, so that no crowd slips through.
        has_entered = False
        is_upgrade = offers_websocket(request.headers)
        try:
            _check_version(request, is_upgrade=is_upgrade)
            check_origin(request, edge)
            # Before what costs something, and after all that one address can be refused for: it must not take everybody's turn.
            node.admission.upgrades.accept(is_upgrade=is_upgrade, is_browser=hdrs.ORIGIN in request.headers)
            has_entered = is_upgrade
            identity, kind = await _identify(request, node, edge)
            if identity is not None:
                await slot.identify(identity)
            arrival = AcceptedUpgrade(slot, identity, kind, _check_channels(request, node, identity))
            if not is_upgrade:
                _take_subscribes(node, arrival, is_upgrade=False)
                raise ServiceError(ErrorCode.UPGRADE_REQUIRED, "an upgrade of this address would succeed")
            key = _check_handshake(request)
            agreement = self._agree(request)
            _take_subscribes(node, arrival, is_upgrade=True)
            if arrival.credentials == "ticket":
                await _use_ticket(request, node)
        except BaseException:
            if has_entered:
                node.admission.upgrades.cancel()
            slot.release()
            raise
        return _Admitted(arrival, _head(key, agreement), agreement.window_bits if agreement is not None else 0)

    def _agree(self, request: web.BaseRequest) -> Agreement | None:
        if not self._compresses:
            return None
        offers = request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, [])
        return negotiate(", ".join(offers)) if offers else None


class TakenOver(web.StreamResponse):
    """The response to a request whose connection is a WebSocket now: it has been given already."""

    async def prepare(self, request: web.BaseRequest) -> None:
        """Writes nothing."""

    async def write_eof(self, data: bytes = b"") -> None:
        """Writes nothing."""


UPGRADES = web.AppKey("upgrades", Upgrades)


async def _ws(request: web.Request) -> web.StreamResponse:
    """An upgrade that is not the first request of its connection (proxies keep theirs), or has a very large head; and the plain
    GET that tells a client why an upgrade fails."""

    def take() -> Taken:
        protocol, transport = request.protocol, request.transport
        if transport is not None:
            request.app[HTTP_CONNECTIONS].remove(transport)
        behind = _Behind()
        protocol.set_parser(cast("WebSocketReader", behind))
        if isinstance(protocol, HttpProtocol):
            behind.feed_data(protocol.take_unparsed())
        protocol.transport = None  # else it would close it now
        protocol.connection_lost(None)
        return Taken(transport, bytes(behind.data), isinstance(protocol, HttpProtocol) and protocol.has_ended)

    refusal = await request.app[UPGRADES].answer(request, take, request.app[NODE].runtime.clock.monotonic())
    if refusal is None:
        return TakenOver()
    if offers_websocket(request.headers):
        refusal.force_close()  # as on a connection of its own: what comes behind it would be taken for a request
    return refusal


class _Behind:
    """Stands for aiohttp's reader of WebSocket frames: is given what has come behind the request."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Takes it."""
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """The end is the WebSocket's to see."""


def _check_handshake(request: web.BaseRequest) -> bytes:
    """Sec-WebSocket-Key. Raises ServiceError(INVALID_REQUEST) if the request is no handshake as RFC 6455 §4.2.1 has it."""
    headers = request.headers
    key = ",".join(
        headers.getall(hdrs.SEC_WEBSOCKET_KEY, [])
    )  # twice is once too often (§11.3.1), as is the version (§11.3.5)
    if (
        not _asks_to_upgrade(headers)
        or request.version < HttpVersion11
        or headers.getall(hdrs.SEC_WEBSOCKET_VERSION, []) != ["13"]
        or _KEY.fullmatch(key) is None
    ):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            "this is no WebSocket handshake: it needs HTTP/1.1, Connection: Upgrade, Sec-WebSocket-Version: 13, "
            "and a Sec-WebSocket-Key of 16 bytes as base64",
        )
    return key.encode()


def _asks_to_upgrade(headers: CIMultiDictProxy[str]) -> bool:
    if headers.get(hdrs.CONNECTION) == "Upgrade":  # as nearly everybody writes it
        return True
    return "upgrade" in [option.lower() for option in list_of(headers, hdrs.CONNECTION)]


def _head(key: bytes, agreement: Agreement | None) -> bytes:
    extensions = b"" if agreement is None else b"\r\nSec-WebSocket-Extensions: " + agreement.response
    return _HEAD % (accept_key(key), SUBPROTOCOL.encode(), extensions)


def _take_subscribes(node: Node, arrival: AcceptedUpgrade, *, is_upgrade: bool) -> None:
    """The channels of the address cost what subscribing to them would. All or none: a client could not tell which are missing."""
    if arrival.channels:
        node.admission.check_subscribes(arrival.slot, len(arrival.channels), is_upgrade=is_upgrade)


async def _use_ticket(request: web.BaseRequest, node: Node) -> None:
    """Comes last: a ticket that pays for a refusal would leave the client without the means to ask for the reason."""
    if await node.tickets.redeem(parameters(request, "ticket")[0]) is None:
        raise _no_such_ticket()  # another upgrade was faster


def _check_arrival(request: web.BaseRequest, node: Node, edge: HttpConfig) -> str:
    node.admission.check_open()
    if node.delivery.budget.is_full:
        node.runtime.metrics.limits.limit_hits.labels(limit="outbox_node").inc()
        raise ServiceError(
            ErrorCode.OVERLOADED, "this node holds as many bytes for its peers as it may", retry_after=jittered(5.0)
        )
    network = network_of(client_ip(request, edge.hops))
    node.admission.requests.check_connect(network)
    node.admission.slots.check(network)
    return network


def _check_version(request: web.BaseRequest, *, is_upgrade: bool) -> None:
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered == SUBPROTOCOL:  # only that one, from nearly everybody
        return
    if offered is None and not is_upgrade:
        return  # a browser cannot send it on a plain request
    if SUBPROTOCOL not in list_of(request.headers, hdrs.SEC_WEBSOCKET_PROTOCOL):
        raise ServiceError(ErrorCode.UNSUPPORTED_VERSION, f"offer the subprotocol {SUBPROTOCOL}")


def _no_such_ticket() -> ServiceError:
    return ServiceError(ErrorCode.INVALID_TICKET, "the ticket is unknown, used or expired; ask for a new one")


async def _identify(request: web.BaseRequest, node: Node, edge: HttpConfig) -> tuple[Identity | None, str]:
    """Who it is, if the request says so, and by what kind of credentials."""
    given = credentials(request, edge)
    if given.ticket is not None:
        token = await node.tickets.peek(given.ticket)
        if token is None:
            raise _no_such_ticket()
        return await node.cluster.authenticator.authenticate(token), "ticket"
    if given.token is not None:
        kind = "cookie" if given.from_cookie else "bearer"
        return await node.cluster.authenticator.authenticate(given.token), kind
    return None, "hello"


def _check_channels(request: web.BaseRequest, node: Node, identity: Identity | None) -> Mapping[str, ChannelSpec]:
    given = ",".join(parameters(request, "channels"))
    named = dict.fromkeys(filter(None, given.split(","))) if given else ()
    if not named:
        return NO_CHANNELS
    if identity is None:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "?channels= needs credentials in the upgrade")
    limit = node.bounds.limits.subscriptions
    if len(named) > limit:
        node.runtime.metrics.limits.limit_hits.labels(limit="subscriptions").inc()
        raise ServiceError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"a connection has at most {limit} channels", limit=limit)
    return {name: node.gate.authorise(identity, name, Right.SUBSCRIBE).spec for name in named}


async def _tickets(request: web.Request) -> web.StreamResponse:
    node, edge = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, edge.hops))
    try:
        node.admission.check_open()
        node.admission.requests.check_connect(network)
        check_origin(request, edge)
        token = credentials(request, edge).token
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
        response = problem(error)
    allow_cross_origin(request, response, edge)
    return response


async def _preflight_ws(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "GET")


async def _preflight_tickets(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "POST")


def _preflight(request: web.Request, methods: str) -> web.StreamResponse:
    response = preflight(request, methods)
    allow_cross_origin(request, response, request.app[HTTP_CONFIG])
    return response
