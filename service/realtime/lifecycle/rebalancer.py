"""Rebalancing: a node with more connections than the others asks some of them to reconnect, so that new nodes get their share.

Long-lived connections do not move by themselves when nodes are added. There is no leader. Each node computes the mean from the
reports of the others, and moves only the connections that it has above the mean. All nodes compute the same mean, so they can act
at the same time (docs/adr/0023-rebalancing.md).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from itertools import islice

import structlog

from service.aio.timers import PeriodicTask
from service.core.limits import Rollout
from service.realtime.cluster.membership import Membership, NodeReport
from service.realtime.cluster.messages import HEARTBEAT_INTERVAL, NODE_STATE_RETENTION
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.availability import Availability
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.realtime.runtime import Runtime

CHECK_INTERVAL = 5.0
"""Seconds between two checks. The moves of one check are spread over the time to the next one."""
MAX_REPORT_AGE = 12.0
"""Seconds after which a node's report is too old to act on."""
assert 2 * HEARTBEAT_INTERVAL < MAX_REPORT_AGE < NODE_STATE_RETENTION.ttl  # noqa: S101  # two reports may be late, and none outlives its node
SETTLE_TIME = NODE_STATE_RETENTION.ttl
"""Seconds without a change of the nodes before connections move. Load balancers learn of a new node late, and a node without
reports is removed only after this time."""
MAX_DEVIATIONS = 3.0
"""A surplus of up to this many standard deviations counts as chance. With few connections, this exceeds the margin."""
TRIAL_TIME = 30.0
"""Seconds of moves before the other nodes must report a gain. A move takes CHECK_INTERVAL, and a report may be lost."""
MAX_WASTE = 2.0
"""A node moves at most this factor times the connections that a random load balancer needs for the gain of the light nodes."""
MIN_NODE_AGE = 300.0
"""Seconds. A node that leaves before this age counts as a node in a crash loop."""
SUSPICION_TIME = 900.0
"""Seconds after such a leave in which new nodes are on trial. Kubernetes waits less before it restarts a pod."""
PAUSE = 600.0
MAX_PAUSE = 14_400.0
"""Seconds without moves after a move that did not help: the first and the longest pause."""

_log = structlog.get_logger("rebalancing")


class StableNodes:
    """Filters out nodes in a crash loop.

    A new node changes the mean, so all nodes wait SETTLE_TIME before they move connections. Each restart of a pod in a crash loop
    has a new id, so they would wait forever. Therefore, new nodes are on trial after a node has left before MIN_NODE_AGE. A node
    on trial does not count in the mean, and no node waits for it. Its trial ends when it is older than the node that left.
    """

    def __init__(self) -> None:
        self._first_seen: dict[str, float] = {}
        """Monotonic seconds at which this node first saw each node accept connections."""
        self._last_seen: dict[str, float] = {}
        """Monotonic seconds of the last time. Both are kept for SUSPICION_TIME, so that an unreachable node is not new later."""
        self._accepting: frozenset[str] = frozenset()
        self._trial_time = SETTLE_TIME
        self._suspicious_until = -math.inf
        self._is_first_check = True

    def filter(self, now: float, others: Mapping[str, NodeReport]) -> Mapping[str, NodeReport]:
        """Returns the reports of the other nodes, without those on trial."""
        accepting = frozenset(node for node, report in others.items() if report.state.accepting)
        for node in self._accepting - accepting:
            self._record_leave(node, now, others.get(node))
        self._accepting = accepting
        for node in accepting:
            # Nodes that are older than this one count as old: in a rollout they leave soon, without a crash loop.
            self._first_seen.setdefault(node, now - MIN_NODE_AGE if self._is_first_check else now)
            self._last_seen[node] = now
        self._is_first_check = False
        for node in [node for node, last in self._last_seen.items() if now - last >= SUSPICION_TIME]:
            self._forget(node)
        if now >= self._suspicious_until:
            self._trial_time = SETTLE_TIME
            return others
        return {
            node: report for node, report in others.items() if now - self._first_seen.get(node, now) >= self._trial_time
        }

    def _record_leave(self, node: str, now: float, report: NodeReport | None) -> None:
        if self._last_seen[node] - self._first_seen[node] < MIN_NODE_AGE:
            self._suspicious_until = now + SUSPICION_TIME
            if now - self._first_seen[node] >= self._trial_time:  # it was not on trial any more
                self._trial_time = min(2 * self._trial_time, MIN_NODE_AGE)
        if report is not None and not report.state.draining:
            self._forget(node)  # it accepts no connections now, and counts as new when it does again

    def _forget(self, node: str) -> None:
        del self._first_seen[node], self._last_seen[node]


class RebalancePolicy:
    """Decides how many connections a node moves. Gets the time as an argument."""

    def __init__(self, margin: float, max_rate: float) -> None:
        """`margin`: the part of the mean by which a node may exceed it. `max_rate`: connections per second."""
        self._margin = margin
        self._max_rate = max_rate
        self._stable_nodes = StableNodes()
        self._nodes: frozenset[str] | None = None
        self._unchanged_since = 0.0
        self._move: _Move | None = None
        """The move in progress."""
        self._paused_until = 0.0
        self._pause = PAUSE
        self.surplus = 0
        """Connections above the margin, as of the last decision."""

    def decide(self, now: float, connections: int, scheduled: int, others: Mapping[str, NodeReport]) -> int:
        """Returns how many connections to move now, spread over CHECK_INTERVAL.

        Args:
            now: Monotonic time.
            connections: The number of this node's connections. This node accepts connections.
            scheduled: How many of them are scheduled to reconnect.
            others: The reports of the other nodes.
        """
        others = self._stable_nodes.filter(now, others)
        counts = {node: report.state.connections for node, report in others.items() if report.state.accepting}
        self._record_nodes(now, frozenset(counts))
        if not counts:
            self.surplus = 0
            return 0
        mean = (connections + sum(counts.values())) / (1 + len(counts))
        allowed = max(self._margin * mean, MAX_DEVIATIONS * math.sqrt(mean))
        above = connections - scheduled - mean
        self.surplus = max(0, math.ceil(above - allowed))
        if now < self._unchanged_since + SETTLE_TIME or any(
            report.age > MAX_REPORT_AGE or report.state.draining for report in others.values()
        ):
            return 0
        if self._move is None and self.surplus and now >= self._paused_until:
            self._move = _Move({node: count for node, count in counts.items() if count < mean}, 1 + len(counts))
        # Moves down to half of the allowed surplus, so that the next few connections do not start a new move.
        wanted = math.ceil(above - allowed / 2)
        if self._move is None or wanted <= 0:
            self._move = None
            return 0
        left = math.ceil(self._max_rate * TRIAL_TIME + self._move.earned(counts)) - self._move.moved
        if left <= 0:
            self._give_up(now)
        return max(0, min(wanted, left, math.ceil(self._max_rate * CHECK_INTERVAL)))

    def record_moved(self, connections: int) -> None:
        """Records that `connections` connections were scheduled."""
        if self._move is not None:
            self._move.moved += connections

    def _record_nodes(self, now: float, nodes: frozenset[str]) -> None:
        if nodes != self._nodes:
            self._nodes, self._unchanged_since = nodes, now
            self._move = None
            self._paused_until, self._pause = 0.0, PAUSE

    def _give_up(self, now: float) -> None:
        _log.warning(
            "rebalancing_paused", reason="moved connections return: check the load balancer", seconds=self._pause
        )
        self._move = None
        self._paused_until = now + self._pause
        self._pause = min(2 * self._pause, MAX_PAUSE)


class _Move:
    """A move of connections from this node to nodes below the mean (light nodes)."""

    def __init__(self, light: Mapping[str, int], nodes: int) -> None:
        self.moved = 0
        self._light = light
        """The light nodes, with their connections at the start of the move."""
        self._nodes = nodes

    def earned(self, counts: Mapping[str, int]) -> float:
        """Returns how many moved connections the gain of the light nodes justifies.

        A random load balancer sends only a part of them to light nodes, and other nodes contribute to the gain, too.
        """
        gained = sum(counts[node] - before for node, before in self._light.items())
        return MAX_WASTE * max(0, gained) * self._nodes / len(self._light) / (self._nodes - len(self._light))


class Rebalancer:
    """Applies the policy at an interval. The oldest connections reconnect first."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        reconnects: ReconnectScheduler,
        membership: Membership,
        availability: Availability,
        rollout: Rollout,
        runtime: Runtime,
    ) -> None:
        self._registry = registry
        self._reconnects = reconnects
        self._membership = membership
        self._availability = availability
        self._rollout = rollout
        self._clock = runtime.clock
        self._metrics = runtime.metrics
        self._policy = RebalancePolicy(rollout.rebalance_margin, rollout.rebalance_rate)
        self._checks = PeriodicTask(
            runtime.clock, runtime.tasks, "rebalance check", self._check, interval=CHECK_INTERVAL
        )

    def start(self) -> None:
        """Starts the checks, unless `rollout.rebalance` is off."""
        if self._rollout.rebalance:
            self._checks.start(random.uniform(0.0, CHECK_INTERVAL))  # noqa: S311  # spreads load, guards nothing

    def close(self) -> None:
        """Ends the checks."""
        self._checks.close()

    @property
    def is_allowed(self) -> bool:
        """True if this node accepts connections and reaches the broker. Without the broker, moved clients cannot resume."""
        return self._availability.is_accepting and not self._availability.health.is_unavailable

    async def _check(self) -> None:
        if not self.is_allowed:
            self._metrics.lifecycle.rebalance_surplus.set(0)
            return
        now = self._clock.monotonic()
        count = self._policy.decide(now, len(self._registry), len(self._reconnects), self._membership.reports())
        self._metrics.lifecycle.rebalance_surplus.set(self._policy.surplus)
        if count:
            moved = self._reconnects.schedule(
                islice(self._movable(now), count), over=CHECK_INTERVAL, reason="rebalance"
            )
            self._policy.record_moved(moved)
            _log.info("rebalancing", connections=moved, surplus=self._policy.surplus)

    def _movable(self, now: float) -> Iterator[Connection]:
        """Iterates over the connections that may move, the oldest first, so that a moved connection is the last to move again."""
        newest = now - self._rollout.rebalance_least_age
        for connection in self._registry:
            if connection.opened_at > newest:
                return
            if connection.closing is None and not self._reconnects.is_scheduled(connection):
                yield connection
