"""The other nodes that share the broker, by their reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from service.core.clock import Clock
from service.core.event import Event
from service.realtime.cluster.messages import NODE_STATE_RETENTION, NodeState, decode_node_state


class NodeReport(NamedTuple):
    """A node's last report."""

    age: float
    """Seconds since this node received it."""
    state: NodeState


class Membership:
    """The other nodes that have sent a report lately."""

    def __init__(self, node_id: str, clock: Clock) -> None:
        self._node_id = node_id
        self._clock = clock
        self._received: dict[str, tuple[float, NodeState]] = {}

    def record(self, event: Event) -> None:
        """Records a node's report. Raises ValueError if it cannot be decoded."""
        node = event.key or ""
        state = decode_node_state(event.data)
        if state.gone:
            self._received.pop(node, None)
        elif node != self._node_id:
            self._received[node] = (self._clock.monotonic(), state)

    @property
    def node_count(self) -> int:
        """The number of nodes, with this one, as far as this one knows."""
        return 1 + len(self.reports())

    def states(self) -> Mapping[str, NodeState]:
        """Returns the last state of each other node, by id."""
        return {node: report.state for node, report in self.reports().items()}

    def reports(self) -> Mapping[str, NodeReport]:
        """Returns the last report of each other node, by id."""
        now = self._clock.monotonic()
        expired = now - NODE_STATE_RETENTION.ttl
        for node in [node for node, (received, _) in self._received.items() if received <= expired]:
            del self._received[node]
        return {node: NodeReport(now - received, state) for node, (received, state) in self._received.items()}
