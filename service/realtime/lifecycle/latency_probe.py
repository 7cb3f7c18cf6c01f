"""Measures the latency of an event, from its publish through the broker to a client and back.

The client is in this process, on a connection of the process to itself. It is in no registry and under no cap, and its metrics
are not exported. All other parts are those of real clients: broker, relay, room, write scheduler, frame, connection and socket.
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

RECONNECT_INTERVAL = 1.0
MAX_RECONNECT_INTERVAL = 60.0
"""Seconds between two attempts to connect: the first and the longest interval, unless the probe's interval is longer."""

_SPEC = ChannelSpec(ChannelPattern("probe"), SubscribeRule.GRANT, {})
"""No grant is checked: the channel is internal."""

_log = structlog.get_logger("probe")


class Loopback(Protocol):
    """A connection of this process to itself. Its client end echoes every message."""

    @property
    def transport(self) -> Transport:
        """The server end."""

    def cut(self) -> None:
        """Aborts both ends. Does nothing if they have ended."""


Connect = Callable[[MessageHandler, Metrics], Awaitable[Loopback]]
"""Connects this process to itself, with a handler for the server end and the metrics to use. Raises OSError."""


class LatencyProbe:
    """Measures at an interval from `start` to `close`, also while the node drains.

    It is an internal subscriber of its channel. It runs one measurement at a time.
    """

    def __init__(
        self,
        node_id: str,
        probing: Probing,
        broker: Broker,
        connect: Connect,
        room_context: RoomContext,
        connection_context: ConnectionContext,
        runtime: Runtime,
    ) -> None:
        """The contexts are those of the node's other connections."""
        self.channel = probe_channel(node_id)
        self._probing = probing
        self._broker = broker
        self._connect = connect
        self._runtime = runtime
        not_exported = Metrics()
        self._connection_context = replace(connection_context, metrics=not_exported, on_close=self._stop_delivery)
        self._room = Room(self.channel, _SPEC, replace(room_context, metrics=not_exported))
        self._backoff = Backoff(RECONNECT_INTERVAL, MAX_RECONNECT_INTERVAL)
        self._client: _ProbeClient | None = None
        self._timer: Timer | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_subscribed = False
        self._outage = runtime.outages.log(_log, "probe_failed", "probe_recovered", runtime.clock.monotonic)
        self._crashed = runtime.outages.limited(_log, "probe_crashed", runtime.clock.monotonic, level="error")
        self._is_closed = False

    async def start(self) -> None:
        """Starts the measurements, unless the interval is 0. If it cannot connect, the first measurement retries."""
        if not self._probing.interval:
            return
        try:
            await self._subscribe()
            # Connects before the node serves, so that the probe's file descriptors count as open without clients.
            await self._connect_client()
        except _SubscribeError as error:
            self._record_failure("subscribe", str(error))
        except OSError as error:
            self._record_failure("connection", str(error))
        except Exception as error:
            self._record_crash(error)
        self._runtime.metrics.probe.probe_last_success_timestamp_seconds.set(self._runtime.clock.wall())
        self._schedule(random.uniform(0.0, self._probing.interval))  # noqa: S311  # spreads load, guards nothing

    def close(self) -> None:
        """Ends the measurements."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
            # A cancelled task of Python 3.11 keeps a reference that the garbage collector does not see.
            self._task = None
        self._disconnect()
        self._room.discard()

    # --- internal subscriber ------------------------------------------------------------------------------------------

    def deliver(self, event: Event) -> None:
        """Sends the probe's event to its client."""
        self._room.push(event_frame(event, self._runtime.clock.monotonic()), 0.0)

    def interrupted(self, channels: Collection[ChannelKey] | None = None) -> None:
        """Does nothing: a lost event causes a timeout."""

    # --- one measurement ----------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float) -> None:
        if not self._is_closed:
            self._timer = self._runtime.clock.call_later(seconds, self._start_measurement)

    def _start_measurement(self) -> None:
        self._task = self._runtime.tasks.spawn("probe", self._measure())

    async def _measure(self) -> None:
        started = self._runtime.clock.monotonic()
        interval = self._probing.interval
        try:
            async with asyncio.timeout(self._probing.timeout):
                await self._subscribe()
                client = await self._connect_client()
                latency = await self._round_trip(client)
        except TimeoutError:
            self._disconnect()  # the connection may be the cause, and a late event must not reach the next measurement
            self._record_failure("timeout", f"no echo within {self._probing.timeout:g} s")
        except _SubscribeError as error:
            self._record_failure("subscribe", str(error))
        except ServiceError as error:
            self._record_failure("publish", error.message)
        except OSError as error:
            self._disconnect()
            interval = max(interval, self._backoff.next())
            self._record_failure("connection", EXHAUSTED if is_exhaustion(error) else str(error))
        except Exception as error:
            self._disconnect()
            self._record_crash(error)
        else:
            self._record_success(latency)
        finally:
            self._schedule(max(0.0, started + interval - self._runtime.clock.monotonic()))

    async def _subscribe(self) -> None:
        """Subscribes at the broker, once. Raises _SubscribeError."""
        if not self._is_subscribed:
            try:
                await self._broker.subscribe(self.channel)
            except ServiceError as error:
                raise _SubscribeError(error.message) from error
            self._is_subscribed = True

    async def _round_trip(self, client: _ProbeClient) -> float:
        id = new_id()
        echo = client.expect(id)
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
        received = await echo
        if received is None:
            raise ConnectionError("the loopback connection has ended")
        return max(0.0, received - published)

    def _record_success(self, latency: float) -> None:
        self._backoff.reset()
        self._runtime.metrics.probe.probe_seconds.observe(latency)
        self._runtime.metrics.probe.probe_last_success_timestamp_seconds.set(self._runtime.clock.wall())
        self._outage.recovered()

    def _record_failure(self, reason: str, message: str) -> None:
        self._runtime.metrics.probe.probe_failures.labels(reason).inc()
        self._outage.failed(reason=reason, detail=message)

    def _record_crash(self, error: Exception) -> None:
        """Records an unexpected error, which is a fault of this code."""
        self._crashed(exc_info=error)
        self._record_failure("fault", type(error).__name__)

    # --- the connection -----------------------------------------------------------------------------------------------

    async def _connect_client(self) -> _ProbeClient:
        if self._client is None or self._client.is_closed:
            self._disconnect()
            client = _ProbeClient(self._runtime.clock.monotonic)
            await client.open(self._connect, self._room, self._connection_context)
            self._client = client
        return self._client

    def _stop_delivery(self, connection: Connection, code: CloseCode, reason: str) -> None:
        self._room.detach(connection)

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close(self._room)


class _SubscribeError(Exception):
    """The broker does not deliver the probe's channel."""


class _ProbeClient:
    """One loopback connection: a member of the room, and the handler of its echoes."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loopback: Loopback | None = None
        self._connection: Connection | None = None
        self._id = ""
        self._echo: asyncio.Future[float | None] | None = None
        self._is_lost = False

    @property
    def is_closed(self) -> bool:
        """True if the connection can no longer be used."""
        return self._is_lost or self._connection is None or self._connection.is_closing

    async def open(self, connect: Connect, room: Room, context: ConnectionContext) -> None:
        """Connects, and adds the connection to the room. Raises OSError."""
        self._loopback = await connect(self, context.metrics)
        session = Session(anonymous(INTERNAL_TENANT))
        self._connection = Connection(new_id(), self._loopback.transport, session, _NoSlot(), context)
        subscription = Subscription(room.key, None)
        room.add_member(self._connection)
        room.make_live(self._connection, subscription)

    def close(self, room: Room) -> None:
        """Removes the connection from the room, and aborts it."""
        if self._connection is not None:
            room.remove(self._connection)
        if self._loopback is not None:
            self._loopback.cut()

    def expect(self, id: str) -> asyncio.Future[float | None]:
        """Returns a future for the time of this event's echo. It resolves to None if the connection ends first."""
        self._id, self._echo = id, asyncio.get_running_loop().create_future()
        return self._echo

    def message_received(self, message: str | bytes) -> None:
        """Resolves the future if the message is the expected echo."""
        echo = self._echo
        if echo is not None and not echo.done() and self._id in map(message_id, split(message)):
            echo.set_result(self._now())

    def pause_writing(self) -> None:
        """Queues later frames."""
        if self._connection is not None:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Sends the queued frames."""
        if self._connection is not None:
            self._connection.resume_writing()

    def eof_received(self) -> bool:
        """Returns False: messages are handled at once."""
        return False

    def connection_lost(self) -> None:
        """Ends the measurement in progress."""
        self._is_lost = True
        if self._connection is not None:
            self._connection.connection_lost()
        if self._echo is not None and not self._echo.done():
            self._echo.set_result(None)


class _NoSlot:
    """The slot of a connection without caps."""

    network = ""

    def release(self) -> None:
        """Does nothing."""
