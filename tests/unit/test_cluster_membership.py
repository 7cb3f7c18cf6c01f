from __future__ import annotations

from service.core.event import Delivery, Event
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.messages import NODE_STATE_RETENTION, NODES, NodeState, encode
from tests.support.clock import FakeClock


def report(node: str, connections: int = 0, *, gone: bool = False) -> Event:
    state = NodeState(connections=connections, started=1.0, version="1", gone=gone)
    return Event(NODES, "node.state", "i", Delivery.LATEST, encode(state), None, 0, state_version=1, key=node)


def test_node_without_a_report_for_the_ttl_is_removed() -> None:
    clock = FakeClock()
    membership = Membership("me", clock)
    membership.record(report("a", 1))
    clock.advance(NODE_STATE_RETENTION.ttl - 1)
    membership.record(report("b", 2))
    assert {node: state.connections for node, state in membership.states().items()} == {"a": 1, "b": 2}
    clock.advance(1)
    assert set(membership.states()) == {"b"}
    membership.record(report("a", 3))
    assert {node: state.connections for node, state in membership.states().items()} == {"a": 3, "b": 2}


def test_node_that_reports_its_leave_is_removed_at_once() -> None:
    membership = Membership("me", FakeClock())
    membership.record(report("a"))
    membership.record(report("a", gone=True))
    membership.record(report("b", gone=True))
    assert membership.states() == {}


def test_own_report_is_ignored() -> None:
    membership = Membership("me", FakeClock())
    membership.record(report("me"))
    assert membership.states() == {}
