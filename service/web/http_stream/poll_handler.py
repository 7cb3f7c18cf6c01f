"""Answers `POST /poll`: checks a request, waits for events in the realtime core, and makes the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import msgspec
from aiohttp import hdrs, web
from msgspec import Struct

from service.core.broker import DeliveredHead
from service.core.identity import Grant, Identity, Right
from service.core.position import Position
from service.core.receipt import Receipt, ReceiptChannel
from service.errors import ErrorCode, ServiceError
from service.protocol import messages
from service.protocol.close import CloseCode
from service.protocol.features import parse_announcement
from service.realtime.admission.slots import SessionSlot, network_of
from service.realtime.connections.byte_budget import HeldBytes
from service.realtime.ids import new_connection_id
from service.realtime.node import Node
from service.realtime.session.handshake import AcceptedUpgrade, error_message
from service.realtime.session.poll import poll
from service.realtime.session.poll_transport import PollTransport
from service.realtime.session.polled_sessions import HeldSession, PolledChannel, PolledSessions
from service.web.body import read_json
from service.web.client_info import add_cors_headers, check_origin, client_ip
from service.web.connect_checks import authorise_channels, check_limits
from service.web.http.http_protocol import HttpProtocol
from service.web.http_config import HttpConfig
from service.web.http_stream.credentials import Client, authenticate
from service.web.http_stream.requests import Wanted, parse_poll
from service.web.json_response import json_response
from service.web.problem import problem_response

_HEADERS: Mapping[str, str] = {hdrs.CACHE_CONTROL: "no-store, no-transform"}
MAX_WAIT_RATIO = 0.6
"""The part of `presence.ttl` that a poll waits at most: the rest is for the client to poll again."""
CHANNELS_PER_MESSAGE = 16
"""Channels whose positions a poll may check for one message of the rates."""


class _Plan(Struct, frozen=True):
    """What a poll serves, and what the client gets before everything else."""

    started_at: float
    channels: dict[str, PolledChannel]
    notices: list[messages.ServerMessage]
    before: Mapping[str, object]
    """The channels that the session had before."""
    is_expiry_announced: bool = False
    """Whether the client has got `expiring` for its token."""

    @property
    def new_channels(self) -> int:
        """The channels that the session did not have before."""
        return sum(channel.known is None for channel in self.channels.values())

    @property
    def asked_for(self) -> list[str]:
        """The channels that the client asks for now: neither those that go on, nor those that the backend has chosen."""
        return [name for name, one in self.channels.items() if one.known is None and not one.by_server]


class _Turn(Struct, eq=False):
    """The poll of a session that is served now."""

    session: str
    ended: asyncio.Event
    transport: PollTransport | None = None
    """None while the poll is checked."""
    is_unwanted: bool = False
    """True once another poll of the session has come."""

    def finish(self) -> None:
        """Ends the poll with the messages that it has."""
        self.is_unwanted = True
        if self.transport is not None:
            self.transport.finish()


class PollHandler:
    """Answers polls. A session has one poll at a node: a second one ends the first."""

    def __init__(self, node: Node, config: HttpConfig) -> None:
        self._node = node
        self._config = config
        self._sessions = PolledSessions(node)
        self._turns: dict[str, _Turn] = {}
        """The polls that are served, by session."""
        self._max_wait = MAX_WAIT_RATIO * node.bounds.presence_ttl

    async def post_poll(self, request: web.Request) -> web.StreamResponse:
        """Waits for events, and responds with them and a receipt."""
        node = self._node
        try:
            response = await self._answer(request)
        except ServiceError as error:
            node.admission.refusals.count(error, "poll", network_of(client_ip(request, self._config.hops)))
            response = problem_response(error)
        add_cors_headers(request, response, self._config)
        return response

    async def _answer(self, request: web.Request) -> web.Response:
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
        nodes = node.cluster.membership.node_count
        node.admission.check_sender(network, identity, nodes)
        shown = None if asked.receipt is None else node.cluster.receipts.check(asked.receipt, identity)
        async with self._turn(new_connection_id(identity.user) if shown is None else shown.session) as turn:
            plan = self._plan(client, wanted, shown)
            if node.decisions.asks_about_reads:
                await node.decisions.check_subscribes(identity, plan.asked_for)
            positions = len(plan.channels) - plan.new_channels
            if positions > CHANNELS_PER_MESSAGE:
                node.admission.check_sender(network, identity, nodes, (positions - 1) // CHANNELS_PER_MESSAGE)
            announcement = parse_announcement(asked.client, asked.contract, ",".join(asked.features))
            session = await self._find(turn, network)
            if session is None:
                if shown is None:
                    check_limits(request, node, config)
                    node.admission.upgrades.accept(is_upgrade=True, is_browser=hdrs.ORIGIN in request.headers)
                slot = await self._acquire(turn, network, identity)
                try:
                    # Meanwhile, the session may have ended, or the drain begun.
                    node.admission.check_open()
                    plan = self._plan(client, wanted, shown)
                    node.admission.check_subscribes(slot, plan.new_channels, is_upgrade=True)
                except BaseException:
                    slot.release()
                    raise
                upgrade = AcceptedUpgrade(slot, identity, client.credentials, announcement=announcement)
                session = self._sessions.open(turn.session, upgrade, slot, is_new=shown is None)
            elif plan.new_channels:
                node.admission.check_subscribes(session.slot, plan.new_channels, is_upgrade=True)
            with self._sessions.polling(
                session,
                announcement.features,
                is_new=shown is None,
                is_expiry_announced=plan.is_expiry_announced,
            ):
                wait = min(asked.wait, self._max_wait)
                return self._respond(await self._poll(request, turn, session, identity, plan, wait), network, identity)

    @asynccontextmanager
    async def _turn(self, session: str) -> AsyncIterator[_Turn]:
        """Ends the session's other poll at this node, so that the session has one at a time."""
        while (other := self._turns.get(session)) is not None:
            other.finish()
            await other.ended.wait()
        turn = self._turns[session] = _Turn(session, asyncio.Event())
        try:
            yield turn
        finally:
            del self._turns[session]
            turn.ended.set()

    async def _find(self, turn: _Turn, network: str) -> HeldSession | None:
        """Returns the session, if this node holds it. Raises ServiceError if it cannot be polled from this address."""
        session = await self._sessions.find(turn.session)
        self._node.admission.check_open()
        if session is not None:
            session.slot.move(network)
        return session

    async def _acquire(self, turn: _Turn, network: str, identity: Identity) -> SessionSlot:
        """Returns the place of a session that this node does not hold. Takes it from another node that does."""
        slots, cluster = self._node.admission.slots, self._node.cluster
        slots.check(network)
        slot = slots.acquire_session(network, turn.session)
        try:
            holder = await slot.hold(identity, partial(cluster.actions.release_session, turn.session))
        except BaseException:
            slot.release()
            raise
        if holder:
            cluster.requests.report_moved(turn.session, holder)
        return slot

    def _respond(self, body: bytes, network: str, identity: Identity) -> web.Response:
        node = self._node

        def count_stall() -> None:
            metrics = node.runtime.metrics
            metrics.limits.limit_hits.labels(limit="stall").inc()
            metrics.outbox.slow_consumers.inc()
            node.admission.recent_clients.record_slow_consumer(network, identity)

        account = node.streams.budget.account(identity.tenant)
        return json_response(body, account, _HEADERS, stall_timeout=node.bounds.outbox.stall, on_stall=count_stall)

    def _plan(self, client: Client, wanted: Wanted | None, receipt: Receipt | None) -> _Plan:
        """Decides where each channel goes on. Raises ServiceError for a new channel that is not allowed."""
        now = self._node.cluster.receipts.now()
        if receipt is None:
            return self._first_plan(client, wanted, now)
        if not receipt.is_polled:
            raise ServiceError(
                ErrorCode.INVALID_RECEIPT, "the receipt of a stream cannot be continued by a poll", path="$.receipt"
            )
        node, identity = self._node, client.identity
        node.cluster.receipts.check_ended(receipt)
        positions = {} if wanted is None else wanted.positions
        notices: list[messages.ServerMessage] = []
        channels: dict[str, PolledChannel] = {}
        fresh: list[str] = []
        for name in receipt.channels if wanted is None else wanted.channels:
            one = receipt.channels.get(name)
            if one is None or name in positions:
                fresh.append(name)
            elif not node.cluster.receipts.is_subscribed(receipt, name):
                if wanted is None:
                    notices.append(messages.Unsubscribed(channel=name, code="removed"))
                else:
                    fresh.append(name)
            elif (channel := self._continue(identity, name, one)) is not None:
                channels[name] = channel
            else:
                notices.append(messages.Unsubscribed(channel=name, code=ErrorCode.FORBIDDEN.code))
        if wanted is not None:
            channels |= self._fresh(identity, wanted, fresh, now)
        self._check_count(channels)
        is_announced = receipt.announced_expiry is not None and receipt.announced_expiry == identity.expires_at
        return _Plan(receipt.started_at, channels, notices, receipt.channels, is_announced)

    def _first_plan(self, client: Client, wanted: Wanted | None, now: float) -> _Plan:
        """Takes the channels of the request, and those that the token names."""
        identity = client.identity
        notices: list[messages.ServerMessage] = []
        channels = {} if wanted is None else self._fresh(identity, wanted, wanted.channels, now)
        for name in identity.channels:
            try:
                for added, spec in authorise_channels(self._node, identity, [name]).items():
                    channels.setdefault(added, PolledChannel(spec, now, by_server=True))
            except ServiceError as error:
                notices.append(error_message(error, None))
        self._check_count(channels)
        return _Plan(now, channels, notices, {})

    def _fresh(self, identity: Identity, wanted: Wanted, names: Sequence[str], now: float) -> dict[str, PolledChannel]:
        return {
            name: PolledChannel(spec, now, wanted.positions.get(name), tail=wanted.tails.get(name, 0))
            for name, spec in authorise_channels(self._node, identity, names).items()
        }

    def _continue(self, identity: Identity, name: str, one: ReceiptChannel) -> PolledChannel | None:
        """Returns a channel of the receipt as it goes on; None if the user may not subscribe to it any more."""
        node, grant = self._node, None
        if one.rights:
            rights = frozenset(map(Right, one.rights))
            grant = Identity(identity.tenant, identity.user, (Grant(name, rights),), issued_at=one.granted_at)
            if node.cluster.revocations.is_revoked(grant):
                grant = None
        allowed = identity if grant is None else identity.with_grants(grant)
        if not node.gate.allows(allowed, name, Right.SUBSCRIBE):
            return None
        spec = node.gate.authorise(allowed, name, Right.SUBSCRIBE).spec
        known = DeliveredHead(Position(one.epoch, one.offset, one.id), one.state_version)
        return PolledChannel(spec, one.subscribed_at, known=known, grant=grant)

    def _check_count(self, channels: Mapping[str, PolledChannel]) -> None:
        limit = self._node.bounds.limits.subscriptions
        if len(channels) > limit:
            raise ServiceError(ErrorCode.TOO_MANY_SUBSCRIPTIONS, "too many channels", limit=limit)

    async def _poll(
        self, request: web.Request, turn: _Turn, session: HeldSession, identity: Identity, plan: _Plan, wait: float
    ) -> bytes:
        transport, protocol = session.transport, request.protocol
        session.connection.flush()  # `welcome` comes first
        transport.payloads += map(messages.encode, plan.notices)
        turn.transport = transport
        if turn.is_unwanted:
            transport.finish()
        if isinstance(protocol, HttpProtocol):
            protocol.on_end = transport.finish
            if protocol.has_eof or request.transport is None:  # the client has left during the checks
                transport.finish()
        try:
            await poll(self._node, session, identity, plan.channels, plan.before, wait)
            return self._make_body(session, identity, plan)
        finally:
            transport.release()
            if isinstance(protocol, HttpProtocol):
                protocol.on_end = None

    def _make_body(self, session: HeldSession, identity: Identity, plan: _Plan) -> bytes:
        transport = session.transport
        payloads = [payload[1:-1] if payload[:1] == b"[" else payload for payload in transport.payloads]
        body = b'{"messages":[' + b",".join(payloads) + b"]"
        closed = transport.closed
        if closed is not None and closed[0] != CloseCode.RESTART.code:
            return body + b"}"
        receipts, find = self._node.cluster.receipts, session.connection.session.find
        channels = {}
        for name, head in transport.heads.items():
            planned, subscription = plan.channels.get(name), find(name)
            grant = None if subscription is None else subscription.grant
            channels[name] = ReceiptChannel(
                receipts.now() if planned is None else planned.subscribed_at,
                head.position.epoch,
                head.position.offset,
                head.position.id,
                head.state_version,
                () if grant is None else tuple(sorted(right.value for right in grant.grants[0].rights)),
                0.0 if grant is None else grant.issued_at or 0.0,
            )
        receipt = receipts.issue(
            identity,
            session.connection.id,
            channels,
            plan.started_at,
            is_polled=True,
            is_expiry_announced=transport.is_expiry_announced,
        )
        return body + b',"receipt":%b,"expires_in":%d}' % (msgspec.json.encode(receipt.receipt), receipt.expires_in)


POLL_HANDLER = web.AppKey("poll_handler", PollHandler)
