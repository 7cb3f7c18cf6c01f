"""Upgrades to a WebSocket: checks a request, answers it, and hands the connection to the realtime core."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, Protocol

import structlog
from aiohttp import hdrs, web
from msgspec import Struct

from service.core.identity import Credentials, Identity
from service.errors import ErrorCode, ServiceError
from service.protocol.deflate import Agreement
from service.protocol.framing import accept_key
from service.protocol.messages import SUBPROTOCOL
from service.realtime.admission.slots import ConnectionSlot, network_of
from service.realtime.connections.byte_budget import UNAUTHENTICATED_TENANT
from service.realtime.node import Node
from service.realtime.session.accept import accept_connection
from service.realtime.session.handshake import AcceptedUpgrade
from service.realtime.session.pre_auth_buffer import PreAuthBuffer
from service.web.client_info import add_cors_headers, check_origin, client_ip, parse_credentials, query_values
from service.web.connect_checks import check_limits, client_context, read_announcement
from service.web.http.detach import DetachedConnection
from service.web.http.header_list import offers_websocket
from service.web.http.peer_transport import NULL_HANDLER
from service.web.http.plain_request import AnyRequest, PlainRequest
from service.web.http_config import HttpConfig
from service.web.problem import fault_response, problem_response
from service.web.ws import upgrade_checks
from service.web.ws.read_scheduler import ReadScheduler
from service.web.ws.websocket import WebSocket, WebSocketContext

_log = structlog.get_logger("web")

_SUBPROTOCOL = SUBPROTOCOL.encode()
_RESPONSE_HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: %b\r\nSec-WebSocket-Protocol: %b%b\r\n\r\n"
)


class UpgradeResponse(Struct, frozen=True):
    """The response to an accepted upgrade, not sent yet."""

    upgrade: AcceptedUpgrade
    head: bytes
    window_bits: int
    """The deflate window of frames to the peer; 0 without compression."""


class Attached(NamedTuple):
    """The WebSocket of an accepted upgrade, whose session has not started."""

    upgrade: AcceptedUpgrade
    websocket: WebSocket
    buffer: PreAuthBuffer | None
    """Holds early messages; None if there can be none."""
    head: bytes
    """The response; empty if it is sent."""


class PendingUpgrade(Protocol):
    """A connection whose first request is an upgrade that has no response yet."""

    @property
    def received_at(self) -> float:
        """Monotonic time at which the whole request head had arrived."""

    def detach(self) -> DetachedConnection:
        """Passes the connection to the caller, and releases it here."""

    def abort(self) -> None:
        """Aborts the connection, unless it is detached."""

    def respond(self, response: web.Response) -> None:
        """Sends a response and closes the connection."""


class UpgradeHandler:
    """Checks upgrades and carries them out, for requests that UpgradeQueue or aiohttp has parsed."""

    def __init__(self, node: Node, config: HttpConfig, *, compresses: bool) -> None:
        self._node = node
        self._config = config
        read_scheduler = ReadScheduler(node.runtime.clock, node.runtime.metrics, node.bounds.deadlines.message)
        self._context = WebSocketContext(node.bounds, node.runtime.clock, node.runtime.metrics, read_scheduler)
        self._compresses = compresses

    def check(self, request: AnyRequest, pending: PendingUpgrade) -> UpgradeResponse | None:
        """Checks an upgrade that UpgradeQueue has read. Returns the response for `attach`, which the caller must call at once.

        Returns None if nothing is left for the caller: the upgrade is refused, or a task finishes what has to wait.
        """
        try:
            checked = self._check(request)
        except Exception as error:
            try:
                _respond(self._refuse(request, error), pending)
            except Exception:
                _respond(fault_response(request.method), pending)
            return None
        if isinstance(checked, UpgradeResponse):
            return checked
        waiting = self._answer_checked(request, checked, pending.detach, pending.received_at)
        self._node.runtime.tasks.start("upgrade", _finish(request, waiting, pending))
        return None

    def attach(self, request: AnyRequest, response: UpgradeResponse, pending: PendingUpgrade) -> Attached | None:
        """Makes the WebSocket of a checked upgrade, for `serve`, which the caller must call at once. None without a peer."""
        try:
            return self._attach(response, pending.detach, pending.received_at)
        except Exception:
            _respond(fault_response(request.method), pending)
            return None

    def serve(self, request: AnyRequest, attached: Attached, pending: PendingUpgrade) -> None:
        """Sends the response, and starts the session; a task finishes what has to wait."""
        try:
            waiting = self._serve(attached)
        except Exception:
            _respond(fault_response(request.method), pending)
            return
        if waiting is not None:
            self._node.runtime.tasks.start("upgrade", _finish(request, _without_response(waiting), pending))

    async def answer(
        self, request: AnyRequest, detach: Callable[[], DetachedConnection], received_at: float
    ) -> web.Response | None:
        """Returns the response of a refusal, or None once the connection is served as a WebSocket.

        `detach` is called after all checks have passed. `received_at`: monotonic time at which the request had arrived.
        """
        answer = self._answer_now(request, detach, received_at)
        return answer if answer is None or isinstance(answer, web.Response) else await answer

    def _answer_now(
        self, request: AnyRequest, detach: Callable[[], DetachedConnection], received_at: float
    ) -> web.Response | Coroutine[Any, Any, web.Response | None] | None:
        """Does the same as `answer`, up to the first wait. Returns what has to be waited for, or the result of `answer`."""
        try:
            checked = self._check(request)
        except Exception as error:
            return self._refuse(request, error)
        if isinstance(checked, UpgradeResponse):
            waiting = self._open(checked, detach, received_at)
            return None if waiting is None else _without_response(waiting)
        return self._answer_checked(request, checked, detach, received_at)

    async def _answer_checked(
        self,
        request: AnyRequest,
        checks: Awaitable[UpgradeResponse],
        detach: Callable[[], DetachedConnection],
        received_at: float,
    ) -> web.Response | None:
        try:
            response = await checks
        except Exception as error:
            return self._refuse(request, error)
        waiting = self._open(response, detach, received_at)
        if waiting is not None:
            await waiting
        return None

    def _open(
        self, response: UpgradeResponse, detach: Callable[[], DetachedConnection], received_at: float
    ) -> Coroutine[Any, Any, None] | None:
        """Sends the response, and serves the connection as a WebSocket. Returns what has to be waited for."""
        attached = self._attach(response, detach, received_at)
        return None if attached is None else self._serve(attached)

    def _attach(
        self, response: UpgradeResponse, detach: Callable[[], DetachedConnection], received_at: float
    ) -> Attached | None:
        detached = detach()
        transport, early_data, has_eof = detached.transport, detached.early_data, detached.has_eof
        node, upgrade = self._node, response.upgrade
        if transport is None or transport.is_closing():
            upgrade.slot.release()
            return None
        identity = upgrade.identity
        account = node.streams.budget.account(UNAUTHENTICATED_TENANT if identity is None else identity.tenant)
        websocket = WebSocket(self._context, transport, response.window_bits, account=account)
        head = response.head
        if identity is None or early_data or has_eof:
            # Messages may arrive before the session starts, so they need a buffer, and the client needs the head now.
            websocket.handler = buffer = PreAuthBuffer(websocket)
        else:
            # The head is sent with the welcome in one write, because each write that wakes a client is costly.
            websocket.handler, buffer = NULL_HANDLER, None
        transport.set_protocol(websocket)
        websocket.connection_made(transport)
        if buffer is not None:
            websocket.write(head)
            head = b""
        runtime = node.runtime
        runtime.metrics.connections.handshake_seconds.observe(max(0.0, runtime.clock.monotonic() - received_at))
        if early_data:
            websocket.data_received(early_data)
        if has_eof and not websocket.eof_received():
            transport.close()
        return Attached(upgrade, websocket, buffer, head)

    def _serve(self, attached: Attached) -> Coroutine[Any, Any, None] | None:
        return accept_connection(self._node, attached.websocket, attached.buffer, attached.upgrade, attached.head)

    def _refuse(self, request: AnyRequest, error: Exception) -> web.Response:
        """Returns the response of a refusal. Raises any other error again."""
        if not isinstance(error, ServiceError):
            self._count_refusal(request, ServiceError(ErrorCode.INTERNAL, "a fault of the service"))
            raise error
        if error.code is not ErrorCode.UPGRADE_REQUIRED:
            self._count_refusal(request, error)
        response = problem_response(error)
        if error.code is ErrorCode.INVALID_REQUEST:
            response.headers[hdrs.SEC_WEBSOCKET_VERSION] = "13"  # RFC 6455 §4.4
        add_cors_headers(request, response, self._config)
        return response

    def _count_refusal(self, request: AnyRequest, error: ServiceError) -> None:
        self._node.admission.refusals.count(error, "upgrade", network_of(client_ip(request, self._config.hops)))

    def _check(self, request: AnyRequest) -> UpgradeResponse | Coroutine[Any, Any, UpgradeResponse]:
        """Runs every check in the order of docs/protocol.md, cheap ones first. Returns what has to be waited for, if any.

        Raises ServiceError, at once or at the end of the wait, after which nothing stays reserved. For a plain GET whose upgrade
        would succeed, the code is UPGRADE_REQUIRED.
        """
        node, config = self._node, self._config
        # The slot is acquired before the first wait: otherwise concurrent upgrades could exceed the caps.
        slot = node.admission.slots.acquire(check_limits(request, node, config))
        is_upgrade, has_entered = offers_websocket(request.headers), False
        try:
            upgrade_checks.check_subprotocol(request, is_upgrade=is_upgrade)
            is_browser = hdrs.ORIGIN in request.headers
            if is_browser:
                check_origin(request, config)
            # Charged after the checks of the client's address, so that one address cannot use up the accept rate of
            # all. Charged before the costly checks.
            node.admission.upgrades.accept(is_upgrade=is_upgrade, is_browser=is_browser)
            has_entered = is_upgrade
            credentials = parse_credentials(request, config)
            identity = upgrade_checks.authenticate_now(credentials, node)
            waiting = None if identity is None else slot.identify(identity)
            if identity is not None and waiting is None and not node.decisions.asks_about_reads:
                return self._check_rest(request, slot, credentials, identity, is_upgrade=is_upgrade)
        except BaseException:
            self._leave(slot, has_entered=has_entered)
            raise
        return self._check_identity(request, slot, credentials, identity, waiting, is_upgrade=is_upgrade)

    async def _check_identity(
        self,
        request: AnyRequest,
        slot: ConnectionSlot,
        credentials: Credentials,
        identity: Identity | None,
        waiting: Awaitable[None] | None,
        *,
        is_upgrade: bool,
    ) -> UpgradeResponse:
        """Continues `_check` where it has to wait: for the identity, for the quota of all nodes, or for the end of a ticket."""
        try:
            if identity is None:
                identity = await upgrade_checks.authenticate(
                    credentials, self._node, client_context(request, self._config)
                )
                waiting = None if identity is None else slot.identify(identity)
            if waiting is not None:
                await waiting
            response = self._check_rest(request, slot, credentials, identity, is_upgrade=is_upgrade)
            await self._ask_backend(request, identity)
            if credentials.ticket is not None:
                await upgrade_checks.redeem_ticket(request, self._node)
        except BaseException as error:
            try:
                if isinstance(error, ServiceError) and error.code is ErrorCode.UPGRADE_REQUIRED:
                    await self._ask_backend(request, identity)
            finally:
                self._leave(slot, has_entered=is_upgrade)
            raise
        return response

    async def _ask_backend(self, request: AnyRequest, identity: Identity | None) -> None:
        """Asks about the channels of an upgrade that would succeed otherwise. Their subscribes are charged already."""
        node = self._node
        if node.decisions.asks_about_reads and identity is not None:
            await node.decisions.check_subscribes(identity, upgrade_checks.authorise_channels(request, node, identity))

    def _check_rest(
        self,
        request: AnyRequest,
        slot: ConnectionSlot,
        credentials: Credentials,
        identity: Identity | None,
        *,
        is_upgrade: bool,
    ) -> UpgradeResponse:
        """Runs the checks after the quota, all but the last one of a ticket."""
        node = self._node
        channels = upgrade_checks.authorise_channels(request, node, identity)
        is_ready = "1" in query_values(request, "ready")
        announcement = read_announcement(request)
        kind = upgrade_checks.kind_of(credentials)
        context = client_context(request, self._config) if identity is None else None
        upgrade = AcceptedUpgrade(slot, identity, kind, channels, is_ready, announcement, context)
        if not is_upgrade:
            upgrade_checks.charge_subscribes(node, upgrade, is_upgrade=False)
            raise ServiceError(ErrorCode.UPGRADE_REQUIRED, "an upgrade of this address would succeed")
        # None, or empty, unless the parser has checked the handshake.
        accept = request.accept if isinstance(request, PlainRequest) else None
        if not accept:
            accept = accept_key(upgrade_checks.check_handshake(request))
        agreement = upgrade_checks.negotiate_compression(request) if self._compresses else None
        upgrade_checks.charge_subscribes(node, upgrade, is_upgrade=True)
        return UpgradeResponse(upgrade, _head(accept, agreement), agreement.window_bits if agreement is not None else 0)

    def _leave(self, slot: ConnectionSlot, *, has_entered: bool) -> None:
        """Releases what a refused upgrade has reserved."""
        if has_entered:
            self._node.admission.upgrades.cancel()
        slot.release()


async def _without_response(waiting: Awaitable[None]) -> None:
    await waiting


async def _finish(request: AnyRequest, answer: Awaitable[web.Response | None], pending: PendingUpgrade) -> None:
    try:
        response = await answer
    except Exception:
        response = fault_response(request.method)
    except BaseException:  # the service stops; the peer gets no response
        pending.abort()
        raise
    if response is not None:
        _respond(response, pending)


def _respond(response: web.Response, pending: PendingUpgrade) -> None:
    try:
        pending.respond(response)
    except Exception:  # no deadline covers this connection any more, so nothing else would ever close it
        _log.exception("upgrade_response_failed")
        pending.abort()


def _head(accept: bytes, agreement: Agreement | None) -> bytes:
    extensions = b"" if agreement is None else b"\r\nSec-WebSocket-Extensions: " + agreement.response
    return _RESPONSE_HEAD % (accept, _SUBPROTOCOL, extensions)


UPGRADE_HANDLER = web.AppKey("upgrade_handler", UpgradeHandler)
