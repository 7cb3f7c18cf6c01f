"""Requests to all nodes. They are events of the broker, so they survive the same faults as other events.

result = await requests.send(Disconnect(tenant="acme", user="ann", reason="banned"))
result.counts, result.nodes, result.is_complete

A command is a durable event. Once the broker has accepted it, every node runs it, unless the stream no longer holds it when a
disconnected node returns. A query is an ephemeral event for the nodes that are connected now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import structlog
from msgspec import structs

from service.core.broker import Broker, EventSink
from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.event import Delivery, Event, Publication
from service.core.quota import node_number
from service.errors import ServiceError
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.messages import (
    COMMAND_RETENTION,
    REQUESTS,
    Request,
    Response,
    SessionMoved,
    decode_request,
    decode_response,
    decode_session_moved,
    encode,
    inbox_channel,
)
from service.realtime.cluster.node_actions import NodeActions
from service.realtime.cluster.session_endings import SessionEndings
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import ChannelFollower

RESPONSE_TIMEOUT = 1.0
"""Seconds to wait for the responses of the other nodes."""

_log = structlog.get_logger("cluster")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The responses of all nodes, added up."""

    counts: list[int]
    nodes: int
    """The number of nodes that have responded."""
    is_complete: bool
    """True if every node in the membership has responded."""


class PendingRequest:
    """A sent request, with the responses received so far."""

    def __init__(self, expected: Set[str], response_size: int) -> None:
        self.id = new_id()
        self._expected = expected
        self._response_size = response_size
        self._responses: dict[str, list[int]] = {}
        self._completed = asyncio.Event()

    def record(self, response: Response) -> None:
        """Records a node's response. Only the first response of each node counts."""
        if len(response.counts) == self._response_size:
            self._responses.setdefault(response.node, response.counts)
        if self._is_complete:
            self._completed.set()

    @property
    def _is_complete(self) -> bool:
        return self._responses.keys() >= self._expected

    def aggregate(self) -> Aggregate:
        """Adds up the responses so far."""
        counts = [sum(column) for column in zip([0] * self._response_size, *self._responses.values(), strict=True)]
        return Aggregate(counts, len(self._responses), self._is_complete)

    async def wait(self, timeout: float) -> Aggregate:  # noqa: ASYNC109  # a missing response is no error
        """Adds up the responses when all have arrived, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._completed.wait()
        except TimeoutError:
            pass  # `is_complete` is False
        return self.aggregate()


class PendingRequests:
    """The requests that wait for responses."""

    def __init__(self) -> None:
        self._pending: dict[str, PendingRequest] = {}

    @contextmanager
    def open(self, expected: Set[str], response_size: int = 1) -> Iterator[PendingRequest]:
        """Accepts responses to a new request until the `with` block ends. Later ones are ignored."""
        pending = PendingRequest(expected, response_size)
        self._pending[pending.id] = pending
        try:
            yield pending
        finally:
            del self._pending[pending.id]

    def record(self, response: Response) -> None:
        """Records a response, if its request still waits for it."""
        pending = self._pending.get(response.request)
        if pending is not None:
            pending.record(response)


class ClusterRequests:
    """Sends requests to all nodes, and runs those that it receives on this node."""

    def __init__(
        self,
        node_id: str,
        membership: Membership,
        actions: NodeActions,
        endings: SessionEndings,
        broker: Broker,
        subscribe_internally: Callable[[ChannelKey, EventSink], None],
        runtime: Runtime,
    ) -> None:
        self._node_id = node_id
        self._membership = membership
        self._actions = actions
        self._endings = endings
        self._broker = broker
        self._runtime = runtime
        self._pending = PendingRequests()
        self._inbox = inbox_channel(node_id)
        self.follower = ChannelFollower(
            REQUESTS, broker, runtime, self._receive, max_events=COMMAND_RETENTION.entries, on_past=self._record_past
        )
        self._response_failed = runtime.outages.limited(_log, "response_failed", runtime.clock.monotonic)
        subscribe_internally(REQUESTS, self.follower)
        subscribe_internally(self._inbox, _Inbox(self._pending, actions))

    async def start(self) -> None:
        """Subscribes to responses and requests. Raises ServiceError."""
        await self._broker.subscribe(self._inbox)
        await self.follower.start()

    async def send(self, request: Request) -> Aggregate:
        """Runs a request on all nodes, this one included.

        Raises ServiceError if the broker does not accept it. Even then, nodes may run a command; it is safe to send it again.
        """
        request = structs.replace(request, requester=self._node_id)
        nodes = {self._node_id, *self._membership.states()}
        with self._pending.open(nodes, request.response_size) as pending:
            if request.is_command:
                await self._publish(REQUESTS, "control.command", pending.id, request, Delivery.DURABLE)
            else:
                counts = await request.run(self._actions)  # does not wait for the broker
                pending.record(Response(request=pending.id, node=self._node_id, counts=counts))
                if len(nodes) == 1 or not counts:
                    return Aggregate(counts, nodes=1, is_complete=True)
                await self._publish(REQUESTS, "control.question", pending.id, request)
            return await pending.wait(RESPONSE_TIMEOUT)

    def report_moved(self, session: str, holder: int) -> None:
        """Tells the node with this number that this node has taken a session from it. Does not wait.

        If the message is lost, that node finds out when it renews the session's hold.
        """
        for node in self._membership.states():
            if node_number(node) == holder:
                self._runtime.tasks.spawn("session move", self._report_moved(session, node))

    async def _report_moved(self, session: str, node: str) -> None:
        try:
            await self._publish(inbox_channel(node), "control.moved", new_id(), SessionMoved(session=session))
        except ServiceError as error:
            self._response_failed(code=error.code.code)

    def _record_past(self, events: Sequence[Event]) -> None:
        """Records the endings of commands from before this node's start."""
        if len(events) >= COMMAND_RETENTION.entries:  # the stream may have lost older ones
            self._endings.forget_before(events[0].at / 1000)
        for event in events:
            with suppress(ValueError):  # from a version with other commands
                self._endings.record(decode_request(event.data).endings, event.at / 1000)

    def _receive(self, event: Event) -> None:
        request = decode_request(event.data)
        self._endings.record(request.endings, event.at / 1000)
        if request.requester == self._node_id and not request.is_command:
            return  # `send` has run it
        # Requests keep their order: tasks start in the order of `spawn`, and actions change connections before they await.
        self._runtime.tasks.spawn("cluster request", self._respond(event.id, request))

    async def _respond(self, id: str, request: Request) -> None:
        if request.is_command:
            kind = str(request.__struct_config__.tag)
            self._runtime.metrics.cluster.control_commands.labels(kind=kind).inc()
        response = Response(request=id, node=self._node_id, counts=await request.run(self._actions))
        if request.requester == self._node_id:
            self._pending.record(response)
            return
        try:
            await self._publish(inbox_channel(request.requester), "control.answer", new_id(), response)
        except ServiceError as error:  # the requester's result is incomplete
            self._response_failed(code=error.code.code)

    async def _publish(
        self,
        channel: ChannelKey,
        type: str,
        id: str,
        message: Request | Response | SessionMoved,
        delivery: Delivery = Delivery.EPHEMERAL,
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
                retention=COMMAND_RETENTION if delivery is Delivery.DURABLE else None,
            )
        )


class _Inbox:
    """Receives what other nodes send to this node alone. A lost response is not sent again: the result is incomplete."""

    def __init__(self, pending: PendingRequests, actions: NodeActions) -> None:
        self._pending = pending
        self._actions = actions

    def deliver(self, event: Event) -> None:
        """Records a response, or releases a session that has moved."""
        try:
            if event.type == "control.moved":
                self._actions.release_session(decode_session_moved(event.data).session)
                return
            self._pending.record(decode_response(event.data))
        except ValueError:  # from a version with another form of response
            _log.warning("response_not_understood", event_id=event.id)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Does nothing: a lost response only makes the result incomplete."""
