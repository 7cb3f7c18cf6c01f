"""The route `/tickets`: short-lived credentials for the address of an upgrade or of a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta, Struct

from service.core.last_event_id import MAX_CHANNELS
from service.core.tickets import StreamTicket
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import Channel
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.node import Node
from service.web.body import decode, read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip, parse_credentials
from service.web.connect_checks import authorise_channels, client_context, preflight
from service.web.http_config import HTTP_CONFIG, NODE, HttpConfig
from service.web.problem import problem_response


class TicketRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /tickets` for the ticket of a stream."""

    channels: Annotated[list[Channel], Meta(min_length=1, max_length=MAX_CHANNELS)]


_decoder = msgspec.json.Decoder(TicketRequest)


def routes() -> list[web.RouteDef]:
    """The routes, for an application with NODE and HTTP_CONFIG."""
    return [web.post("/tickets", _issue), web.options("/tickets", _preflight)]


async def _issue(request: web.Request) -> web.StreamResponse:
    node, config = request.app[NODE], request.app[HTTP_CONFIG]
    network = network_of(client_ip(request, config.hops))
    try:
        node.admission.check_open()
        node.admission.requests.check_connect(network)
        check_origin(request, config)
        credentials = parse_credentials(request, config)
        if credentials.token is None:
            raise ServiceError(ErrorCode.UNAUTHENTICATED, "send the token as Authorization: Bearer <token>")
        value, ttl = await _ticket_value(request, node, config, credentials.token, from_cookie=credentials.from_cookie)
        ticket = await node.tickets.issue(value, ttl)
        response: web.StreamResponse = web.json_response(
            {"ticket": ticket, "expires_in": ttl}, status=201, headers={hdrs.CACHE_CONTROL: "no-store"}
        )
    except ServiceError as error:
        node.admission.refusals.count(error, "ticket", network)
        response = problem_response(error)
    add_cors_headers(request, response, config)
    return response


async def _ticket_value(
    request: web.Request, node: Node, config: HttpConfig, token: str, *, from_cookie: bool
) -> tuple[str, float]:
    """What to store, and for how many seconds. Without a body, the ticket is for one WebSocket."""
    context = None if from_cookie else client_context(request, config)  # a cookie is never sent to the backend
    identity = await node.cluster.authenticator.authenticate(token, context)
    holding = HeldBytes(node.streams.budget.account(identity.tenant))
    try:
        body = await read_json(request, node.bounds, node.runtime.metrics, holding)
        if not body:
            return token, node.bounds.deadlines.ticket
        channels = authorise_channels(node, identity, tuple(dict.fromkeys(decode(body, _decoder).channels)))
        return StreamTicket(token, tuple(channels)).encode(), node.bounds.deadlines.stream_ticket
    finally:
        holding.release()


async def _preflight(request: web.Request) -> web.StreamResponse:
    return preflight(request, "POST")
