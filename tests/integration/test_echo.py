"""Not to me: events that the connection of their publisher does not get, or drops."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.core.channel import ChannelKey
from service.core.event import Delivery, Publication
from service.realtime.ids import is_connection_of, new_connection_id
from tests.integration.cluster import cluster
from tests.support.api_client import ask, get
from tests.support.harness import Client, Running, serving
from tests.support.shared_broker import Bus

pytestmark = pytest.mark.slow

CONTRACT = """
channels:
  "pad:{pad}":
    subscribe: everyone
    presence: true
    history: {events: 50, ttl: 1h}
    events:
      pad.edit: {publish: subscriber, delivery: durable, echo: false}
      pad.title: {publish: subscriber, delivery: latest, key: /slot, echo: false}
      pad.cursor: {publish: subscriber, delivery: ephemeral, echo: false}
      pad.slow: {publish: subscriber, delivery: ephemeral, echo: false, window: 200ms}
      pad.ping: {publish: subscriber, delivery: ephemeral}
      pad.note: {publish: subscriber, delivery: durable}
  "box:{box}":
    subscribe: grant
    presence: true
    events:
      box.cursor: {publish: subscriber, delivery: ephemeral, echo: false}
      box.end: {publish: server, delivery: ephemeral}
"""
PAD = "pad:1"


@pytest.fixture
def contract(tmp_path: Path) -> Path:
    path = tmp_path / "contract.yaml"
    path.write_text(CONTRACT)
    return path


@pytest_asyncio.fixture
async def pad(contract: Path) -> AsyncIterator[Running]:
    async with serving(contract=contract) as running:
        yield running


async def joined(server: Running, user: str, **options: Any) -> Client:
    client = await Client.open(server, user, **options)
    await client.subscribe(PAD)
    return client


async def signal(client: Client, type: str, number: int) -> None:
    await client.send(type=type, channel=PAD, data={"n": number})


async def numbers(client: Client, last: int) -> list[int]:
    """Reads events up to the one with this number."""
    found: list[int] = []
    while not found or found[-1] != last:
        message = await client.receive()
        if message["type"].startswith("pad."):
            found.append(message["data"]["n"])
    return found


# --- ephemeral events ----------------------------------------------------------------------------------------------------


async def test_ephemeral_event_without_echo_reaches_all_but_its_connection(
    make_bus: Callable[[], Bus], contract: Path
) -> None:
    async with cluster(make_bus, 2, contract=contract) as nodes:
        first, second = (member.server for member in nodes.members)
        ann, tab, ben = await joined(first, "ann"), await joined(second, "ann"), await joined(second, "ben")
        for number in range(1, 6):
            await signal(ann, "pad.cursor", number)
        await signal(ann, "pad.ping", 6)
        assert await numbers(ann, 6) == [6]
        assert await numbers(tab, 6) == [1, 2, 3, 4, 5, 6]
        assert await numbers(ben, 6) == [1, 2, 3, 4, 5, 6]


async def test_members_that_publish_at_once_get_the_events_of_all_others(pad: Running) -> None:
    clients = [await joined(pad, f"user-{index}") for index in range(15)]
    for turn in range(3):
        for index, client in enumerate(clients):
            await signal(client, "pad.slow" if turn else "pad.cursor", 100 * index + turn)
    await pad.publish(PAD, {"type": "pad.ping", "data": {"n": -1}})
    for index, client in enumerate(clients):
        expected = {100 * other + turn for other in range(15) for turn in range(3) if other != index}
        found = await numbers(client, -1)
        assert sorted(found) == sorted([*expected, -1]), "each once"
        for other in range(15):
            assert [number % 100 for number in found if number // 100 == other and number >= 0] == (
                [0, 1, 2] if other != index else []
            )


async def test_ephemeral_event_without_echo_keeps_its_order_with_durable_events(pad: Running) -> None:
    ann, ben = await joined(pad, "ann"), await joined(pad, "ben")
    for number in range(1, 41):
        await signal(ann, "pad.cursor" if number % 2 else "pad.note", number)
    assert await numbers(ann, 40) == list(range(2, 41, 2))
    assert await numbers(ben, 40) == list(range(1, 41))


async def test_member_that_may_not_see_presence_gets_and_misses_the_same(pad: Running) -> None:
    grants = [{"channel": "box:*", "rights": ["subscribe"]}]
    async with pad.client("ann", grants=["box:*"]) as ann, pad.client("ben", grants=grants) as ben:
        for client in (ann, ben):
            assert "presence" not in await client.subscribe("box:1") or client is ann
        for number, client in enumerate((ann, ben, ann), 1):
            await client.send(type="box.cursor", channel="box:1", data={"n": number})
        await pad.publish("box:1", {"type": "box.end", "data": {}})
        for client, theirs in ((ann, [2]), (ben, [1, 3])):
            found = []
            while (message := await client.receive())["type"] != "box.end":
                found += [message["data"]["n"]] if message["type"] == "box.cursor" else []
            assert found == theirs


# --- durable and latest events ---------------------------------------------------------------------------------------------


async def test_durable_and_latest_events_without_echo_reach_all_and_name_the_connection(
    make_bus: Callable[[], Bus], contract: Path
) -> None:
    async with cluster(make_bus, 2, contract=contract) as nodes:
        first, second = (member.server for member in nodes.members)
        ann, ben = await joined(first, "ann"), await joined(second, "ben")
        mine = ann.welcome["connection"]
        await ann.send(type="pad.edit", id="e-1", channel=PAD, data={"n": 1})
        await ann.send(type="pad.title", id="t-1", channel=PAD, data={"slot": "top", "n": 2})
        await ann.send(type="pad.note", id="n-1", channel=PAD, data={"n": 3})
        for client in (ann, ben):
            edit = await client.until("pad.edit")
            assert (edit["offset"], edit["exclude"], edit["from"]) == (1, mine, "ann")
            assert (await client.until("pad.title"))["exclude"] == mine
            assert "exclude" not in await client.until("pad.note")
        for server in (first, second):
            history = (await get(server, f"/channels/{PAD}/history"))["events"]
            assert [event.get("exclude") for event in history] == [mine, None]
            [title] = (await get(server, f"/channels/{PAD}/state"))["state"]
            assert title["exclude"] == mine
        async with second.client("eve") as eve:
            since = {"epoch": (await get(first, f"/channels/{PAD}"))["epoch"], "offset": 0}
            back = await eve.subscribe(PAD, since=since)
            assert [event.get("exclude") for event in back["events"]] == [mine, None]


# --- the backend -----------------------------------------------------------------------------------------------------------


async def test_backend_excludes_a_connection_of_the_user_on_any_node(
    make_bus: Callable[[], Bus], contract: Path
) -> None:
    async with cluster(make_bus, 2, contract=contract) as nodes:
        first, second = (member.server for member in nodes.members)
        ann, tab = await joined(second, "ann"), await joined(second, "ann")
        exclude = ann.welcome["connection"]
        sent = {"from": "ann", "exclude": exclude}
        await first.publish(PAD, {"type": "pad.ping", "data": {"n": 1}, **sent})
        await first.publish(
            PAD, [{"type": "pad.note", "data": {"n": 2}, **sent}, {"type": "pad.note", "data": {"n": 3}}]
        )
        assert await numbers(ann, 3) == [2, 3]
        assert await numbers(tab, 3) == [1, 2, 3]


@pytest.mark.parametrize(
    "sender", [{"from": "ben"}, {}, {"from": "anonymous-x"}], ids=["another user", "nobody", "an anonymous one"]
)
async def test_backend_excluding_a_connection_of_somebody_else_is_refused(pad: Running, sender: dict[str, str]) -> None:
    ann = await joined(pad, "ann")
    event = {"type": "pad.ping", "data": {"n": 1}, "exclude": ann.welcome["connection"], **sender}
    details = (await ask(pad, "POST", f"/channels/{PAD}/events", event)).refused(403, "forbidden")
    assert details["path"] == "$.exclude"
    several = await ask(pad, "POST", f"/channels/{PAD}/events", [event, {"type": "pad.ping", "data": {"n": 2}}])
    assert [result.get("error", {}).get("code") for result in several.body["results"]] == ["forbidden", None]
    assert await numbers(ann, 2) == [2]


def test_connection_id_belongs_to_its_user_only() -> None:
    ids = [new_connection_id("ann") for _ in range(100)]
    assert len(set(ids)) == 100
    for id in ids:
        assert is_connection_of(id, "ann")
        assert not any(is_connection_of(id, user) for user in ("ben", "", "ann ", "Ann"))
    assert not is_connection_of("", "ann")
    assert not is_connection_of(ids[0][:-1], "ann")


async def test_event_by_another_user_is_not_kept_from_a_connection(pad: Running) -> None:
    ann = await joined(pad, "ann")
    node = pad.service.node
    publication = Publication(
        ChannelKey("default", PAD),
        "pad.ping",
        "p-1",
        Delivery.EPHEMERAL,
        b'{"n": 1}',
        "ben",
        0,
        exclude=ann.welcome["connection"],
    )
    await node.broker.publish(publication)
    assert await numbers(ann, 1) == [1]
