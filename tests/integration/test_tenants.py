"""Two tenants with the same channels and the same users never see a byte of each other."""

from __future__ import annotations

import json
import random
from contextlib import AsyncExitStack
from typing import Any

import jwt
import pytest

from service.core.broker import PublishResult
from service.core.channel import ChannelKey
from service.core.event import Event
from service.core.identity import Identity
from service.core.position import Position
from service.errors import ErrorCode
from tests.support.harness import API_KEY, OTHER_API_KEY, SECRET, Client, Running, serving, token
from tests.support.raw import ask, bearer

pytestmark = pytest.mark.slow

TENANTS = {"default": API_KEY, "other": OTHER_API_KEY}


def flash(tenant: str) -> dict[str, Any]:
    """An event whose every part says whose it is."""
    return {"type": "news.flash", "id": f"of-{tenant}", "data": {"secret": f"canary-of-{tenant}"}}


async def call(server: Running, method: str, path: str, tenant: str, body: Any = None) -> tuple[int, str]:
    """A call of the backend API with the tenant's key."""
    headers = {"Authorization": f"Bearer {TENANTS[tenant]}"}
    async with server.http.request(method, f"{server.url}/api/v1{path}", headers=headers, json=body) as response:
        return response.status, await response.text()


class TestSameNames:
    async def test_events_of_every_class_stay_in_their_tenant(self, server: Running) -> None:
        async with AsyncExitStack() as stack:
            clients = {
                tenant: await stack.enter_async_context(server.client("ann", tenant=tenant)) for tenant in TENANTS
            }
            for client in clients.values():
                for channel in ("room:1", "board:1", "inbox:ann", "wall:1"):
                    await client.subscribe(channel)
            sent: list[tuple[str, dict[str, Any]]] = [
                ("room:1", {"type": "chat.message", "data": {"text": "secret"}}),
                ("room:1", {"type": "chat.typing", "data": {}}),
                ("room:1", {"type": "chat.pinned", "data": {"slot": "top", "text": "secret"}}),
                ("board:1", {"type": "ticker.price", "data": {"symbol": "A", "price": 1}}),
                ("inbox:ann", {"type": "inbox.item", "data": {"text": "secret"}}),
                ("wall:1", {"type": "wall.wave", "data": {}}),
            ]
            for channel, event in sent:
                await server.publish(channel, event, TENANTS["default"])
                await clients["default"].until(event["type"], channel=channel)
            await clients["other"].ask("ping")
            assert [m for m in clients["other"].received if m["type"] != "presence.joined"] == []
            assert all(message["from"] == "ann" for message in clients["other"].received)

    async def test_publish_stays_in_its_tenant(self, server: Running) -> None:
        async with server.client("ann") as mine, server.client("ann", tenant="other") as theirs:
            for client in (mine, theirs):
                await client.subscribe("room:1")
            acks = [await client.ask("chat.message", channel="room:1", data={"text": "x"}) for client in (mine, theirs)]
            assert [ack["offset"] for ack in acks] == [1, 1], "each tenant counts for itself"
            for client in (mine, theirs):
                page = await client.ask("history", channel="room:1")
                assert [event["offset"] for event in page["events"]] == [1]

    async def test_event_id_is_separate_for_each_tenant(self, server: Running) -> None:
        async with server.client("ann") as mine, server.client("ann", tenant="other") as theirs:
            for client in (mine, theirs):
                await client.send(type="news.comment", id="m", channel="news:1", data={})
                ack = await client.expect("ack", id="m", offset=1)
                assert "duplicate" not in ack
            for tenant, key in TENANTS.items():
                receipt = await server.publish("news:2", flash(tenant) | {"id": "m"}, key)
                assert receipt["duplicate"] is False

    async def test_history_state_and_snapshots_are_separate(self, server: Running) -> None:
        await server.publish("news:1", flash("default"))
        await server.publish("board:1", {"type": "ticker.price", "data": {"symbol": "canary", "price": 1}})
        async with server.client("ann", tenant="other") as theirs:
            news = await theirs.subscribe("news:1")
            board = await theirs.subscribe("board:1")
            page = await theirs.ask("history", channel="news:1", after=0, limit=1000)
            assert (news["offset"], news["events"], board["state"], page["events"]) == (0, [], [], [])
            assert "canary" not in json.dumps([news, board, page])

    async def test_position_of_another_tenant_is_not_recovered(self, server: Running) -> None:
        receipt = await server.publish("news:1", flash("default"))
        await server.publish("news:1", flash("default") | {"id": "second"})
        await server.publish("news:1", flash("other"), OTHER_API_KEY)
        async with server.client("ann", tenant="other") as theirs:
            for offset in (0, 1):
                since = {"epoch": receipt["epoch"], "offset": offset, "id": receipt["id"]}
                reply = await theirs.subscribe("news:1", since=since)
                assert (reply["recovered"], reply["events"], reply["offset"]) == (False, [], 1)
                assert reply["epoch"] != receipt["epoch"]
                await theirs.ask("unsubscribe", channel="news:1")

    async def test_presence_is_separate(self, server: Running) -> None:
        async with server.client("ann") as mine, server.client("eve", tenant="other") as theirs:
            await mine.subscribe("room:1")
            await theirs.subscribe("room:1")
            for client, user in ((mine, "ann"), (theirs, "eve")):
                view = (await client.ask("presence", channel="room:1"))["presence"]
                assert (view["count"], [member["user"] for member in view["members"]]) == (1, [user])
                assert all(message["from"] == user for message in client.received)

    async def test_ending_connections_and_subscriptions_stays_in_its_tenant(self, server: Running) -> None:
        async with server.client("ann") as mine, server.client("ann", tenant="other") as theirs:
            for client in (mine, theirs):
                await client.subscribe("room:1")
            status, _ = await call(server, "POST", "/users/ann/subscribe", "default", {"channel": "room:2"})
            assert status == 200
            await mine.until("subscribed", channel="room:2")
            status, _ = await call(server, "POST", "/users/ann/unsubscribe", "default", {"channel": "room:1"})
            assert status == 200
            await mine.until("unsubscribed", channel="room:1", code="removed")
            status, _ = await call(server, "POST", "/users/ann/disconnect", "default", {})
            assert status == 200
            assert await mine.closed() == 4403
            await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}}, OTHER_API_KEY)
            await theirs.until("chat.message")

    @pytest.mark.parametrize(
        "path",
        [
            "/channels",
            "/channels?prefix=news",
            "/channels/news:1",
            "/channels/news:1/history",
            "/channels/board:1/state",
            "/channels/room:1/presence",
        ],
    )
    async def test_api_shows_only_the_tenant_of_its_key(self, server: Running, path: str) -> None:
        async with server.client("canary") as mine:
            await mine.subscribe("room:1")
            await server.publish("news:1", flash("default") | {"id": "canary"})
            await server.publish("board:1", {"type": "ticker.price", "data": {"symbol": "canary", "price": 1}})
            epoch = (await mine.ask("history", channel="news:1"))["epoch"]
            status, seen = await call(server, "GET", path, "other")
            assert status == 200
            assert "canary" not in seen
            assert epoch not in seen
            if path.startswith("/channels?") or path == "/channels":
                assert json.loads(seen)["channels"] == []
            status, own = await call(server, "GET", path, "default")
            assert status == 200
            assert own != seen

    async def test_refresh_does_not_change_the_tenant(self, server: Running) -> None:
        async with server.client("ann") as mine:
            assert (await mine.ask("refresh", token=token("ann", tenant="other")))["code"] == "forbidden"
            await mine.subscribe("news:1")
            await server.publish("news:1", flash("other"), OTHER_API_KEY)
            await server.publish("news:1", flash("default"))
            assert (await mine.until("news.flash"))["id"] == "of-default"


@pytest.mark.parametrize("tenant", ["a/b", "", "a b", "a:b", "..", "x" * 65, "a\n", None, 7, ["default"]])
async def test_tenant_name_reaches_no_other_tenant(server: Running, tenant: Any) -> None:
    """`..` is a name like any other: no tenant is ever part of a path. Everything else here is refused with its token."""
    claims = jwt.decode(token("ann"), SECRET, algorithms=["HS256"], audience="tidewire")
    given = jwt.encode(claims | {"tenant": tenant}, SECRET, algorithm="HS256")
    answer = await ask(server, "/ws", bearer(given), upgrade=False)
    assert answer.status == (426 if tenant == ".." else 401)


TRIES = 10_000


def _is_foreign(event: Event, tenant: str) -> bool:
    return event.channel.tenant != tenant or f'"{tenant}"'.encode() not in event.data


async def test_random_store_calls_move_no_byte_between_tenants() -> None:
    """Publishing, resuming, paging, looking around: at the level of the node, with names that only differ in their tenant."""
    chance = random.Random(20_261_122)
    tenants = [f"tenant-{number}" for number in range(8)]
    channels = [f"{kind}:{number}" for kind in ("news", "room", "board", "inbox") for number in range(4)]
    events = {"news": "news.flash", "room": "chat.message", "board": "ticker.price", "inbox": "inbox.item"}
    tried = dict.fromkeys(("publish", "snapshot", "history", "channels", "presence", "foreign position"), 0)
    foreign = 0
    async with serving() as server:
        node = server.service.node
        positions: list[tuple[str, str, Position]] = []
        for number in range(TRIES):
            tenant, channel = chance.choice(tenants), chance.choice(channels)
            key = ChannelKey(tenant, channel)
            what = chance.choice(tuple(tried))
            tried[what] += 1
            if what == "publish":
                receipt = node.publisher.publish(
                    Identity(tenant=tenant, user="", is_backend=True),
                    channel=channel,
                    type=events[channel.partition(":")[0]],
                    data=_data(channel, tenant),
                    id=f"m-{number % 50}",  # the same ids everywhere: none may count as another tenant's duplicate
                    key=None,
                    sender="ann",
                )
                assert isinstance(receipt, PublishResult), "the in-memory broker does not wait"
                if receipt.offset is not None:
                    positions.append((tenant, channel, Position(receipt.epoch, receipt.offset, receipt.id)))
            elif what == "snapshot":
                snapshot = await node.broker.snapshot(key, None, 1000, 1 << 20)
                foreign += sum(_is_foreign(event, tenant) for event in (*snapshot.state, *snapshot.missed))
            elif what == "history":
                page = await node.broker.history(key, chance.choice((None, 0)), None, 1000)
                foreign += sum(_is_foreign(event, tenant) for event in page.events)
            elif what == "channels":
                for info in await node.broker.list_channels(tenant, "", 1000):
                    own = await node.broker.history(ChannelKey(tenant, info.name), None, None, 1)
                    foreign += own.position != info.position
            elif what == "presence":
                user = f"{tenant}-{number % 5}"
                await node.streams.presence.join(key, user, f"c-{number}", None)
                view = await node.streams.presence.view(key)
                foreign += sum(not member.user.startswith(tenant) for member in view.members or ())
            elif positions:
                owner, name, position = chance.choice(positions)
                snapshot = await node.broker.snapshot(ChannelKey(tenant, name), position, 1000, 1 << 20)
                foreign += sum(_is_foreign(event, tenant) for event in snapshot.missed)
                foreign += tenant != owner and snapshot.recovered is True
        assert sum(tried.values()) == TRIES
        assert min(tried.values()) > TRIES / 10
        assert len(positions) > 500
        assert foreign == 0


def _data(channel: str, tenant: str) -> bytes:
    if channel.startswith("room"):
        return json.dumps({"text": tenant}).encode()
    if channel.startswith("board"):
        return json.dumps({"symbol": tenant, "price": 1}).encode()
    return json.dumps({"of": tenant}).encode()


async def test_random_commands_deliver_nothing_of_another_tenant() -> None:
    """The same, from outside: what a client gets, byte by byte, never names the other tenant."""
    chance = random.Random(7)
    free = {"per_second": 1e6, "burst": 1_000_000}
    limits = dict.fromkeys(("connection_rate", "user_rate", "ip_rate", "tenant_rate"), free)
    async with serving(limits=limits) as server, AsyncExitStack() as stack:
        clients: list[tuple[str, Client]] = []
        for tenant in TENANTS:
            for user in ("ann", "ben"):
                info = {"of": tenant}
                client = await stack.enter_async_context(server.client(user, tenant=tenant, info=info, grants=["**"]))
                clients.append((tenant, client))
        heard: dict[str, list[str]] = {tenant: [] for tenant in TENANTS}
        positions: list[dict[str, Any]] = []

        async def command(tenant: str, client: Client) -> None:
            channel = chance.choice(["room:1", "room:2", "news:1", "board:1", "inbox:ann", "inbox:ben"])
            kind = chance.choice(["subscribe", "unsubscribe", "history", "presence", "publish", "resume", "api"])
            fields: dict[str, Any] = {"channel": channel}
            if kind == "api":
                body = {"type": "news.flash", "data": {"of": tenant}}
                heard[tenant].append((await call(server, "POST", "/channels/news:1/events", tenant, body))[1])
                return
            if kind == "publish":
                kind, fields["channel"], fields["data"] = "news.comment", "news:1", {"of": tenant}
                if channel.startswith("room"):
                    kind, fields["channel"], fields["data"] = "chat.message", channel, {"text": tenant}
            elif kind == "resume":
                kind = "subscribe"
                if positions:
                    fields["since"] = chance.choice(positions)
            reply = await client.ask(kind, **fields)
            heard[tenant].append(json.dumps(reply))
            if reply["type"] in ("subscribed", "history"):
                position = {name: reply[name] for name in ("epoch", "offset")}
                positions.append(position | ({"id": reply["last"]} if "last" in reply else {}))

        for _ in range(250):
            for tenant, client in clients:
                await command(tenant, client)
        for tenant, client in clients:
            await client.ask("ping")
            heard[tenant] += map(json.dumps, client.received)
        assert min(map(len, heard.values())) >= 500
        for tenant, other in (("default", "other"), ("other", "default")):
            said = "".join(heard[tenant])
            assert f'"{tenant}"' in said, "its own it does hear"
            assert f'"{other}"' not in said


async def test_backend_needs_a_key_of_the_tenant(server: Running) -> None:
    for key in ("", "x" * 24, API_KEY[:-1], API_KEY + "x", API_KEY.upper()):
        async with server.http.post(
            f"{server.url}/api/v1/channels/news:1/events", json=flash("x"), headers={"Authorization": f"Bearer {key}"}
        ) as response:
            assert response.status == 401
            assert (await response.json(content_type=None))["code"] == ErrorCode.INVALID_API_KEY.code
