"""Rebalancing, over many simulated nodes: how long it takes, how many it moves, and when it keeps still."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import pytest

from service.realtime.cluster.membership import NodeReport
from service.realtime.cluster.messages import NodeState, decode_node_state
from service.realtime.lifecycle.rebalancer import INTERVAL, MAX_REST, REST, SETTLE, STALE, TRIAL, RebalancePolicy
from tests.support.rebalancing import Choose, Cluster, at_random, in_turns, to_the_emptiest

HOUR = 3600.0
DELAY = 30.0
"""Seconds until the first has moved and what has moved is known, as docs/operate/rebalancing.md has it."""
BALANCERS = (at_random, in_turns, to_the_emptiest)
GROWTHS = {
    "2→4": ([500, 500], 2),
    "2→4, large": ([5000, 5000], 2),
    "3→6": ([1000] * 3, 3),
    "9→12": ([800] * 9, 3),
    "uneven": ([1500, 200, 900, 100], 0),
    "one restarted": ([700, 0, 700], 0),
}


def share(choose: Choose, nodes: int, light: int) -> float:
    """Of those who move, how many get to nodes that have few."""
    return 1.0 if choose is to_the_emptiest else light / nodes


def allowed(mean: float) -> float:
    return max(0.1 * mean, 3 * math.sqrt(mean))


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("choose", BALANCERS)
def test_new_nodes_get_their_share_within_the_window(choose: Choose, growth: str) -> None:
    counts, new = GROWTHS[growth]
    cluster = Cluster(choose)
    for number, count in enumerate(counts):
        cluster.add(f"old{number}", count)
    if new:
        cluster.run(60)
        assert not cluster.asked
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
    assert cluster.total_asked <= 1.25 * necessary / reach
    assert min(cluster.intervals) >= cluster.least_age
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) == 1, "nobody is bounced"
    moved = cluster.total_asked
    cluster.run(HOUR / 2)
    assert cluster.total_asked == moved, "what is balanced is left alone"


@pytest.mark.parametrize("choose", BALANCERS)
def test_one_more_of_many_is_within_the_margin_and_nobody_moves_for_long(choose: Choose) -> None:
    cluster = Cluster(choose)
    for number in range(12):
        cluster.add(f"old{number}", 1000)
    cluster.add("new")
    cluster.run(HOUR / 2)
    assert cluster.total_asked == 0
    assert cluster.ratio < 1.1


@pytest.mark.parametrize("choose", BALANCERS)
def test_ten_to_eleven(choose: Choose) -> None:
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
def test_words_that_come_late_or_never_make_it_slower_and_not_worse(choose: Choose) -> None:
    cluster = Cluster(choose, loss=0.2, lateness=3.0)
    cluster.add("a", 1500)
    cluster.add("b", 1500)
    cluster.run(60)
    assert not cluster.asked
    for name in ("c", "d"):
        cluster.add(name)
    reach = share(choose, 4, 2)
    cluster.until_balanced(1.3, within=3 * (DELAY + 750 / (cluster.rate * reach)))
    cluster.run(HOUR)
    assert cluster.total_asked <= 1.25 * 1500 / reach
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) <= 2


@pytest.mark.parametrize("choose", BALANCERS)
def test_comings_and_goings_move_nobody(choose: Choose) -> None:
    """With as many as these a spread that chance makes is within the margin."""
    cluster = Cluster(choose)
    for number in range(4):
        cluster.add(f"n{number}")
    for _ in range(2000):
        cluster.arrive()
    for _ in range(900):
        cluster.run(1.0)
        for _ in range(4):
            cluster.leave()
            cluster.arrive()
    assert cluster.total_asked == 0


def test_nobody_who_came_lately_is_moved() -> None:
    cluster = Cluster(to_the_emptiest)
    old = cluster.add("a", 400)
    cluster.run(30)
    for connection in old.connections:
        connection.since = cluster.now
    cluster.add("b")
    cluster.run(cluster.least_age)
    assert not cluster.asked
    cluster.until_balanced(1.2, within=DELAY + 200 / cluster.rate)
    assert min(cluster.intervals) >= cluster.least_age


def test_a_node_that_is_led_to_by_nobody_costs_little() -> None:
    """Nodes for the backend's API alone, a balancer that does not know of one, sticky cookies: moving does not help."""
    cluster = Cluster(lambda cluster: cluster.chance.choice(cluster.nodes[:2]))
    for name in ("a", "b"):
        cluster.add(name, 1000)
    cluster.add("lonely")
    cluster.run(REST / 2)
    first = cluster.total_asked
    assert 0 < first <= 2 * cluster.rate * TRIAL
    cluster.run(12 * HOUR)
    rounds = 2 + math.log2(MAX_REST / REST) + 12 * HOUR / MAX_REST
    assert cluster.total_asked <= first * rounds
    assert max(connection.moves for node in cluster.nodes for connection in node.connections) <= rounds


def test_sticky_clients_are_not_bounced_for_long() -> None:
    cluster = Cluster(lambda cluster: cluster.nodes[0])
    cluster.add("a", 1000)
    cluster.add("b")
    cluster.run(HOUR)
    assert cluster.total_asked <= 3 * cluster.rate * TRIAL


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
    assert cluster.total_asked <= 4 * 2000, "some are led to the pod that crashes, and come back"


def test_old_nodes_that_a_new_one_sees_go_put_nobody_on_trial() -> None:
    """As in a rollout."""
    scales = settled(old=500, b=0)
    assert not scales.weigh(SETTLE, 1000, 0, words(b=0, c=0))
    assert not scales.weigh(SETTLE + 5, 1000, 0, words(b=0, c=0))
    assert scales.weigh(2 * SETTLE, 1000, 0, words(b=0, c=0))


def test_node_that_is_cut_off_and_comes_back_is_not_new() -> None:
    scales = settled(b=0)
    assert scales.weigh(SETTLE, 1000, 0, words(b=0))
    for now in (20.0, 25.0, 40.0):
        assert not scales.weigh(now, 1000, 0, {})
    assert not scales.weigh(45.0, 1000, 0, words(b=0))
    assert scales.weigh(45.0 + SETTLE, 1000, 0, words(b=0))


def test_who_is_cut_off_moves_nobody() -> None:
    cluster = Cluster(to_the_emptiest)
    nodes = [cluster.add(name, count) for name, count in (("a", 900), ("b", 900), ("c", 0))]
    for node in nodes:
        node.hears = False
    cluster.run(HOUR)
    moved = sum(count for at, _, count in cluster.asked if at > 1000.0 + STALE + INTERVAL)
    assert moved == 0
    for node in nodes:
        node.hears = True
    cluster.until_balanced(1.15, within=DELAY + SETTLE + 300 / cluster.rate)


def test_a_node_that_takes_none_neither_counts_nor_moves() -> None:
    cluster = Cluster(to_the_emptiest)
    for name in ("a", "b"):
        cluster.add(name, 500)
    full = cluster.add("ill", 3000)
    empty = cluster.add("empty")
    full.accepting = empty.accepting = False
    for node in (full, empty):
        node.tell()
    cluster.run(HOUR)
    assert not cluster.asked


# --- one node's decisions ---------------------------------------------------------------------------------------------


def words(ages: float = 1.0, /, **counts: int) -> Mapping[str, NodeReport]:
    return {
        name: NodeReport(ages, NodeState(connections=count, started=0.0, version="")) for name, count in counts.items()
    }


def settled(**counts: int) -> RebalancePolicy:
    """Scales that have known these nodes for long enough."""
    scales = RebalancePolicy(0.1, 10.0)
    scales.weigh(0.0, 100, 0, words(**counts))
    return scales


def test_alone_there_is_nobody_to_move_to() -> None:
    scales = RebalancePolicy(0.1, 10.0)
    assert scales.weigh(0.0, 10_000, 0, {}) == 0
    assert scales.weigh(SETTLE, 10_000, 0, {}) == 0
    assert scales.surplus == 0


def test_the_surplus_is_told_before_anything_moves() -> None:
    scales = settled(b=0)
    assert scales.weigh(1.0, 1000, 0, words(b=0)) == 0
    assert scales.surplus == 1000 - 500 - math.floor(allowed(500))
    assert scales.weigh(SETTLE, 1000, 0, words(b=0)) == 10 * INTERVAL


def test_those_who_have_been_asked_count_as_gone() -> None:
    assert settled(b=0).weigh(SETTLE, 1000, 480, words(b=0)) == 0
    assert settled(b=0).weigh(SETTLE, 1000, 420, words(b=0)) == 1000 - 420 - 500 - math.floor(allowed(500) / 2)


def test_a_node_that_comes_or_goes_is_waited_for() -> None:
    scales = settled(b=0)
    assert scales.weigh(SETTLE, 1000, 0, words(b=0))
    assert not scales.weigh(SETTLE + 5, 1000, 0, words(b=0, c=0))
    assert not scales.weigh(2 * SETTLE, 1000, 0, words(b=0, c=0))
    assert scales.weigh(2 * SETTLE + 5, 1000, 0, words(b=0, c=0))


def test_old_words_are_not_acted_on() -> None:
    assert not settled(b=0).weigh(SETTLE, 1000, 0, words(STALE + 0.1, b=0))
    assert settled(b=0).weigh(SETTLE, 1000, 0, words(STALE, b=0))


def test_while_a_node_drains_its_connections_are_waited_for() -> None:
    scales = settled(b=0)
    leaving = {
        "c": NodeReport(1.0, NodeState(connections=500, started=0.0, version="", accepting=False, draining=True))
    }
    assert not scales.weigh(SETTLE, 1000, 0, {**words(b=0), **leaving})
    assert scales.weigh(SETTLE + 5, 1000, 0, words(b=0))


def test_few_connections_are_left_to_chance() -> None:
    assert not settled(b=0).weigh(SETTLE, 16, 0, words(b=0)), "16 and 0 are within three standard deviations of 8"
    assert settled(b=0).weigh(SETTLE, 40, 0, words(b=0))


def test_what_does_not_help_is_given_up_and_tried_again_later() -> None:
    scales, now, asked = settled(b=0), SETTLE, 0
    while count := scales.weigh(now, 1000, 0, words(b=0)):
        scales.moved(count)
        asked += count
        now += INTERVAL
    assert asked == 10 * TRIAL
    assert scales.surplus, "the gauge goes on telling"
    assert not scales.weigh(now + REST - 1, 1000, 0, words(b=0))
    assert scales.weigh(now + REST, 1000, 0, words(b=0))


def test_a_word_of_an_older_version_counts() -> None:
    state = decode_node_state(b'{"connections":7,"started":1.0,"version":"0.1.0","gone":false}')
    assert state.accepting
    assert not state.draining


@pytest.mark.parametrize("connections", ["-1", "9007199254740993", "1.5"])
def test_a_word_that_no_node_can_have_said_is_not_understood(connections: str) -> None:
    """It would be in everybody's mean."""
    with pytest.raises(msgspec.ValidationError):
        decode_node_state(f'{{"connections":{connections},"started":1.0,"version":"9"}}')
