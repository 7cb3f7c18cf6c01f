"""A cluster in a simulation: real `RebalancePolicy` and `Membership` on every node, made-up connections, balancer and broker.

Time moves in quarters of a second, so that a run of an hour over eleven nodes takes about a second.
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
"""A balancer: which node the next connection goes to."""


def at_random(cluster: Cluster) -> Node:
    return cluster.chance.choice(cluster.taking)


def in_turns(cluster: Cluster) -> Node:
    cluster.turn += 1
    taking = cluster.taking
    return taking[cluster.turn % len(taking)]


def to_the_emptiest(cluster: Cluster) -> Node:
    return min(cluster.taking, key=lambda node: len(node.connections))


@dataclass(eq=False)
class Connection:
    """A client."""

    since: float
    moves: int = 0


class Node:
    """One node, as far as it rebalances."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.name = name
        self.cluster = cluster
        self.connections: deque[Connection] = deque()
        """In the order in which they came."""
        self.departing: deque[tuple[float, Connection]] = deque()
        """Those who have been asked, by the time of their close; still in `connections`, too."""
        self.peers = Membership(name, cluster.clock)
        self.policy = RebalancePolicy(cluster.margin, cluster.rate)
        self.accepting = True
        self.hears = True
        """Whether anything gets to it and from it."""
        self.beat = cluster.now + cluster.chance.uniform(0, HEARTBEAT_INTERVAL)
        self.look = cluster.now + cluster.chance.uniform(0, CHECK_INTERVAL)

    def step(self) -> None:
        now = self.cluster.now
        while self.departing and self.departing[0][0] <= now:
            _, connection = self.departing.popleft()
            self.connections.remove(connection)
            self.cluster.moved(connection)
        if now >= self.beat:
            self.beat += HEARTBEAT_INTERVAL
            self.tell()
        if now >= self.look:
            self.look += CHECK_INTERVAL
            self.weigh()

    def tell(self, *, gone: bool = False) -> None:
        state = NodeState(
            connections=len(self.connections), started=0.0, version="", accepting=self.accepting, gone=gone
        )
        self.cluster.publish(self, state)

    def weigh(self) -> None:
        now = self.cluster.now
        if not self.accepting:
            return
        count = self.policy.decide(now, len(self.connections), len(self.departing), self.peers.reports())
        if not count:
            return
        going = {id(connection) for _, connection in self.departing}
        asked = list[Connection]()
        for connection in self.connections:
            if connection.since > now - self.cluster.least_age or len(asked) == count:
                break
            if id(connection) not in going:
                asked.append(connection)
        if not asked:
            return
        for index, connection in enumerate(asked, 1):
            self.departing.append((now + CHECK_INTERVAL * index / len(asked), connection))
        self.policy.record_moved(len(asked))
        self.cluster.asked.append((now, self.name, len(asked)))


@dataclass
class Cluster:
    """Nodes, what is between them, and the clients."""

    choose: Choose
    seed: int = 1
    margin: float = 0.1
    rate: float = 10.0
    least_age: float = 60.0
    loss: float = 0.0
    """The share of words that get lost."""
    lateness: float = 0.0
    """Seconds by which a word comes late, at most."""
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.nodes: list[Node] = []
        self.coming: list[tuple[float, Connection]] = []
        """Clients that are away, and when they come back."""
        self.asked: list[tuple[float, str, int]] = []
        """When, who, how many."""
        self.intervals: list[float] = []
        """How long each client that moved had stayed."""
        self.turn = 0

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    @property
    def taking(self) -> list[Node]:
        return [node for node in self.nodes if node.accepting]

    @property
    def total_asked(self) -> int:
        return sum(count for _, _, count in self.asked)

    def add(self, name: str, connections: int = 0) -> Node:
        node = Node(self, name)
        node.connections.extend(Connection(self.now - 3600.0) for _ in range(connections))
        self.nodes.append(node)
        for other in self.nodes:
            other.tell()
        return node

    def crash(self, node: Node) -> None:
        """Ends a node without a word; its clients come back."""
        self.nodes.remove(node)
        for connection in node.connections:
            self.coming.append((self.now + self.chance.uniform(MIN_DELAY, MAX_DELAY), connection))

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
            if node.hears and other.hears and self.chance.random() >= self.loss:
                late = self.chance.uniform(0, self.lateness)
                if late:
                    self.clock.call_later(late, lambda to=other: to.peers.record(event))  # type: ignore[misc]  # bound now
                else:
                    other.peers.record(event)

    def moved(self, connection: Connection) -> None:
        self.intervals.append(self.now - connection.since)
        connection.moves += 1
        self.coming.append((self.now + self.chance.uniform(MIN_DELAY, MAX_DELAY), connection))

    def arrive(self) -> None:
        """One more client."""
        self.choose(self).connections.append(Connection(self.now))

    def leave(self) -> None:
        """One client less, whichever."""
        node = self.chance.choices(self.nodes, [len(node.connections) - len(node.departing) for node in self.nodes])[0]
        going = {id(connection) for _, connection in node.departing}
        node.connections.remove(self.chance.choice([one for one in node.connections if id(one) not in going]))

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.clock.advance(STEP)
            for node in self.nodes:
                node.step()
            back = [connection for at, connection in self.coming if at <= self.now]
            self.coming = [(at, connection) for at, connection in self.coming if at > self.now]
            for connection in back:
                connection.since = self.now
                self.choose(self).connections.append(connection)

    def settle(self, ratio: float, within: float) -> float:
        """As `until_balanced`, and then until nothing has been asked for five minutes."""
        took = self.until_balanced(ratio, within)
        while self.asked and self.asked[-1][0] > self.now - 300:
            assert self.now < 1000.0 + 24 * 3600, "it goes on for ever"
            self.run(60.0)
        return took

    def until_balanced(self, ratio: float, within: float) -> float:
        """Seconds until no node is above so many times the mean; AssertionError if it takes longer."""
        began = self.now
        while self.ratio > ratio:
            assert self.now - began < within, f"after {within:.0f} s: {self.counts}"
            self.run(1.0)
        return self.now - began

    @property
    def counts(self) -> list[int]:
        return [len(node.connections) for node in self.taking]

    @property
    def ratio(self) -> float:
        counts = self.counts
        return max(counts) / ((sum(counts) + len(self.coming)) / len(counts))
