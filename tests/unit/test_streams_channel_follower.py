"""Following a channel over a line that fails: every durable event once and in order, and in the end the newest state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.broker import Snapshot, StreamHead
from service.core.channel import ChannelKey
from service.core.event import Delivery, Event, Publication, Retention
from service.errors import ErrorCode, ServiceError
from service.realtime.runtime import Runtime
from service.realtime.streams.channel_follower import ChannelFollower
from service.telemetry.metrics import Metrics
from tests.support.clock import FakeClock
from tests.support.examples import examples
from tests.support.exported import exported
from tests.support.harness import eventually
from tests.support.shared_broker import Line, SharedBroker

CHANNEL = ChannelKey("", "control")
KEPT = 10


class Follower:
    """Notes what it is given."""

    def __init__(self, line: Line, clock: FakeClock) -> None:
        self.metrics = Metrics()
        self.runtime = Runtime.create(clock, self.metrics)
        self.line = line
        self.durable: list[str] = []
        self.state: dict[str, bytes] = {}
        self.ephemeral: list[str] = []
        self.restarts = 0
        self.following = ChannelFollower(
            CHANNEL, line, self.runtime, self._take, max_events=KEPT, on_new_epoch=self._restarted
        )

    def _take(self, event: Event) -> None:
        if event.data == b"bad":
            raise ValueError("not understood")
        if event.offset is not None:
            self.durable.append(event.id)
        elif event.state_version is not None:
            self.state[event.key or ""] = event.data
        else:
            self.ephemeral.append(event.id)

    def _restarted(self, snapshot: Snapshot) -> None:
        self.restarts += 1

    @property
    def readings(self) -> float:
        """How often it has read."""
        return exported(self.metrics, "control_readings_total")

    @property
    def at_rest(self) -> bool:
        """Whether nothing is being read."""
        return not self.runtime.tasks.running


class World:
    """A bus on which somebody publishes and somebody follows."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.bus = SharedBroker(self.clock)
        self.other = self.bus.line()
        self.follower = Follower(self.bus.line(), self.clock)
        self.line = self.follower.line
        self.serial = 0
        self.published: list[str] = []
        self.values: dict[str, bytes] = {}

    async def publish(self, delivery: Delivery = Delivery.DURABLE, key: str | None = None, data: bytes = b"1") -> str:
        self.serial += 1
        id = f"e{self.serial}"
        retention = None if delivery is Delivery.EPHEMERAL else Retention(KEPT, 600)
        await self.other.publish(Publication(CHANNEL, "t", id, delivery, data, None, 0, key, retention))
        if delivery is Delivery.DURABLE:
            self.published.append(id)
        elif delivery is Delivery.LATEST:
            self.values[key or ""] = data
        return id

    async def lose_everything(self) -> None:
        await self.bus.lose_everything()
        self.values.clear()

    async def settle(self) -> None:
        """Waits until all has been read, moving the time that retries wait for."""
        follower = self.follower

        def done() -> bool:
            self.clock.advance(0.2)
            return follower.at_rest

        await eventually(done)


@asynccontextmanager
async def world(*before: Callable[[World], Any]) -> AsyncIterator[World]:
    made = World()
    await made.bus.start()
    follower = made.follower
    await made.other.start(follower.following)  # it follows no channel: this sink gets nothing
    await follower.line.start(follower.following)
    for step in before:
        await step(made)
    await follower.following.start()
    try:
        yield made
    finally:
        await follower.runtime.tasks.close()
        await made.bus.close()


async def test_published_events_are_handled_in_order() -> None:
    async with world() as made:
        one = await made.publish()
        await made.publish(Delivery.LATEST, "k", b"7")
        two = await made.publish(Delivery.EPHEMERAL)
        follower = made.follower
        assert (follower.durable, follower.state, follower.ephemeral) == ([one], {"k": b"7"}, [two])
        assert follower.readings == 0


async def test_start_handles_the_state_and_skips_the_stream() -> None:
    async with world(lambda made: made.publish(), lambda made: made.publish(Delivery.LATEST, "k", b"7")) as made:
        assert (made.follower.durable, made.follower.state) == ([], {"k": b"7"})
        made.line.mend()
        await made.settle()
        await made.lose_everything()
        await made.settle()
        assert made.follower.durable == []


async def test_missed_events_are_handled_before_newer_ones() -> None:
    async with world() as made:
        made.line.cut()
        await made.publish()
        await made.publish()
        made.line.hear_again()
        await made.publish()
        await made.settle()
        assert made.follower.durable == made.published


async def test_read_retries_until_the_broker_answers() -> None:
    async with world() as made:
        made.line.go_away()
        await made.publish()
        made.follower.following.interrupted()
        for tries in range(1, 6):

            def tried(tries: int = tries) -> bool:
                made.clock.advance(0.2)
                return made.follower.readings > tries

            await eventually(tried)
        assert made.follower.durable == []
        made.line.come_back()
        await made.settle()
        assert made.follower.durable == made.published


async def test_new_epoch_is_read_and_reported() -> None:
    async with world() as made:
        await made.publish()
        await made.publish(Delivery.LATEST, "k", b"6")
        await made.publish(Delivery.LATEST, "k", b"7")
        made.line.cut()
        await made.publish()
        await made.lose_everything()
        await made.publish()
        await made.publish(Delivery.LATEST, "k", b"8")
        made.line.mend()
        await made.settle()
        assert made.follower.durable == [made.published[0], made.published[2]]
        assert made.follower.state == {"k": b"8"}
        assert made.follower.restarts == 1


async def test_events_of_an_older_replica_are_not_handled_again() -> None:
    async with world(lambda made: made.publish()) as made:
        await made.publish()
        await made.publish()
        made.line.cut()
        await made.publish()
        await made.bus.fail_over(lost=2)  # the one that was not delivered here, and the one before it
        made.line.mend()
        await made.settle()
        assert made.follower.durable == made.published[1:3]
        assert made.follower.restarts == 1
        await made.publish()
        made.line.cut()
        await made.publish()
        await made.bus.fail_over()
        made.line.mend()
        await made.settle()
        assert made.follower.durable == [*made.published[1:3], *made.published[4:]]


async def test_only_a_head_that_is_ahead_starts_a_read() -> None:
    async with world() as made:
        await made.publish()
        following = made.follower.following
        (mark,) = await made.other.stream_heads([CHANNEL])
        assert mark is not None
        following.check_head(mark)
        following.check_head(StreamHead(mark.epoch, 0, 0))
        assert made.follower.at_rest
        made.line.cut()
        await made.publish()
        (mark,) = await made.other.stream_heads([CHANNEL])
        assert mark is not None
        following.check_head(mark)
        await made.settle()
        assert made.follower.durable == made.published


async def test_undecodable_event_does_not_stop_the_others() -> None:
    async with world() as made:
        await made.publish(data=b"bad")
        good = await made.publish()
        made.line.cut()
        await made.publish(data=b"bad")
        last = await made.publish()
        made.line.mend()
        await made.settle()
        assert made.follower.durable == [good, last]


async def test_failed_start_raises() -> None:
    made = World()
    made.line.go_away()
    with pytest.raises(ServiceError) as error:
        await made.follower.following.start()
    assert error.value.code is ErrorCode.BROKER_UNAVAILABLE
    assert made.follower.following.epoch == ""


STEPS = st.lists(
    st.sampled_from(
        ["durable", "durable", "latest", "ephemeral", "cut", "hear", "mend", "away", "back", "anew", "turn"]
    ),
    max_size=40,
)


@given(STEPS, st.data())
@settings(max_examples=examples(75), deadline=None)
def test_any_line_fault_leaves_every_command_handled_once_in_order(steps: list[str], data: st.DataObject) -> None:
    asyncio.run(_walk(steps, data))


async def _walk(steps: list[str], data: st.DataObject) -> None:
    async with world() as made:
        line = made.line
        missed, is_anew = 0, False
        for step in steps:
            if step in ("durable", "latest", "ephemeral"):
                key = data.draw(st.sampled_from("ab")) if step == "latest" else None
                await made.publish(Delivery(step), key, str(made.serial).encode())
                missed += step == "durable" and (line.deaf or is_anew)
                if missed >= KEPT - 1:  # what the stream has dropped cannot be read
                    line.come_back()
                    await made.settle()
                    missed, is_anew = 0, False
            elif step == "cut":
                line.cut()
            elif step == "hear":  # a line that does not know that it was down
                line.hear_again()
            elif step == "mend":
                line.mend()
            elif step == "away":
                line.go_away()
            elif step == "back":
                line.come_back()
            elif step == "anew":
                await made.bus.fail_over()
                is_anew = True  # the follower reads the stream of the new epoch later
            else:
                await asyncio.sleep(0)
        line.come_back()
        await made.settle()
        assert made.follower.durable == made.published
        assert made.follower.state == made.values
