"""Rebalancing of simulated clusters: how long it takes, how many connections it moves, and when it moves none."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import pytest

from service.realtime.cluster.membership import NodeReport
from service.realtime.cluster.messages import NodeState, decode_node_state
from service.realtime.lifecycle.rebalancer import (
    CHECK_INTERVAL,
    MAX_PAUSE,
    MAX_REPORT_AGE,
    PAUSE,
    SETTLE_TIME,
    TRIAL_TIME,
    RebalancePolicy,
)
from tests.support.rebalancing import Choose, Cluster, at_random, least_connections, round_robin

HOUR = 3600.0
DELAY = 30.0
"""Seconds until the first connection has moved and is reported (docs/operate/rebalancing.md)."""
BALANCERS = (at_random, round_robin, least_connections)
GROWTHS = {
    "2→4": ([500, 500], 2),
    "2→4, large": ([5000, 5000], 2),
    "3→6": ([1000] * 3, 3),
    "9→12": ([800] * 9, 3),
    "uneven": ([1500, 200, 900, 100], 0),
    "one restarted": ([700, 0, 700], 0),
}


def share(choose: Choose, nodes: int, light: int) -> float:
    """The part of the moved connections that reaches light nodes."""
    return 1.0 if choose is least_connections else light / nodes


def allowed(mean: float) -> float:
    return max(0.1 * mean, 3 * math.sqrt(mean))


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("choose", BALANCERS)
def test_new_nodes_reach_the_mean_within_the_window(choose: Choose, growth: str) -> None:
    counts, new = GROWTHS[growth]
    cluster = Cluster(choose)
    for number, count in enumerate(counts):
        cluster.add(f"old{number}", count)
    if new:
        cluster.run(60)
        assert not cluster.moves
    for number in range(new):
        cluster.add(f"new{number}")
    nodes = len(counts) + new
    mean = sum(counts) / nodes
    light = new + sum(count < mean for count in counts)
    reach = share(choose, nodes, light)
    window = DELAY + (max(counts) - mean) / (cluster.rate * reach)
    cluster.settle(max(1.3, 1 + allowed(mean) / mean), within=window)
    assert cluster.ratio <= 1 + allowed(mean) / mean
    necessary = sum(max(0.0, count - mean) for count in counts)
    assert cluster.total_moved <= 1.25 * necessary / reach
    assert min(cluster.intervals) >= cluster.least_age
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) == 1, (
        "no client moves twice"
    )
    moved = cluster.total_moved
    cluster.run(HOUR / 2)
    assert cluster.total_moved == moved, "a balanced cluster moves nothing"


@pytest.mark.parametrize("choose", BALANCERS)
def test_one_more_of_many_nodes_moves_little(choose: Choose) -> None:
    cluster = Cluster(choose)
    for number in range(12):
        cluster.add(f"old{number}", 1000)
    cluster.add("new")
    cluster.run(HOUR / 2)
    assert cluster.total_moved == 0
    assert cluster.ratio < 1.1


@pytest.mark.parametrize("choose", BALANCERS)
def test_eleventh_node_reaches_the_mean(choose: Choose) -> None:
    """At the edge of the margin: whether it begins is left to chance, and then no client moves twice."""
    cluster = Cluster(choose)
    for number in range(10):
        cluster.add(f"old{number}", 1000)
    cluster.run(60)
    cluster.add("new")
    cluster.settle(1.3, within=DELAY)
    assert cluster.ratio <= 1.1
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) <= 1


@pytest.mark.parametrize("choose", BALANCERS)
def test_late_and_lost_reports_only_slow_it_down(choose: Choose) -> None:
    cluster = Cluster(choose, loss=0.2, max_delay=3.0)
    cluster.add("a", 1500)
    cluster.add("b", 1500)
    cluster.run(60)
    assert not cluster.moves
    for name in ("c", "d"):
        cluster.add(name)
    reach = share(choose, 4, 2)
    cluster.run_until_balanced(1.3, within=3 * (DELAY + 750 / (cluster.rate * reach)))
    cluster.run(HOUR)
    assert cluster.total_moved <= 1.25 * 1500 / reach
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) <= 2


@pytest.mark.parametrize("choose", BALANCERS)
def test_client_churn_moves_no_connection(choose: Choose) -> None:
    """With as many as these a spread that chance makes is within the margin."""
    cluster = Cluster(choose)
    for number in range(4):
        cluster.add(f"n{number}")
    for _ in range(2000):
        cluster.connect()
    for _ in range(900):
        cluster.run(1.0)
        for _ in range(4):
            cluster.disconnect()
            cluster.connect()
    assert cluster.total_moved == 0


def test_young_connection_is_not_moved() -> None:
    cluster = Cluster(least_connections)
    old = cluster.add("a", 400)
    cluster.run(30)
    for connection in old.connections:
        connection.since = cluster.now
    cluster.add("b")
    cluster.run(cluster.least_age)
    assert not cluster.moves
    cluster.run_until_balanced(1.2, within=DELAY + 200 / cluster.rate)
    assert min(cluster.intervals) >= cluster.least_age


def test_unreachable_new_node_costs_little() -> None:
    """Nodes for the backend's API alone, a balancer that does not know of one, sticky cookies: moving does not help."""
    cluster = Cluster(lambda cluster: cluster.chance.choice(cluster.nodes[:2]))
    for name in ("a", "b"):
        cluster.add(name, 1000)
    cluster.add("lonely")
    cluster.run(PAUSE / 2)
    first = cluster.total_moved
    assert 0 < first <= 2 * cluster.rate * TRIAL_TIME
    cluster.run(12 * HOUR)
    rounds = 2 + math.log2(MAX_PAUSE / PAUSE) + 12 * HOUR / MAX_PAUSE
    assert cluster.total_moved <= first * rounds
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) <= rounds


def test_sticky_clients_stop_moving() -> None:
    cluster = Cluster(lambda cluster: cluster.nodes[0])
    cluster.add("a", 1000)
    cluster.add("b")
    cluster.run(HOUR)
    assert cluster.total_moved <= 3 * cluster.rate * TRIAL_TIME


@pytest.mark.parametrize(("life", "pause"), [(1.0, 9.0), (12.0, 3.0), (45.0, 30.0)])
@pytest.mark.parametrize("choose", BALANCERS)
def test_pod_that_crashes_again_and_again_does_not_block_the_others(choose: Choose, life: float, pause: float) -> None:
    cluster = Cluster(choose)
    stable = [cluster.add("a", 1000), cluster.add("b", 1000)]
    number = 0

    def loop(seconds: float) -> None:
        nonlocal number
        end = cluster.now + seconds
        while cluster.now < end:
            number += 1
            pod = cluster.add(f"crash{number}")
            cluster.run(life)
            cluster.crash(pod)
            cluster.run(pause)

    loop(120)
    stable.append(cluster.add("new"))
    loop(900)
    counts = [len(node.connections) for node in stable]
    assert max(counts) <= 1.3 * sum(counts) / 3, counts
    assert cluster.total_moved <= 4 * 2000, "some clients are led to the pod that crashes"


def test_leaving_old_nodes_put_no_node_on_trial() -> None:
    """As in a rollout."""
    policy = settled(old=500, b=0)
    assert not policy.decide(SETTLE_TIME, 1000, 0, reports(b=0, c=0))
    assert not policy.decide(SETTLE_TIME + 5, 1000, 0, reports(b=0, c=0))
    assert policy.decide(2 * SETTLE_TIME, 1000, 0, reports(b=0, c=0))


def test_node_that_returns_after_a_partition_is_not_new() -> None:
    policy = settled(b=0)
    assert policy.decide(SETTLE_TIME, 1000, 0, reports(b=0))
    for now in (20.0, 25.0, 40.0):
        assert not policy.decide(now, 1000, 0, {})
    assert not policy.decide(45.0, 1000, 0, reports(b=0))
    assert policy.decide(45.0 + SETTLE_TIME, 1000, 0, reports(b=0))


def test_partitioned_node_moves_nothing() -> None:
    cluster = Cluster(least_connections)
    nodes = [cluster.add(name, count) for name, count in (("a", 900), ("b", 900), ("c", 0))]
    for node in nodes:
        node.is_reachable = False
    cluster.run(HOUR)
    moved = sum(count for at, _, count in cluster.moves if at > 1000.0 + MAX_REPORT_AGE + CHECK_INTERVAL)
    assert moved == 0
    for node in nodes:
        node.is_reachable = True
    cluster.run_until_balanced(1.15, within=DELAY + SETTLE_TIME + 300 / cluster.rate)


def test_node_that_accepts_none_does_not_count() -> None:
    cluster = Cluster(least_connections)
    for name in ("a", "b"):
        cluster.add(name, 500)
    full = cluster.add("ill", 3000)
    empty = cluster.add("empty")
    full.accepting = empty.accepting = False
    for node in (full, empty):
        node.report()
    cluster.run(HOUR)
    assert not cluster.moves


# --- one node's decisions ---------------------------------------------------------------------------------------------


def reports(ages: float = 1.0, /, **counts: int) -> Mapping[str, NodeReport]:
    return {
        name: NodeReport(ages, NodeState(connections=count, started=0.0, version="")) for name, count in counts.items()
    }


def settled(**counts: int) -> RebalancePolicy:
    """A policy that has known these nodes for a while."""
    policy = RebalancePolicy(0.1, 10.0)
    policy.decide(0.0, 100, 0, reports(**counts))
    return policy


def test_single_node_moves_nothing() -> None:
    policy = RebalancePolicy(0.1, 10.0)
    assert policy.decide(0.0, 10_000, 0, {}) == 0
    assert policy.decide(SETTLE_TIME, 10_000, 0, {}) == 0
    assert policy.surplus == 0


def test_surplus_is_reported_before_the_first_move() -> None:
    policy = settled(b=0)
    assert policy.decide(1.0, 1000, 0, reports(b=0)) == 0
    assert policy.surplus == 1000 - 500 - math.floor(allowed(500))
    assert policy.decide(SETTLE_TIME, 1000, 0, reports(b=0)) == 10 * CHECK_INTERVAL


def test_scheduled_connections_count_as_gone() -> None:
    assert settled(b=0).decide(SETTLE_TIME, 1000, 480, reports(b=0)) == 0
    assert settled(b=0).decide(SETTLE_TIME, 1000, 420, reports(b=0)) == 1000 - 420 - 500 - math.floor(allowed(500) / 2)


def test_change_of_nodes_restarts_the_settle_time() -> None:
    policy = settled(b=0)
    assert policy.decide(SETTLE_TIME, 1000, 0, reports(b=0))
    assert not policy.decide(SETTLE_TIME + 5, 1000, 0, reports(b=0, c=0))
    assert not policy.decide(2 * SETTLE_TIME, 1000, 0, reports(b=0, c=0))
    assert policy.decide(2 * SETTLE_TIME + 5, 1000, 0, reports(b=0, c=0))


def test_old_report_stops_moves() -> None:
    assert not settled(b=0).decide(SETTLE_TIME, 1000, 0, reports(MAX_REPORT_AGE + 0.1, b=0))
    assert settled(b=0).decide(SETTLE_TIME, 1000, 0, reports(MAX_REPORT_AGE, b=0))


def test_draining_node_stops_moves() -> None:
    policy = settled(b=0)
    leaving = {
        "c": NodeReport(1.0, NodeState(connections=500, started=0.0, version="", accepting=False, draining=True))
    }
    assert not policy.decide(SETTLE_TIME, 1000, 0, {**reports(b=0), **leaving})
    assert policy.decide(SETTLE_TIME + 5, 1000, 0, reports(b=0))


def test_few_connections_are_not_moved() -> None:
    assert not settled(b=0).decide(SETTLE_TIME, 16, 0, reports(b=0)), (
        "16 and 0 are within three standard deviations of 8"
    )
    assert settled(b=0).decide(SETTLE_TIME, 40, 0, reports(b=0))


def test_move_without_effect_is_paused_and_retried() -> None:
    policy, now, asked = settled(b=0), SETTLE_TIME, 0
    while count := policy.decide(now, 1000, 0, reports(b=0)):
        policy.record_moved(count)
        asked += count
        now += CHECK_INTERVAL
    assert asked == 10 * TRIAL_TIME
    assert policy.surplus, "the gauge still shows it"
    assert not policy.decide(now + PAUSE - 1, 1000, 0, reports(b=0))
    assert policy.decide(now + PAUSE, 1000, 0, reports(b=0))


def test_report_of_an_older_version_counts() -> None:
    state = decode_node_state(b'{"connections":7,"started":1.0,"version":"0.1.0","gone":false}')
    assert state.accepting
    assert not state.draining


@pytest.mark.parametrize("connections", ["-1", "9007199254740993", "1.5"])
def test_impossible_report_is_rejected(connections: str) -> None:
    """It would change the mean of all nodes."""
    with pytest.raises(msgspec.ValidationError):
        decode_node_state(f'{{"connections":{connections},"started":1.0,"version":"9"}}')
