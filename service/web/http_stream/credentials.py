"""Authenticates the requests of streams."""

from __future__ import annotations

from aiohttp import hdrs, web
from msgspec import Struct

from service.core.identity import Identity, anonymous
from service.core.tickets import StreamTicket
from service.errors import ErrorCode, ServiceError
from service.realtime.node import Node
from service.web.client_info import check_post_origin, parse_credentials
from service.web.connect_checks import client_context, invalid_ticket
from service.web.http_config import HttpConfig


class Client(Struct, frozen=True):
    """Who asks, and with which credentials."""

    identity: Identity
    credentials: str
    """The kind: bearer, cookie, ticket, hook (no token, and the backend vouches) or anonymous."""
    ticket: StreamTicket | None = None


async def authenticate(request: web.Request, node: Node, config: HttpConfig) -> Client:
    """Authenticates a request for a stream, a poll or an emit.

    Raises ServiceError. A cookie counts in a POST only with an Origin from the list, because browsers attach cookies to the
    requests of every site.
    """
    credentials = parse_credentials(request, config)
    authenticator, context = node.cluster.authenticator, client_context(request, config)
    if credentials.from_cookie and request.method == hdrs.METH_POST:
        check_post_origin(request, config)
    if credentials.token is not None:
        if credentials.from_cookie:  # which is never sent to the backend
            return Client(await authenticator.authenticate(credentials.token), "cookie")
        return Client(await authenticator.authenticate(credentials.token, context), "bearer")
    if credentials.ticket is not None:
        value = await node.tickets.peek(credentials.ticket)
        ticket = None if value is None else StreamTicket.decode(value)
        if ticket is None or request.method != hdrs.METH_GET:
            raise invalid_ticket()
        return Client(await authenticator.authenticate(ticket.token, context), "ticket", ticket)
    identity = await authenticator.authenticate_without_token(context)
    if identity is not None:
        return Client(identity, "hook")
    if node.bounds.anonymous_tenant is None:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "send the token as Authorization: Bearer <token>")
    return Client(anonymous(node.bounds.anonymous_tenant), "anonymous")
