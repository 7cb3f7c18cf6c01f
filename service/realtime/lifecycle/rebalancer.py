"""Rebalancing: a node that has more connections than the others asks some of them to come back, so that new ones get their share.

Long-lived connections do not move by themselves when nodes are added. Nobody tells a node what to do: each knows from the others'
words (control.py) how many connections all have together, and by how many it is above the mean. The mean is the same for all, so
all who are above it can act at once (docs/adr/0023-rebalancing.md).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from itertools import islice

import structlog

from service.core.clock import Clock, Timer
from service.core.limits import Rollout
from service.realtime.cluster.membership import Membership, NodeReport
from service.realtime.cluster.messages import HEARTBEAT_INTERVAL, NODE_STATE_RETENTION
from service.realtime.connections.connection import Connection
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.availability import Availability
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.telemetry.metrics import Metrics

INTERVAL = 5.0
"""Seconds between two looks. What is asked for in one is spread over the time to the next."""
STALE = 12.0
"""Seconds after which the report of a node is too old to act on."""
assert 2 * HEARTBEAT_INTERVAL < STALE < NODE_STATE_RETENTION.ttl  # noqa: S101  # two reports may be late, and none outlives its node
SETTLE = NODE_STATE_RETENTION.ttl
"""Seconds that the same nodes must have been there: balancers learn of a new one late, and a node that falls silent is forgotten
only after as many."""
SPREAD = 3.0
"""Standard deviations of a random spread that are no imbalance: with few connections that is more than the margin."""
TRIAL = 30.0
"""Seconds of moving before it must show: what was asked for is spread over INTERVAL, and told of with a beat, if that arrives."""
WASTE = 2.0
"""How many times as many may be moved as a balancer that chooses at random needs for what the light nodes have gained."""
YOUNG = 300.0
"""Seconds below which a node that goes has come for nothing: a pod that crashes, starts again and crashes."""
SUSPICION = 900.0
"""Seconds for which new nodes are on trial after that: longer than Kubernetes waits before it starts such a pod again."""
REST = 600.0
MAX_REST = 14_400.0
"""Seconds until it is tried again where it has not helped: the first time, and at most."""

_log = structlog.get_logger("rebalancing")


class StableNodes:
    """Tells the nodes that are there to stay from those that come and go.

    A node that is new is waited for, as it changes everybody's mean. A pod in a crash loop is new again and again, under another
    id each time, and would be waited for all the time. So once a node has gone young, new ones are on trial: until they have
    been there for longer than the one that went, they neither count nor are waited for.
    """

    def __init__(self) -> None:
        self._first: dict[str, float] = {}
        """Since when each node has taken connections, as far as this one has heard."""
        self._last: dict[str, float] = {}
        """When it did last. Both are kept for a while: one that was cut off comes back under its own id, and is not new."""
        self._taking: frozenset[str] = frozenset()
        self._trial = SETTLE
        self._suspicious_until = -math.inf
        self._is_new_here = True

    def of(self, now: float, others: Mapping[str, NodeReport]) -> Mapping[str, NodeReport]:
        """Those of the others that count: all of them, but for those on trial."""
        taking = frozenset(node for node, word in others.items() if word.state.accepting)
        for node in self._taking - taking:
            self._gone(node, now, others.get(node))
        self._taking = taking
        for node in taking:
            # Those who were here before this node may be old, and in a rollout they go soon.
            self._first.setdefault(node, now - YOUNG if self._is_new_here else now)
            self._last[node] = now
        self._is_new_here = False
        for node in [node for node, last in self._last.items() if now - last >= SUSPICION]:
            self._forget(node)
        if now >= self._suspicious_until:
            self._trial = SETTLE
            return others
        return {node: word for node, word in others.items() if now - self._first.get(node, now) >= self._trial}

    def _gone(self, node: str, now: float, word: NodeReport | None) -> None:
        if self._last[node] - self._first[node] < YOUNG:
            self._suspicious_until = now + SUSPICION
            if now - self._first[node] >= self._trial:  # it was counted
                self._trial = min(2 * self._trial, YOUNG)
        if word is not None and not word.state.draining:
            self._forget(node)  # it takes none for now, and is new when it does again

    def _forget(self, node: str) -> None:
        del self._first[node], self._last[node]


class RebalancePolicy:
    """Decides how many connections a node asks to move. Time comes in as an argument."""

    def __init__(self, margin: float, rate: float) -> None:
        self._margin = margin
        self._rate = rate
        self._stable = StableNodes()
        self._nodes: frozenset[str] | None = None
        self._since = 0.0
        """When these came together."""
        self._move: _Move | None = None
        """What is under way."""
        self._resting = 0.0
        """Until when nothing is tried."""
        self._rest = REST
        self.surplus = 0
        """Connections above the margin, as of the last time."""

    def weigh(self, now: float, here: int, departing: int, others: Mapping[str, NodeReport]) -> int:
        """How many to ask now, to be spread over INTERVAL. `here`: connections of this node, which takes new ones; `departing`:
        those of them that have been asked to go."""
        others = self._stable.of(now, others)
        taking = {node: word.state.connections for node, word in others.items() if word.state.accepting}
        self._look_for_changes(now, frozenset(taking))
        if not taking:
            self.surplus = 0
            return 0
        mean = (here + sum(taking.values())) / (1 + len(taking))
        allowed = max(self._margin * mean, SPREAD * math.sqrt(mean))
        above = here - departing - mean
        self.surplus = max(0, math.ceil(above - allowed))
        if now < self._since + SETTLE or any(word.age > STALE or word.state.draining for word in others.values()):
            return 0
        if self._move is None and self.surplus and now >= self._resting:
            self._move = _Move({node: count for node, count in taking.items() if count < mean}, 1 + len(taking))
        # Down to half of what is allowed: else the next few who come would begin it anew.
        wanted = math.ceil(above - allowed / 2)
        if self._move is None or wanted <= 0:
            self._move = None
            return 0
        left = math.ceil(self._rate * TRIAL + self._move.earned(taking)) - self._move.asked
        if left <= 0:
            self._give_up(now)
        return max(0, min(wanted, left, math.ceil(self._rate * INTERVAL)))

    def moved(self, count: int) -> None:
        """So many have been asked."""
        if self._move is not None:
            self._move.asked += count

    def _look_for_changes(self, now: float, nodes: frozenset[str]) -> None:
        if nodes != self._nodes:
            self._nodes, self._since = nodes, now
            self._move = None
            self._resting, self._rest = 0.0, REST

    def _give_up(self, now: float) -> None:
        _log.warning("moving connections does not help: are clients led to all nodes?", pause=self._rest)
        self._move = None
        self._resting = now + self._rest
        self._rest = min(2 * self._rest, MAX_REST)


class _Move:
    """Connections of this node on their way to those that have few."""

    def __init__(self, light: Mapping[str, int], nodes: int) -> None:
        self.asked = 0
        self._light = light
        """The nodes below the mean, and what they had at the beginning."""
        self._nodes = nodes

    def earned(self, counts: Mapping[str, int]) -> float:
        """How many may be moved for what the light nodes have gained: of those who are led by chance only a share gets there, and
        each of the other nodes has its part in it."""
        gained = sum(counts[node] - before for node, before in self._light.items())
        return WASTE * max(0, gained) * self._nodes / len(self._light) / (self._nodes - len(self._light))


class Rebalancer:
    """Weighs this node again and again, and has departures ask the connections that came first."""

    def __init__(
        self,
        registry: ConnectionRegistry,
        reconnects: ReconnectScheduler,
        membership: Membership,
        availability: Availability,
        rollout: Rollout,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._reconnects = reconnects
        self._membership = membership
        self._availability = availability
        self._rollout = rollout
        self._clock = clock
        self._metrics = metrics
        self._scales = RebalancePolicy(rollout.rebalance_margin, rollout.rebalance_rate)
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begins, if the settings say so."""
        if self._rollout.rebalance:
            self._wait(random.uniform(0.0, INTERVAL))  # noqa: S311  # spreads load, guards nothing

    def close(self) -> None:
        """Ends."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def is_allowed(self) -> bool:
        """True if this node accepts connections and reaches the broker, without which no client could resume."""
        return self._availability.is_accepting and not self._availability.health.is_away

    def _wait(self, seconds: float) -> None:
        self._timer = self._clock.call_later(seconds, self._look)

    def _look(self) -> None:
        self._wait(INTERVAL)
        if not self.is_allowed:
            self._metrics.lifecycle.rebalance_surplus.set(0)
            return
        now = self._clock.monotonic()
        count = self._scales.weigh(now, len(self._registry), len(self._reconnects), self._membership.reports())
        self._metrics.lifecycle.rebalance_surplus.set(self._scales.surplus)
        if count:
            asked = self._reconnects.ask(islice(self._movable(now), count), over=INTERVAL, reason="rebalance")
            self._scales.moved(asked)
            _log.info("moving connections", asked=asked, surplus=self._scales.surplus)

    def _movable(self, now: float) -> Iterator[Connection]:
        """Who came first goes first: whoever has been moved is last in the line of the other node."""
        latest = now - self._rollout.rebalance_least_age
        for connection in self._registry:
            if connection.opened_at > latest:
                return
            if connection.closing is None and not self._reconnects.is_departing(connection):
                yield connection
