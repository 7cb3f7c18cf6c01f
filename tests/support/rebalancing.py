"""Simulates a cluster that rebalances: the policy and the membership are real; connections, balancer and broker are not.

Steps of a quarter of a second simulate an hour of eleven nodes in about a second.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from service.core.channel import ChannelKey
from service.core.event import Delivery, Event
from service.realtime.cluster.membership import Membership
from service.realtime.cluster.messages import HEARTBEAT_INTERVAL, NODES, NodeState, encode
from service.realtime.lifecycle.rebalancer import CHECK_INTERVAL, RebalancePolicy
from service.realtime.lifecycle.reconnects import MAX_DELAY, MIN_DELAY
from tests.support.clock import FakeClock

STEP = 0.25

Choose = Callable[["Cluster"], "Node"]
"""A balancer: returns the node of the next connection."""


def at_random(cluster: Cluster) -> Node:
    return cluster.chance.choice(cluster.accepting_nodes)


def round_robin(cluster: Cluster) -> Node:
    cluster.turn += 1
    nodes = cluster.accepting_nodes
    return nodes[cluster.turn % len(nodes)]


def least_connections(cluster: Cluster) -> Node:
    return min(cluster.accepting_nodes, key=lambda node: len(node.connections))


@dataclass(eq=False)
class Connection:
    """A client."""

    since: float
    moves: int = 0


class Node:
    """The part of a node that rebalances."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.connections: deque[Connection] = deque()
        """The oldest first."""
        self.scheduled: deque[tuple[float, Connection]] = deque()
        """Connections to close, with the time of the close. They are in `connections`, too."""
        self.membership = Membership(name, cluster.clock)
        self.policy = RebalancePolicy(cluster.margin, cluster.rate)
        self.accepting = True
        self.is_reachable = True
        """False while the node neither sends nor receives."""
        self.next_heartbeat = cluster.now + cluster.chance.uniform(0, HEARTBEAT_INTERVAL)
        self.next_check = cluster.now + cluster.chance.uniform(0, CHECK_INTERVAL)

    def step(self) -> None:
        now = self.cluster.now
        while self.scheduled and self.scheduled[0][0] <= now:
            _, connection = self.scheduled.popleft()
            self.connections.remove(connection)
            self.cluster.reconnect(connection)
        if now >= self.next_heartbeat:
            self.next_heartbeat += HEARTBEAT_INTERVAL
            self.report()
        if now >= self.next_check:
            self.next_check += CHECK_INTERVAL
            self.check()

    def report(self, *, gone: bool = False) -> None:
        state = NodeState(
            connections=len(self.connections), started=0.0, version="", accepting=self.accepting, gone=gone
        )
        self.cluster.publish(self, state)

    def check(self) -> None:
        now = self.cluster.now
        if not self.accepting:
            return
        count = self.policy.decide(now, len(self.connections), len(self.scheduled), self.membership.reports())
        if not count:
            return
        scheduled = {id(connection) for _, connection in self.scheduled}
        asked = list[Connection]()
        for connection in self.connections:
            if connection.since > now - self.cluster.least_age or len(asked) == count:
                break
            if id(connection) not in scheduled:
                asked.append(connection)
        if not asked:
            return
        for index, connection in enumerate(asked, 1):
            self.scheduled.append((now + CHECK_INTERVAL * index / len(asked), connection))
        self.policy.record_moved(len(asked))
        self.cluster.moves.append((now, self.name, len(asked)))


@dataclass
class Cluster:
    """Nodes, their broker and balancer, and the clients."""

    choose: Choose
    seed: int = 1
    margin: float = 0.1
    rate: float = 10.0
    least_age: float = 60.0
    loss: float = 0.0
    """The part of the reports that is lost: 0 to 1."""
    max_delay: float = 0.0
    """Seconds that a report is delayed, at most."""
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.nodes: list[Node] = []
        self.reconnecting: list[tuple[float, Connection]] = []
        """Clients that reconnect, and when."""
        self.moves: list[tuple[float, str, int]] = []
        """The time, the node and the number of connections of each move."""
        self.intervals: list[float] = []
        """Seconds that each client had stayed before it was moved."""
        self.turn = 0

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    @property
    def accepting_nodes(self) -> list[Node]:
        return [node for node in self.nodes if node.accepting]

    @property
    def total_moved(self) -> int:
        return sum(count for _, _, count in self.moves)

    def add(self, name: str, connections: int = 0) -> Node:
        node = Node(self, name)
        node.connections.extend(Connection(self.now - 3600.0) for _ in range(connections))
        self.nodes.append(node)
        for other in self.nodes:
            other.report()
        return node

    def crash(self, node: Node) -> None:
        """Ends a node without a last report. Its clients reconnect."""
        self.nodes.remove(node)
        for connection in node.connections:
            self.reconnecting.append((self.now + self.chance.uniform(MIN_DELAY, MAX_DELAY), connection))

    def publish(self, node: Node, state: NodeState) -> None:
        event = Event(
            channel=ChannelKey(NODES.tenant, NODES.name),
            type="node.state",
            id="",
            delivery=Delivery.LATEST,
            data=encode(state),
            sender=None,
            at=0,
            key=node.name,
        )
        for other in self.nodes:
            if node.is_reachable and other.is_reachable and self.chance.random() >= self.loss:
                late = self.chance.uniform(0, self.max_delay)
                if late:
                    self.clock.call_later(late, lambda to=other: to.membership.record(event))  # type: ignore[misc]  # bound now
                else:
                    other.membership.record(event)

    def reconnect(self, connection: Connection) -> None:
        self.intervals.append(self.now - connection.since)
        connection.moves += 1
        self.reconnecting.append((self.now + self.chance.uniform(MIN_DELAY, MAX_DELAY), connection))

    def connect(self) -> None:
        """Adds a client."""
        self.choose(self).connections.append(Connection(self.now))

    def disconnect(self) -> None:
        """Removes a random client."""
        node = self.chance.choices(self.nodes, [len(node.connections) - len(node.scheduled) for node in self.nodes])[0]
        scheduled = {id(connection) for _, connection in node.scheduled}
        node.connections.remove(self.chance.choice([one for one in node.connections if id(one) not in scheduled]))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.clock.advance(STEP)
            for node in self.nodes:
                node.step()
            due = [connection for at, connection in self.reconnecting if at <= self.now]
            self.reconnecting = [(at, connection) for at, connection in self.reconnecting if at > self.now]
            for connection in due:
                connection.since = self.now
                self.choose(self).connections.append(connection)

    def settle(self, ratio: float, within: float) -> float:
        """Runs until the cluster is balanced, and then until nothing has moved for five minutes."""
        seconds = self.run_until_balanced(ratio, within)
        while self.moves and self.moves[-1][0] > self.now - 300:
            assert self.now < 1000.0 + 24 * 3600, "the moves do not end"
            self.run(60.0)
        return seconds

    def run_until_balanced(self, ratio: float, within: float) -> float:
        """Runs until no node has more than `ratio` times the mean. Returns the seconds that it took."""
        started = self.now
        while self.ratio > ratio:
            assert self.now - started < within, f"after {within:.0f} s: {self.counts}"
            self.run(1.0)
        return self.now - started

    @property
    def counts(self) -> list[int]:
        return [len(node.connections) for node in self.accepting_nodes]

    @property
    def ratio(self) -> float:
        counts = self.counts
        return max(counts) / ((sum(counts) + len(self.reconnecting)) / len(counts))
