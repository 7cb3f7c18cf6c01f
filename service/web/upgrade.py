"""`GET /ws`: the checks before a WebSocket exists, in the order of docs/protocol.md, and the same answers on a plain GET."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import hdrs, web

from service.core.identity import Identity, Right
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import SUBPROTOCOL
from service.realtime.admission import Seat, network_of
from service.realtime.handshake import Arrival
from service.realtime.node import Node
from service.realtime.serving import serve
from service.web.address import allow_cross_origin, check_origin, client_ip, credentials, preflight
from service.web.edge import EDGE, NODE, Edge
from service.web.problem import problem
from service.web.websocket import WebSocket


def routes() -> list[web.RouteDef]:
    """The client-facing routes of the WebSocket transport."""
    return [
        web.get("/ws", _ws, allow_head=False),
        web.options("/ws", _preflight_ws),
        web.post("/tickets", _tickets),
        web.options("/tickets", _preflight_tickets),
    ]


@dataclass(frozen=True, slots=True)
class _Found:
    identity: Identity | None
    credentials: str


async def _ws(request: web.Request) -> web.StreamResponse:
    node, edge = request.app[NODE], request.app[EDGE]
    seat: Seat | None = None
    try:
        network = _check_arrival(request, node, edge)
        seat = node.admission.take_seat(network)  # counted before anything is awaited, so that no crowd slips through
        arrival = await _check(request, node, edge, seat)
        if not _is_upgrade(request):
            raise ServiceError(ErrorCode.UPGRADE_REQUIRED, "an upgrade of this address would succeed")
        websocket = WebSocket(node.bounds, node.clock, node.metrics)
        websocket.check(request)
        await _use_ticket(request, node, arrival)
        return await _carry(request, node, websocket, arrival)
    except ServiceError as error:
        if error.code is not ErrorCode.UPGRADE_REQUIRED:
            node.metrics.refusals.labels(reason=error.code.code).inc()
        response = problem(error)
        if error.code is ErrorCode.INVALID_REQUEST:
            response.headers[hdrs.SEC_WEBSOCKET_VERSION] = "13"  # RFC 6455 §4.4
        allow_cross_origin(request, response, edge)
        return response
    finally:
        if seat is not None:
            seat.release()


async def _use_ticket(request: web.Request, node: Node, arrival: Arrival) -> None:
    """Comes last: a ticket that pays for a refusal would leave the client without the means to ask for the reason."""
    if arrival.credentials == "ticket" and await node.tickets.redeem(request.query["ticket"]) is None:
        raise _no_such_ticket()  # another upgrade was faster


async def _carry(request: web.Request, node: Node, websocket: WebSocket, arrival: Arrival) -> web.StreamResponse:
    await websocket.open(request)
    try:
        await serve(node, websocket, arrival)
    finally:
        if websocket.close_code == CloseCode.ABNORMAL.code or not websocket.response.closed:
            websocket.abort()  # a peer that vanished would keep its socket and buffers
    return websocket.response


def _check_arrival(request: web.Request, node: Node, edge: Edge) -> str:
    node.admission.check_open()
    if node.budget.used >= node.budget.limit:
        node.metrics.limit_hits.labels(limit="outbox_node").inc()
        raise ServiceError(ErrorCode.OVERLOADED, "the outboxes of this node are full", retry_after=5)
    network = network_of(client_ip(request, edge.hops))
    node.admission.check_connect_rate(network)
    node.admission.check_caps(network)
    return network


async def _check(request: web.Request, node: Node, edge: Edge, seat: Seat) -> Arrival:
    _check_version(request)
    check_origin(request, edge)
    found = await _identify(request, node, edge)
    if found.identity is not None:
        await seat.identify(found.identity)
    channels = _check_channels(request, node, found.identity)
    return Arrival(seat, found.identity, found.credentials, channels)


def _is_upgrade(request: web.Request) -> bool:
    return request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"


def _check_version(request: web.Request) -> None:
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered is None and not _is_upgrade(request):
        return  # a browser cannot send it on a plain request
    if SUBPROTOCOL not in [part.strip() for part in (offered or "").split(",")]:
        raise ServiceError(ErrorCode.UNSUPPORTED_VERSION, f"offer the subprotocol {SUBPROTOCOL}")


def _no_such_ticket() -> ServiceError:
    return ServiceError(ErrorCode.INVALID_TICKET, "the ticket is unknown, used or expired; ask for a new one")


async def _identify(request: web.Request, node: Node, edge: Edge) -> _Found:
    given = credentials(request, edge)
    if given.ticket is not None:
        token = await node.tickets.peek(given.ticket)
        if token is None:
            raise _no_such_ticket()
        return _Found(await node.authenticator.authenticate(token), "ticket")
    if given.token is not None:
        kind = "cookie" if given.from_cookie else "bearer"
        return _Found(await node.authenticator.authenticate(given.token), kind)
    return _Found(None, "hello")


def _check_channels(request: web.Request, node: Node, identity: Identity | None) -> tuple[str, ...]:
    given = ",".join(request.query.getall("channels", []))
    named = tuple(dict.fromkeys(name for name in given.split(",") if name))
    if not named:
        return ()
    if identity is None:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "?channels= needs credentials in the upgrade")
    limit = node.bounds.limits.subscriptions
    if len(named) > limit:
        node.metrics.limit_hits.labels(limit="subscriptions").inc()
        raise ServiceError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, f"a connection has at most {limit} channels", limit=limit)
    for name in named:
        node.gate.authorise(identity, name, Right.SUBSCRIBE)
    return named


async def _tickets(request: web.Request) -> web.StreamResponse:
    node, edge = request.app[NODE], request.app[EDGE]
    try:
        node.admission.check_open()
        node.admission.check_connect_rate(network_of(client_ip(request, edge.hops)))
        check_origin(request, edge)
        token = credentials(request, edge).token
        if token is None:
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "send the token as Authorization: Bearer <token>")
        await node.authenticator.authenticate(token)
        ttl = node.bounds.deadlines.ticket
        ticket = await node.tickets.issue(token, ttl)
        response: web.StreamResponse = web.json_response(
            {"ticket": ticket, "expires_in": ttl}, status=201, headers={hdrs.CACHE_CONTROL: "no-store"}
        )
    except ServiceError as error:
        response = problem(error)
    allow_cross_origin(request, response, edge)
    return response


async def _preflight_ws(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "GET")


async def _preflight_tickets(request: web.Request) -> web.StreamResponse:
    return _preflight(request, "POST")


def _preflight(request: web.Request, methods: str) -> web.StreamResponse:
    response = preflight(request, methods)
    allow_cross_origin(request, response, request.app[EDGE])
    return response
