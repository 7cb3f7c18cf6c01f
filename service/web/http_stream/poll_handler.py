"""Answers `POST /poll`: checks a request, waits for events in the realtime core, and makes the response."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from service.core.broker import DeliveredHead
from service.core.identity import Identity, Right
from service.core.position import Position
from service.core.receipt import Receipt, ReceiptChannel
from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.close import CloseCode
from service.protocol.features import parse_announcement
from service.realtime.admission.slots import network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.node import Node
from service.realtime.session.handshake import AcceptedUpgrade
from service.realtime.session.poll import PolledChannel, PollTransport, poll
from service.web.body import read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.connect_checks import authorise_channels, check_limits
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HttpConfig
from service.web.http_stream.credentials import Client, authenticate
from service.web.http_stream.requests import PollRequest, Wanted, parse_poll
from service.web.problem import problem_response

MAX_WAIT_RATIO = 0.6
"""The part of `presence.ttl` that a poll waits at most: the rest is for the client to poll again."""

CHANNELS_PER_MESSAGE = 16
"""Channels whose positions a poll may check for one message of the rates."""


class _Session(Struct, frozen=True):
    """The session of a poll, and what the client gets before everything else."""

    id: str | None
    """None if the poll begins a session."""
    started_at: float
    channels: dict[str, PolledChannel]
    ended: list[messages.Unsubscribed]
    is_expiry_announced: bool = False
    """Whether the client has got `expiring` for its token."""


class _OpenPoll(Struct, eq=False):
    transport: PollTransport
    ended: asyncio.Event


class PollHandler:
    """Answers polls. A session has one poll at a node: a second one ends the first."""

    def __init__(self, node: Node, config: HttpConfig) -> None:
        self._node = node
        self._config = config
        self._open: dict[str, _OpenPoll] = {}
        """The polls that wait, by session."""
        self._max_wait = MAX_WAIT_RATIO * node.bounds.presence_ttl

    async def post_poll(self, request: web.Request) -> web.StreamResponse:
        """Waits for events, and responds with them and a receipt."""
        node = self._node
        try:
            body = await self._answer(request)
            response = web.Response(
                body=body, content_type="application/json", headers={hdrs.CACHE_CONTROL: "no-store, no-transform"}
            )
        except ServiceError as error:
            node.admission.refusals.count(error, "poll", network_of(client_ip(request, self._config.hops)))
            response = problem_response(error)
        add_cors_headers(request, response, self._config)
        return response

    async def _answer(self, request: web.Request) -> bytes:
        node, config = self._node, self._config
        node.admission.check_open()
        network = network_of(client_ip(request, config.hops))
        node.admission.requests.check_sender_address(network)
        check_origin(request, config)
        client = await authenticate(request, node, config)
        identity = client.identity
        holding = HeldBytes(node.streams.budget.account(identity.tenant))
        try:
            asked, wanted = parse_poll(await read_json(request, node.bounds, node.runtime.metrics, holding))
        finally:
            holding.release()
        nodes = 1 + len(node.cluster.membership.states())
        node.admission.check_sender(network, identity, nodes)
        receipt = await self._take_over(asked.receipt, identity)
        # From here to the session's entry in the registry, nothing waits: what ends sessions finds it there.
        session = self._continue(client, wanted, receipt)
        new = sum(channel.known is None for channel in session.channels.values())
        further = (len(session.channels) - new - 1) // CHANNELS_PER_MESSAGE
        if further > 0:
            node.admission.check_sender(network, identity, nodes, further)
        if receipt is not None:
            node.admission.check_open()  # the drain may have begun while the body arrived
            node.admission.slots.check(network)
        else:
            check_limits(request, node, config)
            node.admission.upgrades.accept(is_upgrade=True, is_browser=hdrs.ORIGIN in request.headers)
        slot = node.admission.slots.acquire(network)
        try:
            waiting = slot.identify(identity, is_known=receipt is not None)
            if waiting is not None:
                await waiting
            if new:
                node.admission.check_subscribes(slot, new, is_upgrade=True)
        except BaseException:
            slot.release()
            raise
        announcement = parse_announcement(asked.client, asked.contract, ",".join(asked.features))
        upgrade = AcceptedUpgrade(slot, identity, client.credentials, announcement=announcement)
        return await self._poll(request, upgrade, session, asked)

    def _continue(self, client: Client, wanted: Wanted | None, receipt: Receipt | None) -> _Session:
        """Decides where each channel goes on. Raises ServiceError for a new channel that is not allowed."""
        node, identity = self._node, client.identity
        receipts = node.cluster.receipts
        if receipt is not None and not receipt.is_polled:
            raise ServiceError(
                ErrorCode.INVALID_RECEIPT, "the receipt of a stream cannot be continued by a poll", path="$.receipt"
            )
        now = receipts.now()
        old = {} if receipt is None else dict(receipt.channels)
        names = list(old) if wanted is None else wanted.channels
        positions = {} if wanted is None else wanted.positions
        ended: list[messages.Unsubscribed] = []
        channels: dict[str, PolledChannel] = {}
        fresh: list[str] = []
        for name in names:
            if receipt is None or name not in old or name in positions:
                fresh.append(name)
            elif not receipts.is_subscribed(receipt, name):
                if wanted is None:
                    ended.append(messages.Unsubscribed(channel=name, code="removed"))
                else:
                    fresh.append(name)
            elif not node.gate.allows(identity, name, Right.SUBSCRIBE):
                ended.append(messages.Unsubscribed(channel=name, code=ErrorCode.FORBIDDEN.code))
            else:
                one = old[name]
                spec = node.gate.authorise(identity, name, Right.SUBSCRIBE).spec
                known = DeliveredHead(Position(one.epoch, one.offset, one.id), one.state_version)
                channels[name] = PolledChannel(spec, one.subscribed_at, known=known)
        for name, spec in authorise_channels(node, identity, fresh).items():
            channels[name] = PolledChannel(spec, now, positions.get(name))
        if len(channels) > node.bounds.limits.subscriptions:
            raise ServiceError(
                ErrorCode.TOO_MANY_SUBSCRIPTIONS, "too many channels", limit=node.bounds.limits.subscriptions
            )
        if receipt is None:
            return _Session(None, now, channels, ended)
        is_announced = receipt.announced_expiry is not None and receipt.announced_expiry == identity.expires_at
        return _Session(receipt.session, receipt.started_at, channels, ended, is_announced)

    async def _take_over(self, text: str | None, identity: Identity) -> Receipt | None:
        """Checks a receipt, and ends the session's other poll at this node, so that the session counts once.

        Raises ServiceError. Meanwhile the session may have ended, or a third poll may have begun, so both are checked again.
        """
        if text is None:
            return None
        while True:
            receipt = self._node.cluster.receipts.check(text, identity)
            other = self._open.get(receipt.session)
            if other is None:
                return receipt
            other.transport.finish()
            await other.ended.wait()

    async def _poll(
        self, request: web.Request, upgrade: AcceptedUpgrade, session: _Session, asked: PollRequest
    ) -> bytes:
        node, identity = self._node, upgrade.identity
        if identity is None:
            raise TypeError("a poll needs an identity")
        transport = PollTransport(node.streams.budget.account(identity.tenant))
        transport.payloads += map(messages.encode, session.ended)
        transport.is_expiry_announced = session.is_expiry_announced
        protocol = request.protocol
        if isinstance(protocol, HttpProtocol):
            protocol.on_end = transport.finish
            if protocol.has_eof or request.transport is None:  # the client has left during the checks
                transport.finish()
        opened = _OpenPoll(transport, asyncio.Event())
        if session.id is not None:
            self._open[session.id] = opened
        try:
            id = await poll(node, upgrade, transport, session.id, session.channels, min(asked.wait, self._max_wait))
            return self._make_body(transport, upgrade, session, id)
        finally:
            transport.release()
            opened.ended.set()
            if session.id is not None and self._open.get(session.id) is opened:
                del self._open[session.id]
            if isinstance(protocol, HttpProtocol):
                protocol.on_end = None

    def _make_body(self, transport: PollTransport, upgrade: AcceptedUpgrade, session: _Session, id: str) -> bytes:
        payloads = [payload[1:-1] if payload[:1] == b"[" else payload for payload in transport.payloads]
        body = b'{"messages":[' + b",".join(payloads) + b"]"
        closed, identity = transport.closed, upgrade.identity
        if identity is None or (closed is not None and closed[0] != CloseCode.RESTART.code):
            return body + b"}"
        channels = {
            name: ReceiptChannel(
                session.channels[name].subscribed_at,
                head.position.epoch,
                head.position.offset,
                head.position.id,
                head.state_version,
            )
            for name, head in transport.heads.items()
        }
        receipt = self._node.cluster.receipts.issue(
            identity,
            id,
            channels,
            session.started_at,
            is_polled=True,
            is_expiry_announced=transport.is_expiry_announced,
        )
        return body + b',"receipt":%b,"expires_in":%d}' % (msgspec.json.encode(receipt.receipt), receipt.expires_in)


POLL_HANDLER = web.AppKey("poll_handler", PollHandler)
