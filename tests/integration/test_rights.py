"""Each right by itself: what a grant does not give is shown at no door, by no store, in no tenant."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from itertools import combinations
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from tidewire import Event, Position
from yarl import URL

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.cli.tail import Tail
from service.core.channel import ChannelKey
from service.errors import ErrorCode, ServiceError
from service.protocol.messages import PresenceView
from tests.stores import STORES, broker_of
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Client, Running, serving, token

pytestmark = pytest.mark.slow

KEY = {"Authorization": f"Bearer {API_KEY}"}
TENANTS = {"default": API_KEY, "other": OTHER_API_KEY}
ROOM = "room:1"
RIGHTS = ("subscribe", "history", "presence")
SUBSETS = [subset for size in range(4) for subset in combinations(RIGHTS, size)]


def grants(rights: Sequence[str]) -> list[Any]:
    return [{"channel": "room:*", "rights": [*rights]}]


@pytest_asyncio.fixture(params=STORES)
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with (
        broker_of(request.param) as broker,
        serving(broker_settings=broker, deadlines={"presence_leave": 0.05}) as running,
    ):
        yield running


class Stage:
    """A room of one tenant with a past: two messages, a pinned one, and somebody who is there and sees everything."""

    def __init__(self, server: Running, tenant: str, ann: Client) -> None:
        self.server = server
        self.tenant = tenant
        self.ann = ann
        self.at: dict[str, Any] = {}

    async def say(self, text: str) -> dict[str, Any]:
        event = {"type": "chat.message", "id": f"{text}-id", "data": {"text": text}}
        return await self.server.publish(ROOM, event, TENANTS[self.tenant])

    @property
    def start(self) -> dict[str, Any]:
        """The position before everything."""
        return {"epoch": self.at["epoch"], "offset": 0}

    @property
    def top(self) -> dict[str, Any]:
        return {name: self.at[name] for name in ("epoch", "offset", "id")}

    async def pin(self) -> None:
        event = {"type": "chat.pinned", "data": {"slot": "a", "text": "pin"}}
        await self.server.publish(ROOM, event, TENANTS[self.tenant])

    def client(self, rights: Sequence[str], user: str = "ben", **options: Any) -> Any:
        return self.server.client(user, tenant=self.tenant, grants=grants(rights), **options)

    async def comes_and_goes(self, user: str = "eve") -> None:
        """Somebody joins and leaves; ann has seen both."""
        async with self.client(RIGHTS, user) as passing:
            await passing.subscribe(ROOM)
            await self.ann.until("presence.joined", key=user)
        await self.ann.until("presence.left", key=user)

    def is_foreign(self, message: dict[str, Any]) -> bool:
        others = set(TENANTS) - {self.tenant}
        return any(other in json.dumps(message) for other in others)


@asynccontextmanager
async def staged(server: Running, tenant: str) -> AsyncIterator[Stage]:
    async with server.client("ann", tenant=tenant, info={"of": tenant}) as ann:
        stage = Stage(server, tenant, ann)
        await ann.subscribe(ROOM)
        await stage.pin()
        await stage.say(f"one-{tenant}")
        stage.at = await stage.say(f"two-{tenant}")
        yield stage


@pytest_asyncio.fixture
async def stages(server: Running) -> AsyncIterator[list[Stage]]:
    """The same room of two tenants."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(staged(server, tenant)) for tenant in TENANTS]


def texts(reply: dict[str, Any]) -> list[str]:
    return [event["data"]["text"] for event in reply["events"]]


def check_presence(message: dict[str, Any], rights: Sequence[str]) -> None:
    if "presence" in rights:
        assert {member["user"] for member in message["presence"]["members"]} >= {"ann"}, message
    else:
        assert "presence" not in message, message


@pytest.mark.parametrize("rights", SUBSETS, ids="+".join)
async def test_right_is_checked_on_every_path(stages: list[Stage], rights: tuple[str, ...]) -> None:
    for stage in stages:
        async with stage.client(rights) as ben:
            heard = [
                await _history(stage, ben, rights),
                await _presence(ben, rights),
                *await _subscribing(stage, ben, rights),
            ]
            if "subscribe" in rights:
                heard += await _live(stage, ben, rights)
            assert not [message for message in heard if stage.is_foreign(message)]


async def _history(stage: Stage, ben: Client, rights: Sequence[str]) -> dict[str, Any]:
    page = await ben.ask("history", channel=ROOM, after=0)
    if "history" in rights:
        assert texts(page) == [f"one-{stage.tenant}", f"two-{stage.tenant}"]
    else:
        assert page["code"] == "forbidden"
    bearer = {"Authorization": f"Bearer {token('ben', tenant=stage.tenant, grants=grants(rights))}"}
    async with stage.server.http.get(f"{stage.server.url}/history?channel={ROOM}", headers=bearer) as response:
        over_http = await response.json(content_type=None)
    assert over_http.get("code") == page.get("code")
    assert over_http.get("events") == page.get("events")
    return page


async def _presence(ben: Client, rights: Sequence[str]) -> dict[str, Any]:
    reply = await ben.ask("presence", channel=ROOM)
    if "presence" in rights:
        check_presence(reply, rights)
    else:
        assert reply["code"] == "forbidden"
    return reply


async def _subscribing(stage: Stage, ben: Client, rights: Sequence[str]) -> list[dict[str, Any]]:
    """Joining, joining from a position, and both before `ready`; ben is subscribed afterwards, if he may."""
    if "subscribe" not in rights:
        replies = [
            await ben.ask("subscribe", channel=ROOM),
            await ben.ask("subscribe", channel=ROOM, since=stage.start),
        ]
        assert [reply["code"] for reply in replies] == ["forbidden", "forbidden"]
        return replies
    replies = []
    for since in (None, stage.start, stage.top):
        for held in (False, True):
            async with stage.client(rights, ready=not held) as client:
                asked: dict[str, Any] = {} if since is None else {"since": since}
                await client.send(type="subscribe", id="s", channel=ROOM, **asked)
                if held:
                    await client.send(type="ready")
                reply = await client.until("subscribed", id="s")
            check_presence(reply, rights)
            assert [event["data"]["text"] for event in reply["state"]] == ["pin"], "state belongs to subscribing"
            if since != stage.start:
                assert (texts(reply), reply.get("recovered")) == ([], True if since else None)
            elif "history" in rights:
                assert (texts(reply), reply["recovered"]) == ([f"one-{stage.tenant}", f"two-{stage.tenant}"], True)
            else:
                assert (texts(reply), reply["recovered"]) == ([], False), "as if nothing were kept"
            replies.append(reply)
    headers = {"Authorization": f"Bearer {token('ben', tenant=stage.tenant, grants=grants(rights))}"}
    by_address = await Client.open(stage.server, hello=False, headers=headers, query=f"?channels={ROOM}")
    reply = await by_address.until("subscribed", id=None)
    check_presence(reply, rights)
    assert texts(reply) == []
    await by_address.close()
    return [*replies, reply, await ben.subscribe(ROOM)]


async def _live(stage: Stage, ben: Client, rights: Sequence[str]) -> list[dict[str, Any]]:
    """What comes to a member: every event, and of presence what it may see."""
    await stage.comes_and_goes()
    await stage.say("three")
    heard = [await ben.receive()]
    while heard[-1]["type"] != "chat.message":
        heard.append(await ben.receive())
    of_presence = [message for message in heard if message["type"].startswith("presence.")]
    if "presence" in rights:
        assert [message["type"] for message in of_presence if message["key"] == "eve"] == [
            "presence.joined",
            "presence.left",
        ]
    else:
        assert of_presence == []
    return heard


@pytest.mark.parametrize("rights", [["subscribe"], ["subscribe", "presence"]], ids="+".join)
async def test_member_without_history_gets_events_after_its_join(stages: list[Stage], rights: list[str]) -> None:
    for stage in stages:
        for name in ("none", "top", "start"):
            since = {"none": {}, "top": {"since": stage.top}, "start": {"since": stage.start}}[name]
            async with stage.client(rights, ready=False) as ben:
                await ben.send(type="subscribe", id="s", channel=ROOM, **since)
                await ben.ask("ping")
                stage.at = await stage.say(f"after-{name}")
                await ben.send(type="ready")
                reply = await ben.until("subscribed", id="s")
                assert (texts(reply), reply["offset"]) == ([f"after-{name}"], stage.at["offset"])
                assert reply["recovered"] is (name != "start")


async def test_large_channel_sends_its_count_only_with_the_presence_right() -> None:
    async with serving(presence={"members": 1}) as server, AsyncExitStack() as stack:
        seeing = await stack.enter_async_context(server.client("ann", grants=grants(RIGHTS)))
        blind = await stack.enter_async_context(server.client("ben", grants=grants(["subscribe"])))
        await seeing.subscribe(ROOM)
        assert "presence" not in await blind.subscribe(ROOM)
        await stack.enter_async_context(server.client("eve", grants=grants(RIGHTS)))
        await seeing.until("presence.count")
        await blind.silence()


@pytest.mark.parametrize("rights", [["subscribe"], ["subscribe", "history"], [*RIGHTS]], ids="+".join)
async def test_tail_shows_only_what_its_token_allows(stages: list[Stage], rights: list[str]) -> None:
    for stage in stages:
        shown: asyncio.Queue[Event] = asyncio.Queue()
        given = partial(token, "ben", tenant=stage.tenant, grants=grants(rights))
        since = Position(stage.at["epoch"], 0, None)
        tail = asyncio.create_task(Tail(stage.server.url, ROOM, given, shown.put_nowait, since=since).run())
        try:
            async with asyncio.timeout(DEADLINE):
                heard = [await shown.get()]
                while heard[-1].type != "chat.pinned":  # the state comes last of what `subscribed` brings
                    heard.append(await shown.get())
                past = [event.data["text"] for event in heard[:-1]]
                assert past == ([f"one-{stage.tenant}", f"two-{stage.tenant}"] if "history" in rights else [])
                await stage.comes_and_goes()
                await stage.say("three")
                heard = [await shown.get()]
                while heard[-1].type != "chat.message":
                    heard.append(await shown.get())
        finally:
            tail.cancel()
        assert [event.data["user"] for event in heard if event.key == "eve"] == (
            ["eve", "eve"] if "presence" in rights else []
        )


@pytest.mark.parametrize("path", ["history", "presence", "state", ""])
async def test_api_refuses_keys_of_other_tenants(stages: list[Stage], path: str) -> None:
    for stage in stages:
        url = f"{stage.server.url}/api/v1/channels/{ROOM}/{path}".rstrip("/")
        keys = {TENANTS[stage.tenant]: 200, token("ben", tenant=stage.tenant, grants=["**"]): 401}
        for key, status in keys.items():
            async with stage.server.http.get(url, headers={"Authorization": f"Bearer {key}"}) as response:
                body = await response.text()
                assert response.status == status, body
                assert not stage.is_foreign({"body": body})


class Slow:
    """Stands for reading presence, and gives what it has read when it is told to."""

    def __init__(self, view: Callable[[ChannelKey], Awaitable[PresenceView]]) -> None:
        self._view = view
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def __call__(self, channel: ChannelKey) -> PresenceView:
        found = await self._view(channel)
        self.asked.set()
        await self.goes_on.wait()
        return found


class TestRefresh:
    """Rights follow the newest token."""

    async def test_refresh_without_presence_stops_presence_events(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(RIGHTS) as ben:
                await ben.subscribe(ROOM)
                await ben.send(type="refresh", id="r", token=self.token(stage, "subscribe"))
                await ben.until("presence", id=None, channel=ROOM, presence=None)
                await ben.until("ack", id="r")
                await stage.comes_and_goes()
                await stage.say("three")
                await ben.expect("chat.message")

    async def test_refresh_with_presence_sends_the_view_and_later_events(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(["subscribe"]) as ben:
                await ben.subscribe(ROOM)
                await ben.send(type="refresh", id="r", token=self.token(stage, *RIGHTS))
                told = await ben.expect("presence", id=None, channel=ROOM)
                assert [member["user"] for member in told["presence"]["members"]] == ["ann", "ben"]
                await ben.until("ack", id="r")
                await stage.comes_and_goes()
                await ben.until("presence.joined", key="eve")
                await ben.until("presence.left", key="eve")
                await stage.say("three")
                await ben.until("chat.message")

    async def test_refresh_without_subscribe_ends_the_subscription(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(RIGHTS) as ben:
                await ben.subscribe(ROOM)
                await ben.send(type="refresh", id="r", token=self.token(stage, "history", "presence"))
                await ben.until("unsubscribed", channel=ROOM, code="forbidden")
                await ben.until("ack", id="r")
                await stage.say("three")
                await ben.silence()

    async def test_refresh_without_history_before_ready_hides_history(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(RIGHTS, ready=False) as ben:
                await ben.send(type="subscribe", id="s", channel=ROOM, since=stage.start)
                await ben.send(type="refresh", id="r", token=self.token(stage, "subscribe"))
                await ben.until("ack", id="r")
                await stage.say("after")
                await ben.send(type="ready")
                reply = await ben.until("subscribed", id="s")
                assert (texts(reply), reply["recovered"]) == (["after"], False)
                assert "presence" not in reply

    async def test_refresh_with_rights_before_ready_applies_them(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(["subscribe"], ready=False) as ben:
                await ben.send(type="subscribe", id="s", channel=ROOM)
                await ben.send(type="refresh", id="r", token=self.token(stage, *RIGHTS))
                await ben.expect("ack", id="r")
                await ben.send(type="ready")
                check_presence(await ben.until("subscribed", id="s"), RIGHTS)

    async def test_join_during_a_presence_read_is_sent_after_the_view(
        self, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for stage in stages:
            presence = stage.server.service.node.streams.presence
            slow = Slow(presence.view)

            async with stage.client(["subscribe"]) as ben, stage.client(RIGHTS, "eve") as eve:
                await ben.subscribe(ROOM)
                with monkeypatch.context() as patch:
                    patch.setattr(presence, "view", slow)
                    await ben.send(type="refresh", id="r", token=self.token(stage, *RIGHTS))
                    await slow.asked.wait()
                await eve.subscribe(ROOM)
                await stage.ann.until("presence.joined", key="eve")
                await stage.say("meanwhile")
                await ben.expect("chat.message", data={"text": "meanwhile"})  # behind eve's join, in ben's room too
                slow.goes_on.set()
                told = await ben.expect("presence", id=None)
                assert [member["user"] for member in told["presence"]["members"]] == ["ann", "ben"]
                await ben.until("presence.joined", key="eve")

    async def test_repeated_refresh_sends_presence_after_a_failed_read(
        self, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for stage in stages:
            presence = stage.server.service.node.streams.presence

            async def is_away(channel: ChannelKey) -> PresenceView:
                raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")

            async with stage.client(["subscribe"]) as ben:
                await ben.subscribe(ROOM)
                with monkeypatch.context() as patch:
                    patch.setattr(presence, "view", is_away)
                    refused = await ben.ask("refresh", token=self.token(stage, *RIGHTS))
                    assert (refused["code"], refused["retryable"]) == ("broker_unavailable", True)
                await stage.say("meanwhile")
                await ben.expect("chat.message")
                assert (await ben.ask("refresh", token=self.token(stage, *RIGHTS)))["type"] == "ack"
                await stage.comes_and_goes()
                await ben.until("presence.joined", key="eve")

    async def test_refresh_without_rights_does_not_wait_for_the_broker(self) -> None:
        """Of many channels each would wait for its time to be over."""
        broker = MemoryBroker(
            SystemClock(), idempotency_window=1, idempotency_entries=1, channels=100, max_bytes=10_000_000
        )
        async with serving(broker=broker) as server, server.client("ann") as ann, server.client("ben") as ben:
            await ben.subscribe("room:1")
            await ben.subscribe("room:2")
            away = asyncio.Event()

            async def stalls(channel: ChannelKey) -> None:
                await away.wait()

            broker.unsubscribe = stalls  # type: ignore[method-assign]  # stands for a broker that does not answer
            less = token("ben", grants=[{"channel": "room:2", "rights": ["subscribe"]}])
            await ben.send(type="refresh", id="r", token=less)
            await ben.until("unsubscribed", channel="room:1", code="forbidden")
            await ben.until("presence", id=None, channel="room:2", presence=None)
            await ann.subscribe("room:2")
            event = {"type": "chat.message", "data": {"text": "x"}}
            await server.publish("room:1", event)
            await server.publish("room:2", event)
            await ben.expect("chat.message", channel="room:2")
            away.set()
            await ben.until("ack", id="r")

    async def test_revoked_token_stops_all_events(self, stages: list[Stage]) -> None:
        for stage in stages:
            async with stage.client(RIGHTS, iat=1) as seeing, stage.client(["subscribe"], iat=1) as blind:
                for ben in (seeing, blind):
                    await ben.subscribe(ROOM)
                url = f"{stage.server.url}/api/v1/users/ben/revoke"
                headers = {"Authorization": f"Bearer {TENANTS[stage.tenant]}"}
                async with stage.server.http.post(url, headers=headers) as response:
                    assert response.status == 200
                assert [await seeing.closed(), await blind.closed()] == [4401, 4401]

    @staticmethod
    def token(stage: Stage, *rights: str) -> str:
        return token("ben", tenant=stage.tenant, grants=grants(rights))


class TestOwner:
    """Every user can own a channel, whatever its id is made of."""

    @pytest.mark.parametrize(
        ("user", "segment"),
        [
            ("auth0|5f7c", "auth0%7C5f7c"),
            ("urn:user:é 7", "urn%3Auser%3A%C3%A9%207"),
            ("ann@example.com", "ann@example.com"),
        ],
    )
    async def test_user_with_any_characters_owns_its_channel(self, server: Running, user: str, segment: str) -> None:
        channel = f"inbox:{segment}"
        event = {"type": "inbox.item", "data": {"text": "yours"}}
        async with server.client(user) as owner, server.client(segment + "x") as other:
            await owner.subscribe(channel)
            assert (await other.ask("subscribe", channel=channel))["code"] == "forbidden"
            at = URL(f"{server.url}/api/v1/channels/{quote(channel, safe='')}/events", encoded=True)
            async with server.http.post(at, json=event, headers=KEY) as response:
                assert response.status == 200
            await owner.until("inbox.item", channel=channel)
            assert texts(await owner.ask("history", channel=channel)) == ["yours"]
            listed = f"{server.url}/api/v1/channels?prefix={quote(channel, safe='')}"
            async with server.http.get(URL(listed, encoded=True), headers=KEY) as response:
                assert [one["channel"] for one in (await response.json())["channels"]] == [channel]
            body = {"channel": channel}
            ended = f"{server.url}/api/v1/users/{quote(user, safe='')}/unsubscribe"
            async with server.http.post(URL(ended, encoded=True), json=body, headers=KEY) as response:
                assert (await response.json())["subscriptions"] == 1
            await owner.until("unsubscribed", channel=channel, code="removed")
        bearer = {"Authorization": f"Bearer {token(user)}"}
        query = f"?channels={quote(channel, safe='')}"
        by_address = await Client.open(server, hello=False, headers=bearer, query=query)
        await by_address.until("subscribed", channel=channel)
        await by_address.close()

    async def test_other_spelling_of_a_user_reaches_no_channel_of_it(self, server: Running) -> None:
        async with server.client("auth0|5f7c") as owner, server.client("auth0%7C5f7c") as literal:
            for name, code in (
                ("auth0|5f7c", "invalid_channel"),
                ("auth0%7c5f7c", "unknown_channel"),
                ("%61", "unknown_channel"),
            ):
                assert (await owner.ask("subscribe", channel=f"inbox:{name}"))["code"] == code
            assert (await literal.ask("subscribe", channel="inbox:auth0%7C5f7c"))["code"] == "forbidden"
            await literal.subscribe("inbox:auth0%257C5f7c")
            assert (await owner.ask("subscribe", channel="room:a%7Cb"))["code"] == "unknown_channel"
