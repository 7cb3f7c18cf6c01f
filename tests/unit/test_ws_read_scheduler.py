"""ReadScheduler: how much of a flood is read per loop iteration, and what is read after a close frame."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from service.core.limits import Limits, Rate
from service.protocol.framing import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from service.realtime.bounds import Bounds
from service.telemetry.metrics import Metrics
from service.web.ws.read_scheduler import MAX_FRAMES_PER_READ, READ_BUDGET, ReadScheduler
from service.web.ws.websocket import MAX_LATE_BYTES
from tests.support.clock import FakeClock
from tests.support.raw import frame as sent
from tests.unit.test_ws_websocket import Stage

MANY = 40_000
EMPTY = sent(TEXT)


def hits(stage: Stage, limit: str) -> float:
    return stage.metrics.limits.limit_hits.labels(limit=limit).value


async def test_read_of_many_frames_is_spread_over_iterations() -> None:
    stage = Stage()
    stage.hear(EMPTY * 100)
    assert len(stage.handler.told) == MAX_FRAMES_PER_READ
    assert stage.wire.did[-1] == "pause", "nothing more is read from the kernel until these are done"
    taken = [len(stage.handler.told)]
    while taken[-1] < 100:
        await asyncio.sleep(0)
        taken.append(len(stage.handler.told))
    assert max(after - before for before, after in pairwise(taken)) == MAX_FRAMES_PER_READ
    assert stage.wire.did[-1] == "resume"
    assert stage.budget.used == 0


async def test_frames_in_the_queue_are_counted_on_the_account() -> None:
    stage = Stage()
    stage.hear(EMPTY * 100)
    assert (100 - MAX_FRAMES_PER_READ) * len(EMPTY) <= stage.budget.used < 1_000


async def test_connection_behind_a_queue_reads_one_frame_then_waits() -> None:
    first = Stage()
    second = Stage(node=first)
    first.hear(EMPTY * 100)
    second.hear(EMPTY * 100)
    assert len(second.handler.told) == 1
    second.hear()
    await asyncio.sleep(0)
    assert (len(first.handler.told), len(second.handler.told)) == (MAX_FRAMES_PER_READ + 1, 2)


async def test_reads_of_one_iteration_share_a_time_budget() -> None:
    clock = FakeClock()
    scheduler = ReadScheduler(clock, Metrics(), 10.0)
    read: list[int] = []

    class Slow:
        def __init__(self, number: int) -> None:
            self.number = number

        def read_next_frames(self) -> None:
            read.append(self.number)
            clock.advance(READ_BUDGET * 0.6)

        def message_timed_out(self) -> None: ...

    for number in range(5):
        scheduler.schedule(Slow(number))
    iterations = []
    while len(read) < 5:
        await asyncio.sleep(0)
        iterations.append(len(read))
    assert [count for count in iterations if count] == [2, 4, 5]
    assert read == [0, 1, 2, 3, 4], "in their order"


async def test_read_that_raises_delays_no_other_connection() -> None:
    scheduler = ReadScheduler(FakeClock(), Metrics(), 10.0)
    read = asyncio.Event()

    class Broken:
        def read_next_frames(self) -> None:
            raise RuntimeError("a bug")

        def message_timed_out(self) -> None: ...

    class Whole(Broken):
        def read_next_frames(self) -> None:
            read.set()

    scheduler.schedule(Broken())
    scheduler.schedule(Whole())
    await asyncio.wait_for(read.wait(), 1.0)


@pytest.mark.parametrize("held", [True, False])
async def test_frames_received_while_paused_are_read_after_resume(held: bool) -> None:
    stage = Stage()
    if held:
        stage.socket.pause_reading()
    stage.hear(EMPTY * 10 + EMPTY[:2])
    assert len(stage.handler.told) == (1 if held else 10)
    stage.socket.resume_reading()
    await asyncio.sleep(0)
    assert len(stage.handler.told) == 10
    assert stage.wire.did[-1:] == (["resume"] if held else [])


# --- floods -----------------------------------------------------------------------------------------------------------


async def until_over(stage: Stage) -> int:
    """Runs the queue until the transport ends; returns the iterations that took."""
    for turns in range(MANY):
        if "abort" in stage.wire.did or "eof" in stage.wire.did:
            return turns
        await asyncio.sleep(0)
    raise AssertionError("the flood goes on")


@pytest.mark.parametrize(
    "flood",
    [
        sent(PING) * MANY,
        sent(PONG, b"x") * MANY,
        sent(TEXT, fin=False) + sent(CONTINUATION, fin=False) * MANY,
        (sent(TEXT, fin=False) + sent(CONTINUATION) * 1) * MANY,
        (sent(TEXT, b"x", fin=False) + sent(PING) + sent(CONTINUATION, b"x")) * MANY,
    ],
    ids=["pings", "pongs", "empty continuations", "messages of two fragments", "pings between fragments"],
)
async def test_flood_of_frames_without_messages_closes_the_connection(flood: bytes) -> None:
    stage = Stage(Bounds(limits=Limits(connection_rate=Rate(per_second=0.001, burst=100))))
    stage.hear(flood)
    assert await until_over(stage) < 2 * MANY / MAX_FRAMES_PER_READ
    assert len(stage.handler.told) < 1700, "a burst of messages at most"
    assert stage.handler.told[-1] == "(lost)"


async def test_message_in_a_few_small_fragments_is_accepted() -> None:
    stage = Stage()
    for _ in range(50):
        stage.hear(sent(TEXT, b"a", fin=False) + sent(CONTINUATION, b"b"))
    assert stage.handler.told == ["ab"] * 50


# --- after the close frame --------------------------------------------------------------------------------------------


async def test_flood_after_the_close_frame_is_cut() -> None:
    """Once the reader parsed every frame of 256 kB for as long as the peer went on."""
    stage = Stage()
    stage.socket.close(4400, "bad")
    for _ in range(MAX_LATE_BYTES // len(EMPTY)):
        stage.hear(EMPTY)
    assert "abort" not in stage.wire.did
    stage.hear(EMPTY * MANY)
    assert "abort" in stage.wire.did
    assert hits(stage, "late_bytes") == 1
    assert not stage.handler.told


async def test_frames_queued_at_the_close_count_as_late() -> None:
    stage = Stage()
    stage.hear(EMPTY * MANY)
    stage.socket.close(4429, "too much")
    await until_over(stage)
    assert len(stage.handler.told) == MAX_FRAMES_PER_READ
    assert stage.wire.did[-1] == "abort"


async def test_frame_in_progress_at_the_close_is_read_to_its_end() -> None:
    """A client in the middle of a large message must still learn why it is closed."""
    stage = Stage(Bounds(limits=Limits(message_bytes=1 << 16)))
    whole = sent(BINARY, b"x" * 60_000)
    stage.hear(whole[:1000])
    stage.socket.close(1012, "restart")
    for start in range(1000, len(whole), 5000):
        stage.hear(whole[start : start + 5000])
    stage.hear(sent(CLOSE, b"\x03\xf4"))
    assert "abort" not in stage.wire.did
    assert "close" in stage.wire.did
    stage.socket.connection_lost(None)
    assert stage.budget.used == 0


@pytest.mark.parametrize("late", [EMPTY * MANY, b"\0" * 300_000, sent(CLOSE, b"\x03\xe8") * 10_000])
async def test_peer_that_sends_after_a_violation_is_cut_soon(late: bytes) -> None:
    stage = Stage()
    stage.hear(sent(TEXT, b"unmasked", masked=False))
    stage.hear(late)
    assert stage.wire.did[-1] == "abort"
