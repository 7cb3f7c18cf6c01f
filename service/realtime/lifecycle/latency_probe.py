"""The latency probe: how long an event takes from its publish, through the broker, to a client and back.

The client is the node's own, on a connection to itself: it is in no roster and under no cap, and what it is sent is counted in
metrics that nobody reads. All else is as for everybody: broker, relay, room, turn, frame, connection, socket.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Protocol

import structlog

from service.contract.model import ChannelSpec
from service.core.access import SubscribeRule
from service.core.backoff import Backoff
from service.core.broker import Broker
from service.core.channel import ChannelKey, ChannelPattern
from service.core.clock import Timer, milliseconds
from service.core.descriptors import EXHAUSTED, is_exhaustion
from service.core.event import Delivery, Event, Publication
from service.core.identity import anonymous
from service.core.limits import Probing
from service.core.session import Session, Subscription
from service.errors import ServiceError
from service.protocol.close import CloseCode
from service.protocol.codec import message_id, split
from service.realtime.cluster.messages import INTERNAL_TENANT, probe_channel
from service.realtime.connections.connection import Connection
from service.realtime.connections.context import ConnectionContext, RoomContext
from service.realtime.connections.frame import event_frame
from service.realtime.connections.transport import MessageHandler, Transport
from service.realtime.delivery.room import Room
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime
from service.telemetry.metrics import Metrics

RECONNECT = 1.0
MAX_RECONNECT = 60.0
"""Seconds before a connection that could not be made is tried again, unless the interval is longer: at first, and at most."""

_SPEC = ChannelSpec(ChannelPattern("probe"), SubscribeRule.GRANT, {})
"""Nobody is asked for the grant: no client can name the tenant."""

_log = structlog.get_logger("probe")


class Loopback(Protocol):
    """A connection of this process to itself, whose far end is a client that sends back every message."""

    @property
    def transport(self) -> Transport:
        """The near end."""

    def cut(self) -> None:
        """Ends both ends at once; harmless when they have ended."""


Connect = Callable[[MessageHandler, Metrics], Awaitable[Loopback]]
"""Makes one, counting in these metrics. Raises OSError."""


class LatencyProbe:
    """Measures again and again, one event at a time, from `start` to `close`, also while the node drains.

    It is the relay's tap on its channel. One measurement ends, well or not, before the next begins.
    """

    def __init__(
        self,
        node: str,
        times: Probing,
        broker: Broker,
        connect: Connect,
        room_context: RoomContext,
        connection_context: ConnectionContext,
        runtime: Runtime,
    ) -> None:
        """`node`: its id. The contexts are the node's."""
        self.channel = probe_channel(node)
        self._times = times
        self._broker = broker
        self._connect = connect
        self._runtime = runtime
        unread = Metrics()  # the probe counts in no metric of clients
        self._connection_context = replace(connection_context, metrics=unread, on_close=self._closing)
        self._room = Room(self.channel, _SPEC, replace(room_context, metrics=unread))
        self._backoff = Backoff(RECONNECT, MAX_RECONNECT)
        self._line: _Line | None = None
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_subscribed = False
        self._outage = runtime.outages.log(
            _log, "the probe failed", "the probe succeeds again", runtime.clock.monotonic
        )
        self._faulted = runtime.outages.limited(_log, "probe_fault", runtime.clock.monotonic, level="error")
        self._is_closed = False

    async def start(self) -> None:
        """Begins, unless the interval is 0. A probe that fails keeps no node from its start: the next measurement tries again."""
        if not self._times.interval:
            return
        try:
            await self._subscribe()
            # So that a node that serves has all the descriptors that it will have without clients.
            await self._connected()
        except _Unsubscribed as error:
            self._failed("subscribe", str(error))
        except OSError as error:
            self._failed("connection", str(error))
        except Exception as error:
            self._fault(error)
        self._runtime.metrics.probe.probe_last_success_timestamp_seconds.set(self._runtime.clock.wall())
        self._wait(random.uniform(0.0, self._times.interval))  # noqa: S311  # spreads load, guards nothing

    def close(self) -> None:
        """Ends; the supervisor waits for what is under way."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            # Python 3.11's tasks keep their cancellation where the garbage collector does not look, and with it all that is here.
            self._task = None
        self._cut()
        self._room.discard()

    # --- the relay's side ---------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """See EventSink."""
        self._room.push(event_frame(event, self._runtime.clock.monotonic()), 0.0)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """See EventSink. What was lost shows as a timeout."""

    # --- one measurement ----------------------------------------------------------------------------------------------

    def _wait(self, seconds: float) -> None:
        if not self._is_closed:
            self._timer = self._runtime.clock.call_later(seconds, self._begin)

    def _begin(self) -> None:
        self._task = self._runtime.tasks.spawn("probe", self._measure())

    async def _measure(self) -> None:
        began = self._runtime.clock.monotonic()
        wait = self._times.interval
        try:
            async with asyncio.timeout(self._times.timeout):
                await self._subscribe()
                line = await self._connected()
                took = await self._round_trip(line)
        except TimeoutError:
            self._cut()  # it may be at fault; and what is late comes over no connection of a later measurement's
            self._failed("timeout", f"no echo within {self._times.timeout:g} s")
        except _Unsubscribed as error:
            self._failed("subscribe", str(error))
        except ServiceError as error:
            self._failed("publish", error.message)
        except OSError as error:
            self._cut()
            wait = max(wait, self._backoff.next())
            self._failed("connection", EXHAUSTED if is_exhaustion(error) else str(error))
        except Exception as error:
            self._cut()
            self._fault(error)
        else:
            self._succeeded(took)
        finally:
            self._wait(max(0.0, began + wait - self._runtime.clock.monotonic()))

    async def _subscribe(self) -> None:
        """Has the broker deliver the channel, once. Raises _Unsubscribed."""
        if not self._is_subscribed:
            try:
                await self._broker.subscribe(self.channel)
            except ServiceError as error:
                raise _Unsubscribed(error.message) from error
            self._is_subscribed = True

    async def _round_trip(self, line: _Line) -> float:
        id = new_id()
        echo = line.expect(id)
        published = self._runtime.clock.monotonic()
        await self._broker.publish(
            Publication(
                channel=self.channel,
                type="node.probe",
                id=id,
                delivery=Delivery.EPHEMERAL,
                data=b"{}",
                sender=None,
                at=milliseconds(self._runtime.clock),
            )
        )
        came = await echo
        if came is None:
            raise ConnectionError("the loopback connection has ended")
        return max(0.0, came - published)

    def _succeeded(self, took: float) -> None:
        self._backoff.reset()
        self._runtime.metrics.probe.probe_seconds.observe(took)
        self._runtime.metrics.probe.probe_last_success_timestamp_seconds.set(self._runtime.clock.wall())
        self._outage.recovered()

    def _failed(self, reason: str, message: str) -> None:
        self._runtime.metrics.probe.probe_failures.labels(reason).inc()
        self._outage.failed(reason=reason, detail=message)

    def _fault(self, error: Exception) -> None:
        """Of this code: of no concern to anybody but who reads its traceback."""
        self._faulted(exc_info=error)
        self._failed("fault", type(error).__name__)

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _connected(self) -> _Line:
        if self._line is None or self._line.is_over:
            self._cut()
            line = _Line(self._runtime.clock.monotonic)
            await line.open(self._connect, self._room, self._connection_context)
            self._line = line
        return self._line

    def _closing(self, connection: Connection, code: CloseCode, reason: str) -> None:
        self._room.detach(connection)

    def _cut(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.leave(self._room)


class _Unsubscribed(Exception):  # noqa: N818  # a state of the probe's channel, told as such
    """The broker does not deliver the probe's channel."""


class _Line:
    """One loopback connection, and its near end's ear."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loopback: Loopback | None = None
        self._connection: Connection | None = None
        self._id = ""
        self._echo: asyncio.Future[float | None] | None = None
        self._is_lost = False

    @property
    def is_over(self) -> bool:
        """Whether it is of no more use."""
        return self._is_lost or self._connection is None or self._connection.is_closing

    async def open(self, connect: Connect, room: Room, context: ConnectionContext) -> None:
        """Connects, and becomes a member of the room. Raises OSError."""
        self._loopback = await connect(self, context.metrics)
        session = Session(anonymous(INTERNAL_TENANT), max_subscriptions=1)
        self._connection = Connection(new_id(), self._loopback.transport, session, _Nowhere(), context)
        subscription = Subscription(room.key, None)
        room.add_member(self._connection, subscription)
        room.make_live(self._connection, subscription)

    def leave(self, room: Room) -> None:
        """Ends."""
        if self._connection is not None:
            room.remove(self._connection)
        if self._loopback is not None:
            self._loopback.cut()

    def expect(self, id: str) -> asyncio.Future[float | None]:
        """When the event with this id has come back; None if the connection ends before."""
        self._id, self._echo = id, asyncio.get_running_loop().create_future()
        return self._echo

    def message_received(self, message: str | bytes) -> None:
        """See MessageHandler."""
        echo = self._echo
        if echo is not None and not echo.done() and self._id in map(message_id, split(message)):
            echo.set_result(self._now())

    def pause_writing(self) -> None:
        """See MessageHandler."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """See MessageHandler."""
        if self._connection is not None:
            self._connection.resume_writing()

    def eof_received(self) -> bool:
        """See MessageHandler."""
        return False

    def connection_lost(self) -> None:
        """See MessageHandler."""
        self._is_lost = True
        if self._connection is not None:
            self._connection.connection_lost()
        if self._echo is not None and not self._echo.done():
            self._echo.set_result(None)


class _Nowhere:
    """The seat of a connection that takes none."""

    network = ""

    def release(self) -> None:
        """See Seat."""
