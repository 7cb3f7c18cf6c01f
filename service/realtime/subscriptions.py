"""Joining and leaving channels: the steps that several commands share."""

from __future__ import annotations

from functools import partial

from msgspec import Raw

from service.contract.gate import Gate
from service.core.channel import channel_key
from service.core.identity import Right
from service.core.position import Position
from service.core.session import Subscription
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import Subscribed
from service.realtime.connection import Connection
from service.realtime.frame import encode_event
from service.realtime.presence import Presence
from service.realtime.relay import Joined, Relay
from service.telemetry.metrics import Metrics


class Subscriptions:
    """Joins and leaves channels on behalf of connections: authorisation, room, presence, snapshot."""

    def __init__(self, gate: Gate, relay: Relay, presence: Presence, metrics: Metrics) -> None:
        self._gate = gate
        self._relay = relay
        self._presence = presence
        self._metrics = metrics
        self._fresh = metrics.resumes.labels(outcome="fresh")

    async def subscribe(
        self, connection: Connection, channel: str, request: str | None, since: Position | None
    ) -> None:
        """Authorises, joins and, if the client is ready, replies and goes live. Raises ServiceError; then nothing was joined."""
        session = connection.session
        spec = self._gate.authorise(session.identity, channel, Right.SUBSCRIBE).spec
        try:
            session.check_room_for(channel)
        except ServiceError as error:
            if error.code is ErrorCode.TOO_MANY_SUBSCRIPTIONS:
                self._metrics.limit_hits.labels(limit="subscriptions").inc()
            raise
        key = channel_key(session.identity.tenant, channel)
        subscription = Subscription(key, request, since, since is not None, spec.presence)
        session.subscriptions[key.name] = subscription
        try:
            await self._relay.join(connection, subscription, spec)
            if not session.ready:
                await self._relay.hold(subscription)
            if spec.presence and not session.identity.is_anonymous:
                await self._presence.join(
                    subscription.channel, session.identity.user, connection.id, session.identity.info
                )
            if session.subscriptions.get(channel) is not subscription:
                # The backend has ended it, when not all of the above was there to be ended.
                await self._leave(connection, subscription)
            elif session.ready:
                await self.present(connection, subscription)
        except BaseException:
            await self.leave(connection, channel)
            raise

    async def present(self, connection: Connection, subscription: Subscription) -> None:
        """Sends `subscribed` with the snapshot; from here on the connection gets the channel's events."""
        view = partial(self._presence.view, subscription.channel) if subscription.presence else None
        joined = await self._relay.go_live(connection, subscription, view)
        if joined is None:
            return
        subscription.since = None  # it is live: where it began is nobody's concern any more
        self._count(subscription, joined)
        snapshot = joined.snapshot
        held_without_gap = not subscription.resuming and joined.recovered is True and not snapshot.missed
        connection.reply(
            Subscribed(
                id=subscription.request,
                channel=subscription.channel.name,
                epoch=snapshot.top.epoch,
                offset=snapshot.top.offset,
                last=snapshot.top.id,
                recovered=None if held_without_gap else joined.recovered,
                events=[Raw(encode_event(event)) for event in snapshot.missed],
                state=[Raw(encode_event(event)) for event in snapshot.state],
                presence=joined.presence,
            )
        )
        if not connection.send(joined.after):
            connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    def _count(self, subscription: Subscription, joined: Joined) -> None:
        if not subscription.resuming:
            self._fresh.inc()
            return
        self._metrics.resumes.labels(outcome="gap" if joined.recovered is False else "recovered").inc()
        missed = len(joined.snapshot.missed)
        self._metrics.resumed_events.inc(missed)
        self._metrics.resume_events.observe(missed)

    async def leave(self, connection: Connection, channel: str) -> None:
        """Leaves a channel; harmless if it was not joined."""
        subscription = connection.session.subscriptions.pop(channel, None)
        if subscription is not None:
            await self._leave(connection, subscription)

    async def _leave(self, connection: Connection, subscription: Subscription) -> None:
        await self._relay.leave(connection, subscription)
        identity = connection.session.identity
        if not identity.is_anonymous and subscription.presence:
            self._presence.leave(subscription.channel, identity.user, connection.id)
