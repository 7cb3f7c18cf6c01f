"""What nodes ask of each other: it goes through the broker, so it takes the same way, and survives the same faults, as events.

A command is a durable event: once the broker has accepted it, it reaches every node that has not been away for longer than
the stream goes back. A question is an ephemeral one, for the nodes that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import structlog

from service.core.broker import Broker, EventSink, Snapshot
from service.core.channel import ChannelKey
from service.core.clock import Timer, milliseconds
from service.core.event import Delivery, Event, Publication, Retention
from service.errors import ServiceError
from service.protocol.close import CloseCode
from service.realtime.cluster.membership import Aggregate, ClusterRequests, Membership
from service.realtime.cluster.messages import (
    COMMANDS,
    CONTROL,
    HEARTBEAT_INTERVAL,
    NODE_STATE,
    NODES,
    Answer,
    Close,
    Command,
    CountSubscribers,
    Disconnect,
    NodeState,
    Request,
    Unsubscribe,
    decode_answer,
    decode_request,
    encode,
    inbox,
)
from service.realtime.cluster.node_actions import NodeActions
from service.realtime.cluster.revocations import Revocations
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import ChannelFollower
from service.telemetry.process import version

ANSWER_TIMEOUT = 1.0
"""Seconds to wait for the other nodes' answers."""
MARKS = 200
"""Channels that the broker is asked for together."""

_log = structlog.get_logger("control")


class NodeStatus(Protocol):
    """What a node reports of itself."""

    @property
    def connections(self) -> int:
        """The number of its connections."""

    @property
    def is_accepting(self) -> bool:
        """True if it accepts new connections."""

    @property
    def is_draining(self) -> bool:
        """True while its connections are being moved to other nodes."""


class Control:
    """This node's part in what all nodes do together."""

    def __init__(
        self,
        me: str,
        peers: Membership,
        actions: NodeActions,
        status: NodeStatus,
        revocations: Revocations,
        broker: Broker,
        tap: Callable[[ChannelKey, EventSink], None],
        runtime: Runtime,
    ) -> None:
        """`tap`: has a channel delivered to a sink."""
        self.me = me
        self._actions = actions
        self._status = status
        self._revocations = revocations
        self._broker = broker
        self._runtime = runtime
        self._started = runtime.clock.wall()
        self._peers = peers
        self._inquiries = ClusterRequests()
        self._requests = ChannelFollower(CONTROL, broker, runtime, self._take, max_events=COMMANDS.entries)
        self._nodes = ChannelFollower(NODES, broker, runtime, self._peers.take, on_new_epoch=self._tell_again)
        self._inbox = _Inbox(inbox(self.me), self._inquiries)
        self._timer: Timer | None = None
        self._telling = False
        self._has_changed = False
        """Whether there is something to tell that the word on its way may not say."""
        self._outage = runtime.outages.log(
            _log,
            "the other nodes cannot be told of this one",
            "the other nodes are told of this one again",
            runtime.clock.monotonic,
        )
        self._answer_not_sent = runtime.outages.limited(_log, "answer not sent", runtime.clock.monotonic)
        runtime.metrics.cluster.nodes.set_function(lambda: 1 + len(self._peers.alive()))
        for sink in (self._requests, self._nodes, self._inbox):
            tap(sink.channel, sink)

    @property
    def others(self) -> Mapping[str, NodeState]:
        """The other nodes that are alive, by id, and what they have told last."""
        return self._peers.alive()

    async def start(self) -> None:
        """Reads what this node must know before it lets anybody in, and tells the others of it. Raises ServiceError."""
        await self._broker.subscribe(self._inbox.channel)
        await self._requests.start()
        await self._nodes.start()
        await self._tell()
        self._timer = self._runtime.clock.call_later(HEARTBEAT_INTERVAL, self._beat)

    async def close(self) -> None:
        """Tells the others that this node is gone."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        try:
            await self._tell(gone=True)
        except ServiceError as error:  # they will notice
            _log.warning("leaving was not told", code=error.code.code)

    # --- to all nodes -------------------------------------------------------------------------------------------------

    async def disconnect(self, tenant: str, user: str, reason: str) -> Aggregate:
        """Closes all of the user's connections with 4403. ServiceError: it may still be done; ask again."""
        return await self._command(Disconnect(asker=self.me, tenant=tenant, user=user, reason=reason))

    async def unsubscribe(self, tenant: str, user: str, channel: str) -> Aggregate:
        """Ends all of the user's subscriptions to the channel. ServiceError: it may still be done; ask again."""
        return await self._command(Unsubscribe(asker=self.me, tenant=tenant, user=user, channel=channel))

    async def close_connections(self, ids: Sequence[str], code: CloseCode, reason: str) -> Aggregate:
        """Closes these connections, wherever they are. ServiceError: it may still be done; ask again."""
        return await self._command(Close(asker=self.me, connections=list(ids), code=code.name, reason=reason))

    async def subscribers(self, tenant: str, channels: Sequence[str]) -> Aggregate:
        """How many connections have joined each of the channels. Raises ServiceError."""
        question = CountSubscribers(asker=self.me, tenant=tenant, channels=list(channels))
        others = self._peers.alive()
        if not others or not channels:
            return Aggregate(self._count(question), nodes=1, complete=True)
        with self._inquiries.open({self.me, *others}, len(channels)) as inquiry:
            inquiry.take(Answer(request=inquiry.id, node=self.me, counts=self._count(question)))
            await self._publish(CONTROL, "control.question", inquiry.id, question)
            return await inquiry.tally(ANSWER_TIMEOUT)

    async def _command(self, command: Command) -> Aggregate:
        with self._inquiries.open({self.me, *self._peers.alive()}) as inquiry:
            await self._publish(CONTROL, "control.command", inquiry.id, command, Delivery.DURABLE, COMMANDS)
            return await inquiry.tally(ANSWER_TIMEOUT)

    # --- from another node, or this one -------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        request = decode_request(event.data)
        if event.offset is None and request.asker == self.me:
            return  # the answer to an own question does not wait for the broker
        # Tasks begin in the order in which they are spawned, and what concerns connections is done before the first wait.
        self._runtime.tasks.spawn("control request", self._serve(event.id, request))

    async def _serve(self, id: str, request: Command | CountSubscribers) -> None:
        answer = Answer(request=id, node=self.me, counts=await self._act(request))
        if request.asker == self.me:
            self._inquiries.take(answer)
            return
        try:
            await self._publish(inbox(request.asker), "control.answer", new_id(), answer)
        except ServiceError as error:  # who asked says that it does not know
            self._answer_not_sent(code=error.code.code)

    async def _act(self, request: Command | CountSubscribers) -> list[int]:
        if isinstance(request, CountSubscribers):
            return self._count(request)
        self._runtime.metrics.cluster.control_commands.labels(kind=str(request.__struct_config__.tag)).inc()
        if isinstance(request, Disconnect):
            return [await self._actions.disconnect(request.tenant, request.user, request.reason)]
        if isinstance(request, Unsubscribe):
            return [await self._actions.unsubscribe(request.tenant, request.user, request.channel)]
        return [await self._actions.close_connections(request.connections, CloseCode[request.code], request.reason)]

    def _count(self, question: CountSubscribers) -> list[int]:
        return [self._actions.count_subscribers(ChannelKey(question.tenant, name)) for name in question.channels]

    # --- who is there -------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        self._timer = self._runtime.clock.call_later(HEARTBEAT_INTERVAL, self._beat)
        self._revocations.tend()
        self._tell_soon()

    def _tell_again(self, snapshot: Snapshot) -> None:
        """The broker has started anew and may have forgotten who is there."""
        self._tell_soon()

    def tell(self) -> None:
        """Tells the others of this node as it is now, before the next beat would."""
        if self._timer is not None:
            self._has_changed = self._telling
            self._tell_soon()

    def _tell_soon(self) -> None:
        if not self._telling:  # else the broker is slow, and another word would only wait behind this one
            self._telling = True
            self._runtime.tasks.spawn("control beat", self._check_and_tell())

    async def _check_and_tell(self) -> None:
        try:
            followed = (self._requests, *self._revocations.followings)
            for start in range(0, len(followed), MARKS):
                some = followed[start : start + MARKS]
                marks = await self._broker.stream_heads(
                    [following.channel for following in some], [following.delivered for following in some]
                )
                for following, mark in zip(some, marks, strict=True):
                    if mark is not None:
                        following.check_head(mark)
            if self._timer is not None:  # else the last word has been said
                await self._tell()
            self._outage.recovered()
        except ServiceError as error:
            self._outage.failed(code=error.code.code)
        finally:
            self._telling = False
            if self._has_changed:
                self._has_changed = False
                self.tell()

    async def _tell(self, *, gone: bool = False) -> None:
        state = NodeState(
            connections=self._status.connections,
            started=self._started,
            version=version(),
            accepting=self._status.is_accepting,
            draining=self._status.is_draining,
            gone=gone,
        )
        await self._publish(NODES, "node.state", new_id(), state, Delivery.LATEST, NODE_STATE, key=self.me)

    async def _publish(
        self,
        channel: ChannelKey,
        type: str,
        id: str,
        message: Request | Answer | NodeState,
        delivery: Delivery = Delivery.EPHEMERAL,
        retention: Retention | None = None,
        key: str | None = None,
    ) -> None:
        await self._broker.publish(
            Publication(
                channel=channel,
                type=type,
                id=id,
                delivery=delivery,
                data=encode(message),
                sender=None,
                at=milliseconds(self._runtime.clock),
                key=key,
                retention=retention,
            )
        )


class _Inbox:
    """A tap on what other nodes answer. An answer that is lost is not sent again: the asker says that it does not know."""

    def __init__(self, channel: ChannelKey, inquiries: ClusterRequests) -> None:
        self.channel = channel
        self._inquiries = inquiries

    def deliver(self, event: Event) -> None:
        """See EventSink."""
        try:
            self._inquiries.take(decode_answer(event.data))
        except ValueError:  # of a version that says more than this one understands
            _log.warning("answer not understood", event_id=event.id)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """See EventSink."""
