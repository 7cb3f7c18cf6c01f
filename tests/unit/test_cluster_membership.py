"""Who is there, and what they answer."""

from __future__ import annotations

import pytest

from service.core.event import Delivery, Event
from service.realtime.cluster.membership import ClusterRequests, Membership
from service.realtime.cluster.messages import NODE_STATE, NODES, Answer, NodeState, encode
from tests.support.clock import FakeClock

HOUR = 3600.0
"""Nothing here may wait so long: the test would not end."""


def told(node: str, connections: int = 0, *, gone: bool = False) -> Event:
    state = NodeState(connections=connections, started=1.0, version="1", gone=gone)
    return Event(NODES, "node.state", "i", Delivery.LATEST, encode(state), None, 0, state_version=1, key=node)


def test_a_node_is_alive_until_it_has_been_silent_for_too_long() -> None:
    clock = FakeClock()
    peers = Membership("me", clock)
    peers.take(told("a", 1))
    clock.advance(NODE_STATE.ttl - 1)
    peers.take(told("b", 2))
    assert {node: state.connections for node, state in peers.alive().items()} == {"a": 1, "b": 2}
    clock.advance(1)
    assert set(peers.alive()) == {"b"}
    peers.take(told("a", 3))
    assert {node: state.connections for node, state in peers.alive().items()} == {"a": 3, "b": 2}


def test_a_node_that_says_goodbye_is_gone_at_once() -> None:
    peers = Membership("me", FakeClock())
    peers.take(told("a"))
    peers.take(told("a", gone=True))
    peers.take(told("b", gone=True))
    assert peers.alive() == {}


def test_a_node_is_no_peer_of_itself() -> None:
    peers = Membership("me", FakeClock())
    peers.take(told("me"))
    assert peers.alive() == {}


def answer(request: str, node: str, *counts: int) -> Answer:
    return Answer(request=request, node=node, counts=list(counts))


async def test_answers_are_summed_up_once_all_have_come() -> None:
    inquiries = ClusterRequests()
    with inquiries.open({"a", "b"}, 2) as inquiry:
        inquiries.take(answer(inquiry.id, "a", 1, 2))
        inquiries.take(answer(inquiry.id, "a", 50, 50))  # a second time
        inquiries.take(answer(inquiry.id, "c", 10, 20))  # a node that has just come
        inquiries.take(answer("another", "b", 7, 7))
        inquiries.take(answer(inquiry.id, "b", 100, 200))
        tally = await inquiry.tally(HOUR)
    assert (tally.counts, tally.nodes, tally.complete) == ([111, 222], 3, True)


@pytest.mark.parametrize("counts", [(), (1,), (1, 2, 3)])
async def test_an_answer_of_another_size_is_none(counts: tuple[int, ...]) -> None:
    with ClusterRequests().open({"a", "b"}, 2) as inquiry:
        inquiry.take(answer(inquiry.id, "a", 1, 2))
        inquiry.take(answer(inquiry.id, "b", *counts))
        tally = await inquiry.tally(0.0)
    assert (tally.counts, tally.nodes, tally.complete) == ([1, 2], 1, False)


async def test_what_comes_too_late_goes_nowhere() -> None:
    inquiries = ClusterRequests()
    with inquiries.open({"a"}) as inquiry:
        tally = await inquiry.tally(0.0)
    inquiries.take(answer(inquiry.id, "a", 1))
    assert (tally.counts, tally.nodes, tally.complete) == ([0], 0, False)
