"""The checks of an upgrade before a WebSocket exists. UpgradeHandler calls them in the order of docs/protocol.md."""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import HttpVersion11, hdrs

from service.contract.model import ChannelSpec
from service.core.hooks import ClientContext
from service.core.identity import Credentials, Identity
from service.core.tickets import StreamTicket
from service.errors import ErrorCode, ServiceError
from service.protocol.deflate import Agreement, negotiate
from service.protocol.messages import SUBPROTOCOL
from service.realtime.node import Node
from service.realtime.session.handshake import NO_CHANNELS, AcceptedUpgrade
from service.web import connect_checks
from service.web.client_info import query_values
from service.web.connect_checks import invalid_ticket
from service.web.http.header_list import Headers, header_elements
from service.web.http.plain_request import AnyRequest

_KEY = re.compile(r"[A-Za-z0-9+/]{21}[AQgw]==")
"""16 bytes as base64."""


def check_subprotocol(request: AnyRequest, *, is_upgrade: bool) -> None:
    """Raises ServiceError(UNSUPPORTED_VERSION) unless this version's subprotocol is offered."""
    offered = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL)
    if offered == SUBPROTOCOL:  # the usual offer, checked first because it is cheap
        return
    if offered is None and not is_upgrade:
        return  # a browser cannot set this header on a plain request
    if SUBPROTOCOL not in header_elements(request.headers, hdrs.SEC_WEBSOCKET_PROTOCOL):
        raise ServiceError(ErrorCode.UNSUPPORTED_VERSION, f"offer the subprotocol {SUBPROTOCOL}")


def authenticate_now(credentials: Credentials, node: Node) -> Identity | None:
    """The identity of a token, if that needs no wait; else None: call `authenticate`."""
    token = credentials.token
    return None if token is None else node.cluster.authenticator.authenticate_now(token)


def kind_of(credentials: Credentials) -> str:
    """The kind of credentials, as metrics name it; "hello" without any."""
    if credentials.token is not None:
        return "cookie" if credentials.from_cookie else "bearer"
    return "hello" if credentials.ticket is None else "ticket"


async def authenticate(credentials: Credentials, node: Node, context: ClientContext | None) -> Identity | None:
    """The identity of a request's credentials; None if the request has none. `context`: what the backend may know.

    A ticket is only looked up here: `redeem_ticket` uses it up.
    """
    if credentials.ticket is not None:
        token = await node.tickets.peek(credentials.ticket)
        if token is None or StreamTicket.decode(token) is not None:
            raise invalid_ticket()
        return await node.cluster.authenticator.authenticate(token, context)
    if credentials.token is not None:
        # A cookie is never sent to the backend.
        return await node.cluster.authenticator.authenticate(
            credentials.token, None if credentials.from_cookie else context
        )
    return None


def authorise_channels(request: AnyRequest, node: Node, identity: Identity | None) -> Mapping[str, ChannelSpec]:
    """The channels of `?channels=` with their contract. Raises ServiceError if the identity may not subscribe to one."""
    values = query_values(request, "channels")
    names = connect_checks.parse_channels(values) if values else ()
    if not names:
        return NO_CHANNELS
    if identity is None:
        raise ServiceError(ErrorCode.UNAUTHENTICATED, "?channels= needs credentials in the upgrade")
    return connect_checks.authorise_channels(node, identity, names)


def charge_subscribes(node: Node, upgrade: AcceptedUpgrade, *, is_upgrade: bool) -> None:
    """Charges the subscribe rates for all channels of `?channels=`, or for none.

    After a partial charge, the client would not know which channels are missing.
    """
    if upgrade.channels:
        node.admission.check_subscribes(upgrade.slot, len(upgrade.channels), is_upgrade=is_upgrade)


def check_handshake(request: AnyRequest) -> bytes:
    """Returns Sec-WebSocket-Key. Raises ServiceError(INVALID_REQUEST) if RFC 6455 §4.2.1 is not met."""
    headers = request.headers
    # Neither the key (§11.3.1) nor the version (§11.3.5) may come twice.
    key = ",".join(headers.getall(hdrs.SEC_WEBSOCKET_KEY, []))
    if (
        not _has_connection_upgrade(headers)
        or request.version < HttpVersion11
        or headers.getall(hdrs.SEC_WEBSOCKET_VERSION, []) != ["13"]
        or _KEY.fullmatch(key) is None
    ):
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            "this is not a WebSocket handshake: it needs HTTP/1.1, Connection: Upgrade, Sec-WebSocket-Version: 13, "
            "and a Sec-WebSocket-Key of 16 bytes as base64",
        )
    return key.encode()


def _has_connection_upgrade(headers: Headers) -> bool:
    if headers.get(hdrs.CONNECTION) == "Upgrade":  # the usual spelling, checked first because it is cheap
        return True
    return "upgrade" in [option.lower() for option in header_elements(headers, hdrs.CONNECTION)]


def negotiate_compression(request: AnyRequest) -> Agreement | None:
    """The agreement on permessage-deflate (RFC 7692); None if the client offers nothing acceptable."""
    offers = request.headers.getall(hdrs.SEC_WEBSOCKET_EXTENSIONS, [])
    return negotiate(", ".join(offers)) if offers else None


async def redeem_ticket(request: AnyRequest, node: Node) -> None:
    """Uses up the ticket; the last check, so that no refusal costs the client its ticket."""
    if await node.tickets.redeem(query_values(request, "ticket")[0]) is None:
        raise invalid_ticket()  # a concurrent upgrade has redeemed it
