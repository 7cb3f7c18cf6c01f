"""The outbox: what it drops, replaces and refuses, by delivery class; and how frames become batches."""

from __future__ import annotations

import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.core.limits import Compression, OutboxLimits
from service.realtime.connections.byte_budget import ByteBudget
from service.realtime.connections.encoder import MAX_BATCH_BYTES, FrameEncoder, join, split_batches
from service.realtime.connections.frame import Frame, event_frame
from service.realtime.connections.outbox import EVENT_OVERHEAD, Outbox
from service.telemetry.metrics import Metrics
from tests.support.exported import exported


def box(*, messages: int = 4, size: int = 100_000, budget: int = 1_000_000) -> tuple[Outbox, Metrics, ByteBudget]:
    metrics = Metrics()
    limit = ByteBudget(budget)
    return Outbox(OutboxLimits(messages=messages, bytes=size), limit.account("t"), metrics), metrics, limit


def durable(name: str) -> Frame:
    return Frame(name.encode(), "a.b", Delivery.DURABLE)


def ephemeral(name: str) -> Frame:
    return Frame(name.encode(), "a.b", Delivery.EPHEMERAL)


def latest(key: str, value: str) -> Frame:
    return Frame(value.encode(), "a.b", Delivery.LATEST, ("c", "a.b", key))


def contents(outbox: Outbox) -> list[bytes]:
    return [frame.payload for frame in outbox.take(10**9, 10**9)]


def test_full_outbox_drops_the_oldest_ephemeral_event_first() -> None:
    outbox, metrics, _ = box()
    for frame in (ephemeral("e1"), durable("d1"), ephemeral("e2"), durable("d2"), durable("d3"), durable("d4")):
        assert outbox.put(frame)
    assert contents(outbox) == [b"d1", b"d2", b"d3", b"d4"]
    assert metrics.outbox.outbox_dropped.labels(delivery="ephemeral").value == 2


def test_ephemeral_event_above_the_limit_is_dropped() -> None:
    outbox, _, _ = box(messages=1)
    outbox.put(durable("d1"))
    assert outbox.put(ephemeral("e1"))
    assert contents(outbox) == [b"d1"]


def test_durable_event_above_the_limit_is_not_accepted() -> None:
    outbox, _, _ = box(messages=1)
    assert outbox.put(durable("d1"))
    assert not outbox.put(durable("d2"))
    assert contents(outbox) == [b"d1"], "accepted events stay"


def test_latest_event_takes_the_place_of_the_one_it_replaces() -> None:
    outbox, metrics, _ = box()
    for frame in (latest("x", "x1"), durable("d1"), latest("y", "y1"), latest("x", "x2")):
        assert outbox.put(frame)
    assert contents(outbox) == [b"x2", b"d1", b"y1"]
    assert exported(metrics, "outbox_replaced_total") == 1


def test_replacement_above_the_byte_limit_is_not_accepted() -> None:
    outbox, _, _ = box(size=1024)
    assert outbox.put(latest("x", "x"))
    assert not outbox.put(latest("x", "x" * 2000))


def test_reply_above_the_limit_is_accepted() -> None:
    outbox, _, _ = box(messages=1)
    for _ in range(3):
        assert outbox.put(Frame(b"{}", "pong"))
    assert outbox.is_full
    assert len(outbox) == 3


def test_replies_do_not_count_against_the_limits_of_events() -> None:
    outbox, _, _ = box(messages=1, size=1024)
    for _ in range(3):
        outbox.put(Frame(b"x" * 2000, "history"))
    assert outbox.put(durable("d1")), "the peer requested the replies, and may read as fast as it can"
    assert not outbox.put(durable("d2"))
    outbox.clear()
    assert outbox.put(durable("d3"))
    assert not outbox.put(durable("d4")), "cleared replies no longer count"


def test_presence_event_goes_to_the_end_when_it_replaces_another() -> None:
    outbox, _, _ = box()
    for serial, kind in enumerate(("joined", "left", "joined", "left", "joined")):
        event = Event(
            ChannelKey("t", "c"), f"presence.{kind}", str(serial), Delivery.EPHEMERAL, b"{}", "ann", 0, key="ann"
        )
        assert outbox.put(event_frame(event, 0.0))
    assert [json.loads(payload)["type"] for payload in contents(outbox)] == ["presence.left", "presence.joined"]


def test_outboxes_of_a_node_share_its_byte_budget() -> None:
    metrics, budget = Metrics(), ByteBudget(10 + EVENT_OVERHEAD)
    account = budget.account("t")
    first, second = (Outbox(OutboxLimits(), account, metrics) for _ in range(2))
    assert first.put(durable("12345678"))
    assert budget.used == 8 + EVENT_OVERHEAD
    assert not second.put(durable("123"))
    assert second.put(ephemeral("123")), "dropped, not fatal"
    first.clear()
    assert budget.used == 0
    assert second.put(durable("123"))


def test_take_returns_at_least_one_frame_within_the_limits() -> None:
    outbox, _, _ = box(messages=10)
    for name in ("aaaa", "bb", "cc", "dd"):
        outbox.put(durable(name))
    assert [frame.payload for frame in outbox.take(3, 10)] == [b"aaaa"]
    assert [frame.payload for frame in outbox.take(4, 10)] == [b"bb", b"cc"]
    assert [frame.payload for frame in outbox.take(100, 1)] == [b"dd"]
    assert outbox.take(100, 1) == []


def test_outbox_that_is_emptied_keeps_nothing_of_ephemeral_events() -> None:
    outbox, _, _ = box()
    frame, rounds = ephemeral("e"), 10_000
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(rounds):
            outbox.put(frame)
            outbox.take(100, 1)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 8 * rounds, "less than a pointer for each event"


_frames = st.one_of(
    st.builds(durable, st.text("d", min_size=1, max_size=9)),
    st.builds(ephemeral, st.text("e", min_size=1, max_size=9)),
    st.builds(latest, st.sampled_from("xyz"), st.text("l", min_size=1, max_size=9)),
    st.just(None),
)


@given(st.lists(_frames, max_size=60))
def test_bytes_are_counted_exactly_and_no_accepted_durable_event_is_lost(steps: list[Frame | None]) -> None:
    outbox, metrics, budget = box(messages=5, size=1024)
    accepted: list[Frame] = []
    got: list[Frame] = []
    for frame in steps:
        if frame is None:
            got += outbox.take(12, 2)
        elif outbox.put(frame) and frame.delivery is Delivery.DURABLE:
            accepted.append(frame)
    queued_bytes = outbox.bytes
    assert budget.used == queued_bytes + EVENT_OVERHEAD * len(outbox)
    assert metrics.outbox.outbox_messages.value == len(outbox)
    got += outbox.take(10**9, 10**9)
    assert [frame for frame in got if frame.delivery is Delivery.DURABLE] == accepted
    assert (outbox.bytes, budget.used, len(outbox)) == (0, 0, 0)


@pytest.mark.parametrize("count", [1, 2, 250])
def test_split_batches_keeps_all_frames_in_order_within_the_limit(count: int) -> None:
    frames = [durable(f'"{index}"') for index in range(count)]
    parts = split_batches(frames, 100, FrameEncoder(Compression()))
    assert [frame for part in parts for frame in part.frames] == frames
    assert all(len(part.frames) <= 100 for part in parts)
    assert parts[0].payload == (b'"0"' if count == 1 else b"[" + b",".join(f.payload for f in parts[0].frames) + b"]")


def test_split_batches_stays_within_max_batch_bytes() -> None:
    frames = [Frame(b"x" * (MAX_BATCH_BYTES // 2), "a.b", Delivery.DURABLE) for _ in range(3)]
    assert [len(part.frames) for part in split_batches(frames, 100, FrameEncoder(Compression()))] == [2, 1]


def test_join_of_one_payload_returns_it() -> None:
    payload = b"{}"
    assert join([payload]) is payload
