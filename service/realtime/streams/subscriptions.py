"""Subscribes and unsubscribes connections: the steps that several commands share."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

from msgspec import Raw

from service.contract.gate import Gate
from service.contract.model import ChannelSpec
from service.core.broker import DeliveredHead, StreamHead
from service.core.channel import channel_key
from service.core.identity import Identity, Right
from service.core.position import Position
from service.core.session import ExtendedSubscription, Phase, PresenceAccess, Start, Subscription
from service.core.webhooks import ChannelWebhook
from service.errors import ErrorCode, ServiceError
from service.protocol.close import CloseCode
from service.protocol.messages import Expiring, PresenceReply, Subscribed, Unsubscribed
from service.realtime.connections.connection import Connection
from service.realtime.connections.frame import Frame, encode_event
from service.realtime.decisions import Decisions
from service.realtime.facts.facts import Facts
from service.realtime.presence.presence import Presence
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_membership import ChannelMembership, Joined
from service.realtime.streams.empty_channels import EmptyChannels
from service.realtime.streams.rechecks import Rechecks
from service.realtime.streams.subscription_grants import SubscriptionGrants


class Subscriptions:
    """Subscribes connections to channels: authorisation, room, presence, snapshot."""

    def __init__(
        self,
        gate: Gate,
        decisions: Decisions,
        membership: ChannelMembership,
        presence: Presence,
        grants: SubscriptionGrants,
        rechecks: Rechecks,
        empty_channels: EmptyChannels,
        facts: Facts | None,
        runtime: Runtime,
        max_subscriptions: int,
    ) -> None:
        """`facts`: None if nobody is told of channels. `max_subscriptions`: those of one connection."""
        self._max_subscriptions = max_subscriptions
        self._gate = gate
        self._decisions = decisions
        self._membership = membership
        self._presence = presence
        self._grants = grants
        self._rechecks = rechecks
        self._empty_channels = empty_channels
        self._facts = facts
        self._tasks = runtime.tasks
        self._metrics = runtime.metrics
        self._fresh = runtime.metrics.subscriptions.resumes.labels(outcome="fresh")

    def subscribe(
        self,
        connection: Connection,
        channel: str,
        request: str | None,
        since: Position | None,
        tail: int = 0,
        grant: Identity | None = None,
    ) -> Awaitable[None] | None:
        """Authorises a client and subscribes it to a channel. If it has sent `ready`, sends `subscribed` and starts delivery.

        Returns what has to be waited for; None if the client is subscribed. Raises ServiceError, at once or at the end of the
        wait; then nothing has changed. Without the right to history or to presence, a client is not refused. It gets no missed
        events, or does not see the users. `tail`: the number of last events that `subscribed` brings.
        `grant`: the identity of the subscription's own token.
        """
        session = connection.session
        identity = session.identity if grant is None else session.identity.with_grants(grant)
        try:
            spec = self._gate.authorise(identity, channel, Right.SUBSCRIBE).spec
        except ServiceError:
            held = session.find(channel)
            if held is None or held.grant is None or grant is not None:
                raise
            identity = session.identity_in(channel)
            spec = self._gate.authorise(identity, channel, Right.SUBSCRIBE).spec
        asking = self._decisions.check_read(identity, channel, Right.SUBSCRIBE)
        if asking is not None:
            return self._join_after(asking, connection, channel, spec, request, since, tail, grant)
        return self.join_authorised(connection, channel, spec, request, since, tail, grant)

    async def _join_after(self, asking: Awaitable[None], connection: Connection, *joining: Any) -> None:
        """Subscribes a client once the backend has allowed it."""
        await asking
        waiting = self.join_authorised(connection, *joining)
        if waiting is not None:
            await waiting

    def add(self, connection: Connection, channel: str, grant: Identity | None = None) -> Awaitable[None] | None:
        """Subscribes a client that has not asked for it. Its own `subscribe` takes the subscription over.

        `grant`: rights of the subscription from the backend. Does nothing if the client is subscribed already. Returns and
        raises as `subscribe` does.
        """
        session = connection.session
        if session.is_subscribed(channel):
            return None
        identity = session.identity if grant is None else session.identity.with_grants(grant)
        spec = self._gate.authorise(identity, channel, Right.SUBSCRIBE).spec
        return self.join_authorised(connection, channel, spec, None, None, 0, grant, by_server=True)

    def check_can_add(self, connection: Connection, channel: str, grant: Identity) -> None:
        """Raises what `add` would raise at once, and nothing if the client is subscribed already."""
        session = connection.session
        self._gate.authorise(session.identity.with_grants(grant), channel, Right.SUBSCRIBE)
        if not session.is_subscribed(channel):
            session.check_can_subscribe(channel, self._max_subscriptions)

    def join_authorised(
        self,
        connection: Connection,
        channel: str,
        spec: ChannelSpec,
        request: str | None,
        since: Position | None,
        tail: int = 0,
        grant: Identity | None = None,
        *,
        is_continued: bool = False,
        by_server: bool = False,
        is_filled: bool = False,
    ) -> Awaitable[None] | None:
        """Does what `subscribe` does for a channel for which the connection's identity is already authorised.

        `is_continued`: the session was subscribed up to `since`, so what came after it needs no right to history.
        `is_filled`: the backend has been asked for the content of the channel, if it was empty.
        """
        session = connection.session
        identity = session.identity
        try:
            session.check_can_subscribe(channel, self._max_subscriptions)
        except ServiceError as error:
            held = session.find(channel)
            if held is not None and held.by_server:
                return self._take_over(connection, held, spec, request, since, tail, grant)
            if error.code is ErrorCode.TOO_MANY_SUBSCRIPTIONS:
                self._metrics.limits.limit_hits.labels(limit="subscriptions").inc()
            raise
        key = channel_key(identity.tenant, channel)
        if spec.when_empty is not None and not is_filled and not is_continued:
            filling = self._empty_channels.fill(key, spec.when_empty)
            if filling is not None:
                return self._join_filled(
                    filling, connection, channel, spec, request, since, tail, grant, by_server=by_server
                )
        start = Start.JOIN if since is None or is_continued else Start.POSITION
        if grant is not None:
            self._grants.check(grant)
        if tail or grant is not None or by_server:
            access = self._presence_access(identity if grant is None else identity.with_grants(grant), channel, spec)
            subscription: Subscription = ExtendedSubscription(
                key, request, since, start, access, tail=tail, grant=grant, by_server=by_server
            )
        else:
            subscription = Subscription(key, request, since, start, self._presence_access(identity, channel, spec))
        session.add(subscription)
        if grant is not None:
            self._watch(connection, subscription, grant)
        hook = spec.hook
        if hook is not None and hook.recheck and not by_server:
            self._rechecks.watch(
                session, connection.id, subscription, hook, end=lambda: self._end(connection, subscription)
            )
        membership = self._membership
        has_joined = membership.join_now(connection, subscription)
        if has_joined and start is Start.JOIN and not spec.presence:
            try:
                if session.is_ready:
                    is_done = self.go_live_now(connection, subscription)
                else:
                    is_done = membership.record_position_now(subscription)
            except Exception as error:
                return self._leave_and_raise(connection, channel, error)
            if is_done:
                return None
        return self._join(connection, subscription, spec, has_joined=has_joined)

    async def _join_filled(
        self,
        filling: Awaitable[None],
        connection: Connection,
        channel: str,
        spec: ChannelSpec,
        request: str | None,
        since: Position | None,
        tail: int,
        grant: Identity | None,
        *,
        by_server: bool,
    ) -> None:
        """Subscribes a client once the backend has filled the channel."""
        await filling
        identity = connection.session.identity
        self._gate.authorise(
            identity if grant is None else identity.with_grants(grant), channel, Right.SUBSCRIBE
        )  # the token may have expired during the wait
        waiting = self.join_authorised(
            connection, channel, spec, request, since, tail, grant, by_server=by_server, is_filled=True
        )
        if waiting is not None:
            await waiting

    async def _take_over(
        self,
        connection: Connection,
        held: Subscription,
        spec: ChannelSpec,
        request: str | None,
        since: Position | None,
        tail: int,
        grant: Identity | None,
    ) -> None:
        """Replaces a subscription that the server has made by the client's own. Without a token, its rights stay."""
        channel = held.channel.name
        await self.leave(connection, channel)
        waiting = self.join_authorised(connection, channel, spec, request, since, tail, grant or held.grant)
        if waiting is not None:
            await waiting

    async def _leave_and_raise(self, connection: Connection, channel: str, error: Exception) -> None:
        await self.leave(connection, channel)
        raise error

    async def _join(
        self, connection: Connection, subscription: Subscription, spec: ChannelSpec, *, has_joined: bool
    ) -> None:
        session, start, channel = connection.session, subscription.start, subscription.channel.name
        identity = session.identity_in(channel)
        try:
            if not has_joined:
                await self._membership.join(connection, subscription, spec)
            if not session.is_ready:
                await self._membership.record_position(subscription)
            if start is Start.POSITION and not self._may_resume(identity, channel, spec):
                await self._membership.forgo_history(subscription)
            if spec.presence and not identity.is_anonymous:
                await self._presence.join(
                    subscription.channel,
                    identity.user,
                    connection.id,
                    identity.info,
                    is_updatable=spec.presence_update is not None,
                )
                if self._facts is not None and spec.webhook is not None:
                    self._facts.user_joined(
                        subscription.channel, spec.webhook, identity.user, connection.id, identity.info
                    )
            if session.find(channel) is not subscription:
                # The backend has ended the subscription meanwhile.
                waiting = self._leave(connection, subscription)
                if waiting is not None:
                    await waiting
            elif session.is_ready:
                await self.go_live(connection, subscription)
        except BaseException:
            await self.leave(connection, channel)
            raise

    def go_live_now(self, connection: Connection, subscription: Subscription) -> bool:
        """Does the same as `go_live`, if that needs no wait. Otherwise does nothing and returns False: call `go_live`."""
        if subscription.presence is PresenceAccess.SEES or subscription.tail:
            return False
        position = self._membership.go_live_now(connection, subscription)
        if position is None:
            return False
        subscription.since = None  # frees memory: only a pending subscription needs it
        self._fresh.inc()
        connection.reply(
            Subscribed(
                subscription.request, subscription.channel.name, position.epoch, position.offset, [], [], position.id
            )
        )
        return True

    async def expire(self, connection: Connection, subscription: Subscription) -> None:
        """Unsubscribes a client that has not polled again in time. Presence shows that without a debounce."""
        identity = connection.session.identity
        if not identity.is_anonymous and subscription.presence is not PresenceAccess.NONE:
            self._presence.leave_at_once(subscription.channel, identity.user, connection.id)
            webhook = self._webhook_of(subscription)
            if self._facts is not None and webhook is not None:
                self._facts.user_left(subscription.channel, webhook, identity.user, connection.id, is_debounced=False)
        await self.leave(connection, subscription.channel.name)

    def pause(self, connection: Connection, subscription: Subscription) -> None:
        """Stops delivery between two polls. The subscription is pending again, and its user stays present."""
        self._membership.pause(connection, subscription)

    async def continue_live(
        self, connection: Connection, known: Mapping[str, DeliveredHead]
    ) -> Mapping[str, DeliveredHead]:
        """Starts delivery, without `subscribed`, in those pending channels of which the client knows everything.

        `known`: how far this client was served, which must not come from the client. One call of the broker reads all heads.
        Returns the channels whose delivery has started.
        """
        pending = [one for one in connection.session.subscriptions if one.channel.name in known]
        started = await self._membership.continue_live(
            connection, pending, [known[one.channel.name] for one in pending]
        )
        for subscription, frames in started:
            subscription.since = None
            self._send(connection, frames)
        return {one.channel.name: known[one.channel.name] for one, _ in started}

    async def go_live(self, connection: Connection, subscription: Subscription) -> StreamHead | None:
        """Sends `subscribed` with the snapshot, then starts delivery. Returns the head of the snapshot, if one was read."""
        if self.go_live_now(connection, subscription):
            return None
        sees = subscription.presence is PresenceAccess.SEES
        view = partial(self._presence.view, subscription.channel) if sees else None
        tail = subscription.tail
        if tail:
            channel = subscription.channel.name
            if not self._gate.allows(connection.session.identity_in(channel), channel, Right.HISTORY):
                tail = 0
        joined = await self._membership.go_live(connection, subscription, view, tail)
        if joined is None:
            return None
        subscription.since = None  # frees memory: only a pending subscription needs it
        self._count(subscription, joined)
        snapshot = joined.snapshot
        is_continuous = subscription.start is Start.JOIN and joined.recovered is True and not snapshot.missed
        connection.reply(
            Subscribed(
                id=subscription.request,
                channel=subscription.channel.name,
                epoch=snapshot.position.epoch,
                offset=snapshot.position.offset,
                last=snapshot.position.id,
                recovered=None if is_continuous else joined.recovered,
                events=[Raw(encode_event(event)) for event in snapshot.missed],
                state=[Raw(encode_event(event)) for event in snapshot.state],
                presence=joined.presence,
                tail=[Raw(encode_event(event)) for event in snapshot.tail] if tail else None,
            )
        )
        self._send(connection, joined.after)
        return snapshot.head

    def _count(self, subscription: Subscription, joined: Joined) -> None:
        if joined.snapshot.tail:
            self._metrics.subscriptions.tail_events.inc(len(joined.snapshot.tail))
        if subscription.start is Start.JOIN:
            self._fresh.inc()
            return
        self._metrics.subscriptions.resumes.labels(outcome="gap" if joined.recovered is False else "recovered").inc()
        missed = len(joined.snapshot.missed)
        self._metrics.subscriptions.resumed_events.inc(missed)
        self._metrics.subscriptions.resume_events.observe(missed)

    def _presence_access(self, identity: Identity, channel: str, spec: ChannelSpec) -> PresenceAccess:
        if not spec.presence:
            return PresenceAccess.NONE
        sees = self._gate.allows(identity, channel, Right.PRESENCE)
        return PresenceAccess.SEES if sees else PresenceAccess.LISTED

    def _may_resume(self, identity: Identity, channel: str, spec: ChannelSpec) -> bool:
        # Without history there is nothing to hide, so the current position need not be read.
        return spec.history is None or self._gate.allows(identity, channel, Right.HISTORY)

    async def reauthorise(self, connection: Connection) -> None:
        """Applies the rights of a connection's new token to its subscriptions, and the token's info to presence.

        Raises ServiceError if the broker is away. Even then, everything that the token does not allow is already hidden. Repeat
        the call to show what the token newly allows.
        """
        session = connection.session
        ended = [one for one in session.subscriptions if not self._restrict(connection, one)]
        for subscription in ended:  # after the client was notified, because leaving may wait for the broker
            await self.leave(connection, subscription.channel.name)
        for subscription in session.subscriptions:
            if session.find(subscription.channel.name) is subscription:  # else it has ended meanwhile
                await self._grant(connection, subscription)

    def _restrict(self, connection: Connection, subscription: Subscription) -> bool:
        """Hides at once what the token does not allow. False if the subscription must end."""
        channel = subscription.channel.name
        identity = connection.session.identity_in(channel)
        try:
            spec = self._gate.authorise(identity, channel, Right.SUBSCRIBE).spec
        except ServiceError as error:
            self._membership.detach(connection, subscription)
            connection.reply(Unsubscribed(channel=channel, code=error.code.code))
            return False
        is_pending = subscription.phase is Phase.PENDING
        if is_pending and subscription.start is Start.POSITION and not self._may_resume(identity, channel, spec):
            subscription.since, subscription.start = None, Start.NO_HISTORY
        access = self._presence_access(identity, channel, spec)
        if access is PresenceAccess.LISTED and subscription.presence is PresenceAccess.SEES:
            self._membership.withdraw_presence(connection, subscription)
            if not is_pending:
                connection.reply(PresenceReply(id=None, channel=channel, presence=None))
        return True

    async def _grant(self, connection: Connection, subscription: Subscription) -> None:
        """Shows what the token allows."""
        channel = subscription.channel
        identity = connection.session.identity_in(channel.name)
        if subscription.phase is Phase.PENDING:
            await self._membership.record_position(subscription)  # `_restrict` may have removed the requested position
        sees = self._gate.allows(identity, channel.name, Right.PRESENCE)
        if sees and subscription.presence is PresenceAccess.LISTED:
            granted = await self._membership.grant_presence(
                connection, subscription, partial(self._presence.view, channel)
            )
            if granted is not None:
                view, after = granted
                connection.reply(PresenceReply(id=None, channel=channel.name, presence=view))
                self._send(connection, after)
        if subscription.presence is not PresenceAccess.NONE and not identity.is_anonymous:
            await self._presence.replace_token(channel, identity.user, connection.id, identity.info)

    async def renew(self, connection: Connection, channel: str, grant: Identity) -> None:
        """Replaces the token of a subscription, as `reauthorise` does for that of the connection.

        Raises ServiceError, after which the old token stays: NOT_SUBSCRIBED, INVALID_MESSAGE (the subscription has no token of
        its own), FORBIDDEN. After BROKER_UNAVAILABLE, the new token is in place.
        """
        session = connection.session
        subscription = session.subscription(channel)
        if not isinstance(subscription, ExtendedSubscription) or subscription.grant is None:
            raise ServiceError(
                ErrorCode.INVALID_MESSAGE, f"the subscription to {channel} has no token of its own", path="$.channel"
            )
        self._gate.authorise(session.identity.with_grants(grant), channel, Right.SUBSCRIBE)
        subscription.grant = grant
        self._watch(connection, subscription, grant)
        self._restrict(connection, subscription)
        await self._grant(connection, subscription)

    def _watch(self, connection: Connection, subscription: Subscription, grant: Identity) -> None:
        channel = subscription.channel.name
        self._grants.watch(
            subscription,
            grant,
            notify=lambda ttl: connection.reply(Expiring(seconds=ttl, channel=channel)),
            end=lambda: self._end(connection, subscription),
        )

    def _end(self, connection: Connection, subscription: Subscription) -> None:
        """Ends a subscription whose own token gives no right any more, or which the backend refuses now."""
        channel = subscription.channel.name
        self._membership.detach(connection, subscription)
        connection.reply(Unsubscribed(channel=channel, code=ErrorCode.FORBIDDEN.code))
        waiting = self.start_leaving(connection, channel)
        if waiting is not None:
            self._tasks.spawn("subscription end", _finish(waiting))

    def _send(self, connection: Connection, frames: list[Frame]) -> None:
        if not connection.send(frames):
            connection.close(CloseCode.SLOW_CONSUMER, "too slow for a durable event")

    async def leave(self, connection: Connection, channel: str) -> None:
        """Unsubscribes from a channel. Does nothing without a subscription."""
        waiting = self.start_leaving(connection, channel)
        if waiting is not None:
            await waiting

    def start_leaving(self, connection: Connection, channel: str) -> Awaitable[None] | None:
        """Does the same as `leave`. Returns what has to be waited for; None if nothing is left to do."""
        subscription = connection.session.remove(channel)
        return None if subscription is None else self._leave(connection, subscription)

    def _leave(self, connection: Connection, subscription: Subscription) -> Awaitable[None] | None:
        if subscription.grant is not None:
            self._grants.discard(subscription)
        if self._rechecks.watched:
            self._rechecks.discard(subscription)
        waiting = self._membership.leave(connection, subscription)
        if waiting is not None:
            return self._leave_presence_after(waiting, connection, subscription)
        self._leave_presence(connection, subscription)
        return None

    async def _leave_presence_after(
        self, waiting: Awaitable[None], connection: Connection, subscription: Subscription
    ) -> None:
        await waiting
        self._leave_presence(connection, subscription)

    def _leave_presence(self, connection: Connection, subscription: Subscription) -> None:
        identity = connection.session.identity
        if not identity.is_anonymous and subscription.presence is not PresenceAccess.NONE:
            presence = self._presence
            leave = presence.leave
            lapses = connection.transport.may_continue and (
                connection.closing is None or connection.closing[0] is CloseCode.RESTART
            )
            if lapses:
                leave = presence.lapse
            leave(subscription.channel, identity.user, connection.id)
            webhook = self._webhook_of(subscription)
            if self._facts is not None and webhook is not None:
                tell = self._facts.user_lapses if lapses else self._facts.user_left
                tell(subscription.channel, webhook, identity.user, connection.id)

    def _webhook_of(self, subscription: Subscription) -> ChannelWebhook | None:
        return None if self._facts is None else self._gate.channel_webhook_of(subscription.channel.name)


async def _finish(waiting: Awaitable[None]) -> None:
    await waiting
