"""Facts: each begin and each end is told once and in order, whichever node dies and whenever the store is away."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from service.core.channel import ChannelKey
from service.core.webhooks import ChannelChange, ChannelWebhook
from tests.support.exported import exported
from tests.support.facts import DEBOUNCE, ENDPOINT, ROOM, TENANT, TTL, WEBHOOK, Node, Stage

SWEPT = TTL * 7 / 6 + 1
"""Seconds in which the facts of a killed node end."""


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage("n1", "n2")
    yield stage
    await stage.close()


@pytest.fixture
def one(stage: Stage) -> Node:
    return stage.nodes[0]


@pytest.fixture
def two(stage: Stage) -> Node:
    return stage.nodes[1]


async def test_client_is_told_of_at_both_ends(stage: Stage, one: Node) -> None:
    one.connect("c-1", "ann")
    await stage.rest()
    [told] = stage.store.entries
    assert (told.user, told.connection, told.client, told.code) == ("ann", "c-1", "tidewire-js/1.2.0", None)
    assert told.id.startswith("wh_")
    one.disconnect("c-1", 4401)
    one.disconnect("c-1", 1000)
    await stage.rest()
    [_, ended] = stage.store.entries
    assert (ended.type, ended.user, ended.connection, ended.code) == ("client.disconnected", "ann", "c-1", 4401)
    assert ended.client == "tidewire-js/1.2.0"
    assert stage.store.told() == [("connected", "c-1"), ("disconnected", "c-1")]


async def test_anonymous_client_is_told_without_user(stage: Stage, one: Node) -> None:
    one.connect("c-1", "")
    await stage.rest()
    assert stage.store.entries[0].user is None


async def test_client_that_ends_before_it_was_told_is_told_of_never(stage: Stage, one: Node, two: Node) -> None:
    one.connect("c-1")
    one.disconnect("c-1")
    await stage.wait(2 * TTL)
    assert stage.store.told() == []
    assert one.calls == two.calls, "beside the usual checks, the store was not asked"


async def test_client_that_ends_while_it_is_told_is_told_of_in_order(stage: Stage, one: Node) -> None:
    one.gate.clear()
    one.connect("c-1")
    await stage.rest()
    one.disconnect("c-1", 1001)
    one.gate.set()
    await stage.rest()
    assert stage.store.told() == [("connected", "c-1"), ("disconnected", "c-1")]


async def test_clients_of_killed_node_disconnect_with_1006(stage: Stage, one: Node) -> None:
    for number in range(600):
        one.connect(f"c-{number}")
    await stage.wait(1)
    await one.kill()
    await stage.wait(SWEPT)
    ends = [entry for entry in stage.store.entries if entry.type == "client.disconnected"]
    assert {entry.connection for entry in ends} == {f"c-{number}" for number in range(600)}
    assert {entry.code for entry in ends} == {1006}
    assert len(ends) == 600
    await stage.wait(4 * TTL)
    assert len(stage.store.entries) == 1200


async def test_client_of_node_that_dies_before_it_told_is_told_of_by_the_sweep(stage: Stage, one: Node) -> None:
    one.connect("c-1")
    one.stop("tell")
    await stage.rest()
    assert stage.store.told() == []
    await one.kill()
    await stage.wait(SWEPT)
    assert stage.store.told() == [("connected", "c-1"), ("disconnected", "c-1")]


@pytest.mark.parametrize("late", [False, True])
async def test_client_whose_entry_had_no_answer_is_told_of_once(stage: Stage, one: Node, *, late: bool) -> None:
    one.fail_next("join_all", late=late)
    one.connect("c-1")
    await stage.wait(2 * TTL)
    assert stage.store.told() == [("connected", "c-1")]


@pytest.mark.parametrize("late", [False, True])
async def test_end_that_had_no_answer_is_told_once(stage: Stage, one: Node, *, late: bool) -> None:
    one.connect("c-1")
    await stage.rest()
    one.fail_next("tell", late=late)
    one.disconnect("c-1", 1001)
    await stage.wait(2 * TTL)
    assert stage.store.told() == [("connected", "c-1"), ("disconnected", "c-1")]


async def test_session_that_moves_to_another_node_is_told_once(stage: Stage, one: Node, two: Node) -> None:
    one.connect("c-1")
    await stage.rest()
    one.facts.client_left("c-1", TENANT)
    two.connect("c-1")
    await stage.wait(4 * TTL)
    assert stage.store.told() == [("connected", "c-1")]
    two.disconnect("c-1")
    await stage.wait(4 * TTL)
    assert stage.store.told() == [("disconnected", "c-1")]


async def test_session_that_moves_and_is_not_taken_over_disconnects(stage: Stage, one: Node) -> None:
    one.connect("c-1")
    await stage.rest()
    one.facts.client_left("c-1", TENANT)
    await stage.wait(SWEPT)
    assert stage.store.told() == [("connected", "c-1"), ("disconnected", "c-1")]


async def test_channel_is_occupied_by_the_first_node_and_vacated_after_the_last(
    stage: Stage, one: Node, two: Node
) -> None:
    one.occupy()
    await stage.rest()
    two.occupy()
    one.vacate()
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("occupied", "room:1")]
    two.vacate()
    await stage.wait(DEBOUNCE - 0.5)
    assert stage.store.told() == []
    await stage.wait(1)
    assert stage.store.told() == [("vacated", "room:1")]
    one.occupy()
    await stage.wait(DEBOUNCE)
    assert stage.store.told() == [("occupied", "room:1")]


async def test_channel_that_is_occupied_again_within_the_debounce_is_told_nothing(stage: Stage, one: Node) -> None:
    one.occupy()
    for _ in range(3):
        await stage.wait(DEBOUNCE - 0.5)
        one.vacate()
        await stage.wait(DEBOUNCE - 0.5)
        one.occupy()
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("occupied", "room:1")]


async def test_channel_that_is_occupied_again_while_its_end_is_told_is_told_anew(stage: Stage, one: Node) -> None:
    one.occupy()
    await stage.rest()
    one.vacate()
    await stage.wait(DEBOUNCE - 0.5)
    one.gate.clear()
    stage.store.clock.advance(0.5)
    await stage.rest()
    one.occupy()
    one.gate.set()
    await stage.rest()
    assert stage.store.told() == [("occupied", "room:1"), ("vacated", "room:1"), ("occupied", "room:1")]
    one.vacate()
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("vacated", "room:1")]


async def test_channel_of_killed_node_is_vacated_unless_another_has_it(stage: Stage, one: Node, two: Node) -> None:
    other = ChannelKey(TENANT, "room:2")
    one.occupy()
    one.occupy(other)
    await stage.rest()
    two.occupy(other)
    await stage.wait(1)
    await one.kill()
    await stage.wait(SWEPT)
    assert stage.store.told() == [("occupied", "room:1"), ("occupied", "room:2"), ("vacated", "room:1")]
    two.vacate(other)
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("vacated", "room:2")]


async def test_channel_of_killed_node_that_is_left_before_the_sweep_is_vacated_once(
    stage: Stage, one: Node, two: Node
) -> None:
    one.occupy()
    two.occupy()
    await stage.wait(1)
    await one.kill()
    await stage.wait(TTL - DEBOUNCE - 2)
    two.vacate()
    await stage.wait(SWEPT)
    assert stage.store.told() == [("occupied", "room:1"), ("vacated", "room:1")]


async def test_channel_that_another_node_enters_while_its_end_is_told_is_told_anew(
    stage: Stage, one: Node, two: Node
) -> None:
    one.occupy()
    await stage.rest()
    one.vacate()
    await stage.wait(DEBOUNCE - 0.5)
    removal = one.stop("leave_all")
    stage.store.clock.advance(0.5)
    await stage.rest()
    two.occupy()
    await stage.rest()
    assert stage.store.told() == [("occupied", "room:1"), ("vacated", "room:1")]
    removal.set()
    await stage.rest()
    assert stage.store.told() == [("occupied", "room:1")]
    two.vacate()
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("vacated", "room:1")]
    await stage.wait(4 * TTL)
    assert stage.store.told() == []


async def test_channel_that_a_node_enters_while_a_sweep_ends_it_is_told_anew(stage: Stage, one: Node) -> None:
    stage.nodes.append(Node("n3", stage.store))
    for node in stage.nodes[:2]:
        node.occupy()
    await stage.wait(1)
    for node in stage.nodes[:2]:
        await node.kill()
    third = stage.nodes[2]
    await stage.wait(TTL - 2)
    stage.store.told()
    removal = third.stop("leave_all")
    await stage.wait(SWEPT - TTL + 2)
    assert stage.store.told() == [("vacated", "room:1")]
    third.occupy()
    await stage.rest()
    removal.set()
    await stage.rest()
    assert stage.store.told() == [("occupied", "room:1")]


async def test_node_that_left_last_without_an_answer_tells_the_end(stage: Stage, one: Node, two: Node) -> None:
    one.occupy()
    await stage.rest()
    two.occupy()
    await stage.rest()
    one.vacate()
    await stage.wait(DEBOUNCE - 0.5)
    removal = one.stop("leave_all")  # it has found the other node, so it has told nothing
    one.fail_next("leave_all", late=True)
    stage.store.clock.advance(0.5)
    await stage.rest()
    two.vacate()
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("occupied", "room:1")]
    removal.set()
    await stage.wait(2)
    assert stage.store.told() == [("vacated", "room:1")]


async def test_node_that_left_and_was_entered_again_without_an_answer_tells_both(stage: Stage, one: Node) -> None:
    one.occupy()
    await stage.rest()
    one.vacate()
    await stage.wait(DEBOUNCE - 0.5)
    one.fail_next("leave_all", late=False)
    stage.store.clock.advance(0.5)
    await stage.rest()
    one.occupy()
    await stage.wait(5)
    assert stage.store.told() == [("occupied", "room:1"), ("vacated", "room:1"), ("occupied", "room:1")]


async def test_nothing_ends_before_all_nodes_have_renewed_after_a_loss(stage: Stage, one: Node, two: Node) -> None:
    one.occupy()
    two.occupy()
    await stage.wait(1)
    two.is_away = True
    stage.store.lose_everything()
    stage.store.told()
    while not stage.store.entries:
        await stage.wait(0.5)
    assert stage.store.told() == [("occupied", "room:1")], "one has entered it again"
    one.vacate()
    await stage.wait(DEBOUNCE + 2)
    two.is_away = False
    await stage.wait(TTL)
    assert stage.store.told() == []
    two.vacate()
    await stage.wait(TTL)
    assert stage.store.told() == [("vacated", "room:1")]


async def test_nodes_that_leave_at_the_same_time_tell_the_end_once(stage: Stage, one: Node, two: Node) -> None:
    one.occupy()
    two.occupy()
    await stage.wait(1)
    one.vacate()
    removal = one.stop("leave_all")
    await stage.wait(DEBOUNCE + 1)
    two.vacate()
    await stage.wait(DEBOUNCE + 1)
    assert stage.store.told() == [("occupied", "room:1")]
    removal.set()
    await stage.wait(1)
    assert stage.store.told() == [("vacated", "room:1")]


async def test_node_that_leaves_while_a_sweep_removes_the_last_other_entry_is_told_of(
    stage: Stage, one: Node, two: Node
) -> None:
    two.sweeper.close()
    one.connect("c-1")
    two.connect("c-1")
    await stage.rest()
    one.facts.client_left("c-1", TENANT)
    removing = one.stop("leave_all")
    await stage.wait(3 * TTL)
    assert stage.store.told() == [("connected", "c-1")], "a sweep has found the entry of one, and not removed it yet"
    two.disconnect("c-1")
    await stage.rest()
    assert stage.store.told() == [], "the entry of one is still there"
    removing.set()
    await stage.rest()
    assert stage.store.told() == [("disconnected", "c-1")]


async def test_user_is_told_of_once_over_all_connections_and_nodes(stage: Stage, one: Node, two: Node) -> None:
    one.join("ann", "c-1", b'{"name":"Ann"} ')
    await stage.rest()
    assert bytes(stage.store.entries[0].info).strip() == b'{"name":"Ann"}'
    one.join("ann", "c-2")
    two.join("ann", "c-3")
    one.leave("ann", "c-1")
    one.leave("ann", "c-1")
    await stage.wait(2 * DEBOUNCE)
    one.leave("ann", "c-2")
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("joined", "ann")]
    two.leave("ann", "c-3")
    await stage.wait(2 * DEBOUNCE)
    assert bytes(stage.store.entries[0].info) == b""
    assert stage.store.told() == [("left", "ann")]


async def test_drained_node_vacates_nothing_that_other_nodes_take_over(stage: Stage, one: Node, two: Node) -> None:
    one.occupy()
    one.join("ann", "c-1")
    one.connect("c-1")
    await stage.wait(1)
    stage.store.told()
    one.facts.drain()
    one.disconnect("c-1", 1012)
    one.leave("ann", "c-1")
    one.vacate()
    await stage.rest()
    await one.facts.close()
    two.connect("c-2")
    two.join("ann", "c-2")
    two.occupy()
    await stage.wait(4 * TTL)
    assert stage.store.told() == [("disconnected", "c-1"), ("connected", "c-2")]


async def test_drained_node_of_which_nobody_returns_is_told_of_after_the_expiry(stage: Stage, one: Node) -> None:
    one.occupy()
    one.join("ann", "c-1")
    await stage.wait(1)
    stage.store.told()
    one.facts.drain()
    one.leave("ann", "c-1")
    one.vacate()
    await one.facts.close()
    await stage.wait(SWEPT)
    assert sorted(stage.store.told()) == [("left", "ann"), ("vacated", "room:1")]


async def test_everything_that_was_there_when_all_nodes_died_ends_at_the_next_start(stage: Stage, one: Node) -> None:
    one.connect("c-1")
    one.occupy()
    one.join("ann", "c-1")
    await stage.wait(1)
    for node in stage.nodes:
        await node.kill()
    stage.store.clock.advance(3_600)
    stage.store.told()
    stage.nodes.append(Node("n3", stage.store))
    await stage.wait(TTL)
    assert sorted(stage.store.told()) == [("disconnected", "c-1"), ("left", "ann"), ("vacated", "room:1")]


async def test_begins_and_ends_of_an_outage_are_told_after_it(stage: Stage, one: Node) -> None:
    one.connect("c-1")
    await stage.rest()
    one.is_away = True
    one.connect("c-2")
    one.connect("c-3")
    one.disconnect("c-1", 1001)
    await stage.wait(5)
    one.disconnect("c-3", 1001)
    assert stage.store.told() == [("connected", "c-1")]
    one.is_away = False
    await stage.wait(20)
    told = stage.store.told()
    assert ("disconnected", "c-1") in told
    assert ("connected", "c-2") in told
    assert [what for what, who in told if who == "c-3"] in ([], ["connected", "disconnected"])


@pytest.mark.parametrize("seconds", [2 * TTL + half / 2 for half in range(11)])
async def test_long_outage_of_all_nodes_ends_nothing_that_goes_on(
    stage: Stage, one: Node, two: Node, seconds: float
) -> None:
    one.connect("c-1")
    two.occupy()
    await stage.wait(1)
    stage.store.told()
    one.is_away = two.is_away = True
    await stage.wait(seconds)
    two.is_away = False
    await stage.wait(TTL / 2)
    one.is_away = False
    await stage.wait(4 * TTL)
    assert stage.store.told() == []


async def test_node_that_was_cut_off_is_told_of_as_gone_and_back(stage: Stage, one: Node, two: Node) -> None:
    one.connect("c-1")
    one.connect("c-2")
    await stage.wait(1)
    stage.store.told()
    one.is_away = True
    await stage.wait(SWEPT)
    assert sorted(stage.store.told()) == [("disconnected", "c-1"), ("disconnected", "c-2")]
    one.disconnect("c-2", 1000)
    one.is_away = False
    await stage.wait(TTL)
    assert stage.store.told() == [("connected", "c-1")]
    one.disconnect("c-1")
    await stage.wait(TTL)
    assert stage.store.told() == [("disconnected", "c-1")]


async def test_store_that_lost_its_data_is_told_anew(stage: Stage, one: Node, two: Node) -> None:
    one.occupy()
    two.occupy()
    await stage.wait(1)
    stage.store.told()
    stage.store.lose_everything()
    await stage.wait(TTL)
    assert stage.store.told() == [("occupied", "room:1")], "what waited in the queues may be lost as well"


async def test_ends_above_the_bound_lapse(stage: Stage) -> None:
    stage.nodes.append(Node("n3", stage.store, max_waiting=2))
    node = stage.nodes[2]
    for number in range(4):
        node.connect(f"c-{number}")
    await stage.rest()
    node.is_away = True
    for number in range(4):
        node.disconnect(f"c-{number}", 1001)
    await stage.rest()
    assert exported(node.metrics, "webhook_facts_lapsed_total") == 2
    assert exported(node.metrics, "webhook_facts") == 2
    node.is_away = False
    await stage.wait(SWEPT + TTL)
    codes = sorted(entry.code for entry in stage.store.entries if entry.code is not None)
    assert codes == [1001, 1001, 1006, 1006]


async def test_full_queue_drops_and_counts(stage: Stage, one: Node) -> None:
    stage.store.is_full = True
    one.connect("c-1")
    one.disconnect("c-1")
    one.connect("c-2")
    await stage.rest()
    assert stage.store.dropped == 1
    stage.store.is_full = False
    one.disconnect("c-2")
    await stage.rest()
    assert stage.store.told() == [("disconnected", "c-2")]


async def test_only_what_the_contract_asks_for_is_told(stage: Stage, one: Node) -> None:
    vacated = ChannelWebhook(ENDPOINT, frozenset({ChannelChange.VACATED}))
    one.facts.channel_occupied(ROOM, vacated)
    one.facts.user_joined(ROOM, vacated, "ann", "c-1", None)
    joined = ChannelWebhook(ENDPOINT, frozenset({ChannelChange.JOINED}))
    one.facts.user_joined(ROOM, joined, "ben", "c-2", None)
    one.facts.channel_occupied(ChannelKey(TENANT, "room:2"), joined)
    await stage.rest()
    one.facts.user_left(ROOM, joined, "ben", "c-2")
    one.facts.channel_vacated(ROOM, vacated)
    await stage.wait(2 * DEBOUNCE)
    assert stage.store.told() == [("joined", "ben"), ("vacated", "room:1")]


async def test_nothing_of_a_tenant_without_endpoint_reaches_the_store(stage: Stage, one: Node) -> None:
    other = ChannelKey("other", "room:1")
    one.facts.client_connected("c-1", "other", "ann", "")
    one.facts.channel_occupied(other, WEBHOOK)
    one.facts.user_joined(other, WEBHOOK, "ann", "c-1", None)
    one.facts.client_disconnected("c-1", "other", 1000)
    one.facts.client_left("c-1", "other")
    one.facts.channel_vacated(other, WEBHOOK)
    one.facts.user_left(other, WEBHOOK, "ann", "c-1")
    one.facts.user_lapses(other, WEBHOOK, "ann", "c-1")
    await stage.rest()
    assert one.calls == 0


async def test_store_of_one_node_ends_what_lapses_after_the_ttl() -> None:
    stage = Stage("n1", is_shared=False)
    [node] = stage.nodes
    node.connect("c-1")
    await stage.rest()
    node.facts.client_left("c-1", TENANT)
    await stage.wait(TTL - 1)
    assert stage.store.told() == [("connected", "c-1")]
    await stage.wait(2)
    assert stage.store.told() == [("disconnected", "c-1")]
    await stage.close()
