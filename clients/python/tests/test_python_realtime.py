"""Channels of the clients: scripted services for what the protocol says, the real service for what applications see."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from python_client_script import WELCOME, Losing, Peer, Service, event, subscribed
from tests.stores import RedisServer
from tests.stores.process import free_port
from tests.support.examples import examples
from tests.support.harness import API_KEY, DEADLINE, SECRET, Running, eventually, serving, token
from tests.support.proxy import Proxy

from tidewire import (
    ApiError,
    AsyncChannel,
    AsyncTidewire,
    AuthenticationError,
    Channel,
    ConfigurationError,
    ConnectionEndedError,
    DeadlineExceededError,
    EventsMissedError,
    ForbiddenError,
    NotFoundError,
    Position,
    RetryPolicy,
    SubscriptionEndedError,
    Tidewire,
    TidewireError,
    TokenSigner,
    UnavailableError,
    encode_user,
)
from tidewire.realtime.backoff import Backoff, Pacer
from tidewire.realtime.connection import FEATURES
from tidewire.realtime.stream import ChannelStream, Gap, Missed

VECTORS = Path(__file__).parents[3] / "tests" / "vectors"


def vectors(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))
    return found


async def opened(
    client: AsyncTidewire, service: Service, name: str = "room:1", **options: Any
) -> tuple[AsyncChannel, Peer]:
    """A channel that is subscribed."""
    channel = client.channel(name, **options)
    ready = asyncio.create_task(channel.ready(DEADLINE))
    peer = await service.peer()
    await peer.welcome()
    await peer.subscribe()
    await ready
    return channel, peer


async def take(channel: AsyncChannel, number: int = 1) -> list[str]:
    """The ids of the next events."""
    return [(await channel.next(DEADLINE)).id for _ in range(number)]


# --- the examples of the protocol ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("vector", vectors("server"), ids=lambda vector: vector["name"])
async def test_message_of_the_examples_disturbs_no_open_client(vector: dict[str, Any]) -> None:
    service = Service()
    async with service.client(token=lambda: "token-1") as client:
        channel, peer = await opened(client, service)
        answered = asyncio.create_task(channel.publish("chat.message", {}, id="after"))
        await peer.expect("chat.message")
        message = {**vector["message"], "channel": "other:1"} if "channel" in vector["message"] else vector["message"]
        peer.say([message, {**message, "added_later": True}, {"type": "ack", "id": "after", "offset": 1}])
        assert (await answered).offset == 1


@pytest.mark.parametrize(
    "message",
    [v["message"] for v in vectors("server") if "." in v["message"]["type"]],
    ids=lambda message: f"{message['type']}-{message['id']}",
)
async def test_event_of_the_examples_reaches_the_application(message: dict[str, Any]) -> None:
    service = Service()
    async with service.client() as client:
        channel = client.channel(message["channel"], presence=True)
        taken = asyncio.create_task(channel.next(DEADLINE))
        peer = await service.peer()
        await peer.welcome()
        await peer.subscribe(offset=message.get("offset", 1) - 1, presence={"count": 0, "members": []})
        peer.say(message)
        found = await taken
        assert (found.type, found.id, found.sender, found.data) == (
            message["type"], message["id"], message["from"], message.get("data"),
        )  # fmt: skip
        assert (found.offset, found.rev, found.key) == (message.get("offset"), message.get("rev"), message.get("key"))
        assert found.removed is message.get("removed", False)


@pytest.mark.parametrize("vector", vectors("newer"), ids=lambda vector: vector["name"])
async def test_messages_of_a_newer_service_are_understood(vector: dict[str, Any]) -> None:
    service = Service()
    async with service.client() as client:
        channel = client.channel("room:1")
        taken = asyncio.create_task(take(channel, len(vector["events"]) + 1))
        peer = await service.peer()
        await peer.welcome(**vector["welcome"])
        await peer.subscribe(**vector["subscribed"])
        peer.say(*vector["frames"], event(None, id="last"))
        assert await taken == [*vector["events"], "last"]


async def _refresh(peer: Peer, channel: AsyncChannel) -> None:
    peer.say({"type": "expiring", "in": 60})


async def _refresh_subscription(peer: Peer, channel: AsyncChannel) -> None:
    peer.say({"type": "expiring", "in": 60, "channel": channel.name})


def _do(call: Callable[[AsyncChannel], Awaitable[Any]]) -> Callable[[Peer, AsyncChannel], Awaitable[Any]]:
    return lambda peer, channel: call(channel)


ACTS: dict[str, Callable[[Peer, AsyncChannel], Awaitable[Any]]] = {
    "event": _do(lambda c: c.publish("chat.message", {"text": "hi"}, id="m-1")),
    "event-if-rev": _do(lambda c: c.publish("map.cursor", {"user": "ann", "x": 5, "y": 2}, id="u-5", if_rev=32)),
    "remove": _do(lambda c: c.remove_value("map.cursor", "ann", id="u-4")),
    "history": _do(lambda c: c.history(after=5, limit=20)),
    "presence": _do(lambda c: c.presence()),
    "presence-update": _do(lambda c: c.set_presence({"status": "busy"})),
    "unsubscribe": _do(lambda c: c.close()),
    "refresh": _refresh,
    "refresh-subscription": _refresh_subscription,
}
"""What an application or the service does, so that the client sends the example."""


@pytest.mark.parametrize("vector", vectors("client"), ids=lambda vector: vector["name"])
async def test_client_sends_the_examples(vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    message, name = vector["message"], vector["name"]
    service = Service()
    if message["type"] == "ping":
        monkeypatch.setattr("tidewire.realtime.connection.DEFAULT_HEARTBEAT", 0.01)
    own_token = message.get("token") if "channel" in message else None
    user_token = message.get("token", "t") if own_token is None else "t"
    async with service.client(token=lambda: user_token) as client:
        channel = client.channel(
            message.get("channel", "room:1"),
            since=Position(**message["since"]) if "since" in message else None,
            tail=message.get("tail", 0),
            token=own_token,
        )
        ready = asyncio.create_task(channel.ready(DEADLINE))
        peer = await service.peer()
        hello = await peer.expect("hello")
        peer.say({**WELCOME, "heartbeat": 0})
        said = [hello, await peer.expect("ready")]
        said.append(await peer.subscribe())
        await ready
        acting = asyncio.ensure_future(ACTS[name](peer, channel)) if name in ACTS else None
        if message["type"] == "call":
            acting = asyncio.ensure_future(client.call(message["call"], message["data"], id=message["id"]))
        if message["type"] not in ("hello", "ready", "subscribe"):
            said.append(await peer.expect(message["type"]))
        [found] = [one for one in said if one["type"] == message["type"]]
        assert found == ({**message, "id": found["id"]} if "id" in message else message)
        if acting is not None:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)


@pytest.mark.parametrize("vector", vectors("users"), ids=lambda vector: vector["segment"])
def test_user_becomes_its_segment(vector: dict[str, str]) -> None:
    assert encode_user(vector["user"]) == vector["segment"]


async def test_client_announces_itself() -> None:
    service = Service()
    async with service.client() as client:
        _, peer = await opened(client, service)
        assert peer.url.startswith("ws://service.test/ws?client=tidewire-python/")
        assert peer.url.endswith(f"&features={','.join(sorted(FEATURES))}")


# --- resuming -----------------------------------------------------------------------------------------------------------


async def test_channel_after_a_lost_connection_resumes_from_the_last_received_event() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say([event(1), event(2), event(2)])
        assert await take(channel, 2) == ["m-1", "m-2"]
        assert str(channel.position) == "e1:1:m-1", "the second is handled when the next is asked for"
        peer.end(1012)
        peer = await service.peer()
        await peer.welcome()
        request = await peer.subscribe(offset=3, events=[event(2), event(3)], recovered=True)
        assert request["since"] == {"epoch": "e1", "offset": 2, "id": "m-2"}
        peer.say(event(4))
        assert await take(channel, 2) == ["m-3", "m-4"]
        assert str(channel.position) == "e1:3:m-3"


async def test_missed_events_are_told_in_order_and_the_iteration_goes_on() -> None:
    service = Service()
    told: list[EventsMissedError] = []
    async with service.client() as client:
        peer: Peer | None = None
        for on_missed in (None, told.append):
            async with client.channel("room:1", on_missed=on_missed, since="e0:7:x") as channel:
                taken = asyncio.create_task(channel.next(DEADLINE))
                if peer is None:
                    peer = await service.peer()
                    await peer.welcome()
                assert (await peer.subscribe(offset=2, recovered=False))["since"]["offset"] == 7
                if on_missed is None:
                    with pytest.raises(EventsMissedError, match="e1:2:m-2"):
                        await taken
                    taken = asyncio.create_task(channel.next(DEADLINE))
                peer.say(event(3))
                assert (await taken).offset == 3
            await peer.expect("unsubscribe")
    assert [error.code for error in told] == ["events_missed"]


async def test_resync_on_a_live_subscription_continues_in_the_new_epoch() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say(event(1), subscribed({"id": None, "channel": "room:1"}, 5, epoch="e2", recovered=False), event(6))
        assert await take(channel) == ["m-1"]
        with pytest.raises(EventsMissedError):
            await channel.next(DEADLINE)
        assert await take(channel) == ["m-6"]
        assert str(channel.position) == "e2:5:m-5"


async def test_gap_subscribes_again_from_the_position_and_no_event_comes_twice() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say([event(1), event(3), event(4)])
        await peer.expect("unsubscribe")
        request = await peer.subscribe(offset=4, events=[event(2), event(3), event(4)], recovered=True)
        assert request["since"]["offset"] == 1
        assert await take(channel, 4) == ["m-1", "m-2", "m-3", "m-4"]


async def test_channel_that_is_added_while_another_subscribes_is_not_forgotten() -> None:
    service = Service()
    async with service.client() as client:
        first = asyncio.create_task(client.channel("room:1").ready(DEADLINE))
        peer = await service.peer()
        peer.may_subscribe.clear()
        await peer.welcome()
        second = asyncio.create_task(client.channel("room:2").ready(DEADLINE))
        await asyncio.sleep(0)
        peer.may_subscribe.set()
        assert {(await peer.subscribe())["channel"] for _ in range(2)} == {"room:1", "room:2"}
        await asyncio.gather(first, second)


async def test_full_queue_leaves_the_channel_and_resumes_when_there_is_place() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service, max_queue=4)
        with pytest.raises(DeadlineExceededError):
            await channel.next(0.01)
        peer.say(*(event(n) for n in range(1, 8)))
        await peer.expect("unsubscribe")
        assert await take(channel, 2) == ["m-1", "m-2"]
        request = await peer.subscribe(offset=7, events=[event(5), event(6), event(7)], recovered=True)
        assert request["since"]["offset"] == 4
        assert await take(channel, 5) == ["m-3", "m-4", "m-5", "m-6", "m-7"]
        peer.say(*(event(None, id=f"s-{n}") for n in range(6)), event(8))
        await peer.expect("unsubscribe")
        assert channel.dropped > 0


async def test_values_are_told_once_and_end_by_removal_by_ttl_and_while_away() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say(
            event(None, id="a1", rev=1, key="a"),
            event(None, id="a0", rev=1, key="a"),
            event(None, id="b2", rev=2, key="b", ttl=20),
            event(None, id="c3", rev=3, key="c"),
            event(None, id="r", rev=4, key="a", removed=True),
        )  # fmt: skip
        found = [await channel.next(DEADLINE) for _ in range(5)]
        assert sorted((one.key, one.id, one.removed, one.expired) for one in found) == [
            ("a", "a1", False, False), ("a", "r", True, False), ("b", "b2", False, False), ("b", "b2", True, True),
            ("c", "c3", False, False),
        ]  # fmt: skip
        peer.end()
        peer = await service.peer()
        await peer.welcome()
        await peer.subscribe(state=[event(None, id="d5", rev=5, key="d")])
        found = [await channel.next(DEADLINE) for _ in range(2)]
        assert [(one.key, one.removed) for one in found] == [("d", False), ("c", True)]


async def test_own_event_moves_the_position_and_is_not_shown() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        own = {"from": "ann", "exclude": "c-1"}
        peer.say(event(1, **own), event(2, **{**own, "from": "ben"}), event(None, **own), event(3))
        assert await take(channel, 2) == ["m-2", "m-3"]
        assert str(channel.position) == "e1:2:m-2"


async def test_presence_of_the_channel_is_kept_up_to_date() -> None:
    service = Service()
    async with service.client() as client:
        channel = client.channel("room:1", presence=True)
        taken = asyncio.create_task(channel.next(DEADLINE))
        peer = await service.peer()
        await peer.welcome()
        await peer.subscribe(presence={"count": 1, "members": [{"user": "ann"}]})

        def presence(kind: str, **data: Any) -> dict[str, Any]:
            return event(None, type=f"presence.{kind}", id=kind, data=data)

        peer.say(presence("joined", user="ben", info=1), presence("joined", user="ann", info=2, updated=True))
        await taken
        await take(channel)
        assert channel.present is not None
        assert [(m.user, m.info) for m in channel.present.members or []] == [("ben", 1), ("ann", 2)]
        peer.say(presence("left", user="ben"), presence("left", user="nobody"))
        await take(channel, 2)
        assert channel.present.count == 1
        peer.say(presence("count", count=1250))
        await take(channel)
        assert (channel.present.count, channel.present.members) == (1250, None)
        peer.say({"type": "presence", "id": None, "channel": "room:1", "presence": None}, event(1))
        await take(channel)
        assert channel.present is None


# --- tokens, refusals, closes --------------------------------------------------------------------------------------------


async def test_token_is_renewed_before_it_expires_and_for_each_connection() -> None:
    service = Service()
    tokens = iter(["t-1", "t-2", "t-3"])

    async def get() -> str:
        return next(tokens)

    async with service.client(token=get) as client:
        channel = client.channel("room:1")
        ready = asyncio.create_task(channel.ready())
        peer = await service.peer()
        assert (await peer.welcome())["token"] == "t-1"
        await peer.subscribe()
        await ready
        peer.say({"type": "expiring", "in": 60})
        refresh = await peer.expect("refresh")
        assert refresh["token"] == "t-2"
        peer.say({"type": "ack", "id": refresh["id"]})
        peer.end(4401)
        assert (await (await service.peer()).welcome())["token"] == "t-3"


@pytest.mark.parametrize(("renews", "tries"), [(False, 1), (True, 3)])
async def test_refused_token_stops_the_client_after_a_few_new_ones(renews: bool, tries: int) -> None:
    service = Service()
    async with service.client(token=(lambda: "bad") if renews else "bad") as client:
        taken = asyncio.create_task(client.channel("room:1").next(DEADLINE))
        for _ in range(tries):
            peer = await service.peer()
            await peer.expect("hello")
            peer.say({"type": "error", "code": "invalid_token", "message": "no", "retryable": False, "details": {}})
        with pytest.raises(AuthenticationError):
            await taken
    assert service.dialed == tries


@pytest.mark.parametrize("code", [4400, 4403, 4409, 1002])
async def test_close_code_that_stops_ends_iterations_and_requests(code: int) -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        answer = asyncio.create_task(channel.history())
        await peer.expect("history")
        peer.end(code, "enough")
        for waiting in (answer, channel.next(DEADLINE)):
            with pytest.raises(ConnectionEndedError, match=f"{code}: enough") as ended:
                await waiting
            assert ended.value.close_code == code
        again = asyncio.create_task(channel.next(DEADLINE))  # another step connects again
        peer = await service.peer()
        await peer.welcome()
        await peer.subscribe()
        peer.say(event(1))
        assert (await again).id == "m-1"


@pytest.mark.parametrize("code", [1000, 1001, 1006, 1011, 1012, 1013, 4408, 4429, 4450, 4999])
async def test_close_code_that_passes_connects_again(code: int) -> None:
    service = Service()
    async with service.client() as client:
        _, peer = await opened(client, service)
        peer.end(code)
        await (await service.peer()).welcome()


async def test_refused_upgrade_is_tried_again_if_it_passes_or_is_a_proxys() -> None:
    service = Service(
        UnavailableError("draining", "later", status=503, retryable=True, details={"retry_after": 0.01}),
        TidewireError("unexpected_response", "HTTP status 502", retryable=True),
        ForbiddenError("origin_refused", "no", status=403),
    )
    async with service.client() as client:
        with pytest.raises(ForbiddenError):
            await client.channel("room:1").next(DEADLINE)
    assert service.dialed == 3


async def test_subscribe_is_repeated_if_the_refusal_passes_and_ends_if_not() -> None:
    service = Service()
    async with service.client() as client:
        taken = asyncio.create_task(client.channel("room:1").next(DEADLINE))
        peer = await service.peer()
        await peer.welcome()
        request = await peer.expect("subscribe")
        refusal = {"type": "error", "message": "no", "details": {"retry_after": 0.01}, "retryable": True}
        peer.say({**refusal, "id": request["id"], "code": "rate_limited"})
        request = await peer.expect("subscribe")
        peer.say({**refusal, "id": request["id"], "code": "forbidden", "retryable": False})
        with pytest.raises(ForbiddenError, match="room:1"):
            await taken


async def test_subscription_that_the_service_ends_raises_and_can_begin_again() -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say(event(1), {"type": "unsubscribed", "channel": "room:1", "code": "removed"})
        assert await take(channel) == ["m-1"]
        with pytest.raises(SubscriptionEndedError, match="removed"):
            await channel.next(DEADLINE)
        again = asyncio.create_task(channel.next(DEADLINE))
        assert (await peer.subscribe())["since"]["offset"] == 1
        peer.say(event(2, id="next"), event(1))
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)


async def test_request_is_sent_again_with_its_id_after_a_lost_reply_and_a_passing_error() -> None:
    service = Service()
    async with service.client(retries=RetryPolicy(5, base=0.0)) as client:
        channel, peer = await opened(client, service)
        answer = asyncio.create_task(channel.publish("chat.message", {}))
        first = await peer.expect("chat.message")
        peer.end()
        peer = await service.peer()
        await peer.welcome()
        await peer.subscribe()
        assert await peer.expect("chat.message") == first
        refusal = {"type": "error", "code": "broker_unavailable", "message": "no", "details": {}, "retryable": True}
        peer.say({**refusal, "id": first["id"]})
        assert await peer.expect("chat.message") == first
        peer.say({"type": "ack", "id": first["id"], "offset": 7, "duplicate": True})
        result = await answer
        assert (result.id, result.offset, result.duplicate) == (first["id"], 7, True)


async def test_silent_connection_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidewire.realtime.connection.PONG_TIMEOUT", 0.05)
    service = Service()
    async with service.client() as client:
        channel = client.channel("room:1")
        ready = asyncio.create_task(channel.ready())
        peer = await service.peer()
        await peer.welcome(heartbeat=0.02)
        await peer.subscribe()
        await ready
        await peer.expect("ping")
        await (await service.peer()).welcome()
        assert peer.is_closed


@pytest.mark.parametrize("frame", ["{", '[{"type": "chat.message", "channel": "room:1", "offset": "x"}]', "[[[["])
async def test_malformed_frame_replaces_the_connection_and_loses_nothing(frame: str) -> None:
    service = Service()
    async with service.client() as client:
        channel, peer = await opened(client, service)
        peer.say(event(1), frame)
        peer = await service.peer()
        await peer.welcome()
        request = await peer.subscribe(offset=2, events=[event(2)], recovered=True)
        assert request["since"]["offset"] == 1
        assert await take(channel, 2) == ["m-1", "m-2"]


def _any_message(random: Random) -> Any:
    """Something that a faulty service may send: known types with wrong, missing or strange fields."""
    strange: list[Any] = [
        None,
        True,
        -1,
        0,
        1e400,
        10**30,
        "",
        "x",
        "room:1",
        [],
        {},
        [1],
        {"user": None},
        [[]],
        {"count": "x"},
    ]
    types = [
        "subscribed",
        "presence",
        "error",
        "ack",
        "history",
        "expiring",
        "reconnect",
        "welcome",
        "pong",
    ]
    types += ["chat.message", "presence.joined", "presence.left", "presence.count", "event.removed", "tomorrow"]
    names = [
        "id",
        "channel",
        "epoch",
        "offset",
        "events",
        "state",
        "last",
        "recovered",
        "presence",
        "tail",
        "data",
        "from",
    ]
    names += ["at", "rev", "key", "ttl", "removed", "exclude", "code", "message", "retryable", "details", "after", "in"]
    message = {name: random.choice(strange) for name in random.sample(names, random.randint(0, len(names)))}
    message |= {"type": random.choice([*types, *strange]), **({"channel": "room:1"} if random.random() < 0.8 else {})}
    return message if random.random() < 0.9 else [message, random.choice(strange)]


async def test_client_of_a_service_that_sends_anything_goes_on() -> None:
    service, random = Service(), Random(7)  # a seed of its own: pytest-randomly would change it
    async with service.client() as client:
        channel, peer = await opened(client, service, on_missed=lambda error: None)
        for number in range(60):
            peer.say({**WELCOME, "type": "tomorrow"}, *(_any_message(random) for _ in range(20)))
            peer.end()
            peer = await service.peer()
            await peer.expect("hello")
            strange: Any = [None, {}, {"rate": "x"}, {"user": []}, []][number % 5]
            peer.say({**WELCOME, "limits": strange, "heartbeat": strange, "features": strange})
            if strange in (None, {}):
                assert await peer.expect("ready")
            peer.end()
            peer = await service.peer()
            await peer.welcome()
            request = await peer.expect("subscribe")
            peer.say(subscribed(request, 5, epoch=f"e-{number}"), event(6, id=f"good-{number}"))
            while (await channel.next(DEADLINE)).id != f"good-{number}":
                pass


async def test_deadline_and_bound_of_requests_hold_without_a_connection() -> None:
    service = Service()
    async with service.client(max_waiting=1) as client:
        channel = client.channel("room:1")
        waiting = asyncio.create_task(channel.publish("chat.message", {}, deadline=0.1))
        await asyncio.sleep(0)
        with pytest.raises(TidewireError, match="too_many_waiting"):
            await channel.publish("chat.message", {})
        with pytest.raises(DeadlineExceededError) as late:
            await waiting
        assert late.value.event_id
        with pytest.raises(DeadlineExceededError, match="no event"):
            await channel.next(0.01)
        second = client.channel("room:1")
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="already"):
                await second.ready()
        await channel.close()
        assert [one async for one in channel] == []
    with pytest.raises(ConfigurationError, match="closed"):
        await client.channel("room:2").ready()


# --- pure parts ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(1, 12), st.just("drop"), st.just("resume")), max_size=40))
@settings(max_examples=examples(200))
def test_stream_gives_each_durable_event_once_and_in_order(steps: list[int | str]) -> None:
    """Whatever arrives twice, late or not at all: the application gets 1, 2, 3 … without a gap."""
    stream = ChannelStream(lambda event: False)
    stream.start(subscribed({"id": "s", "channel": "room:1"}), 0.0)
    newest, seen = 0, []

    def snapshot() -> None:
        since = stream.position.offset if stream.position else 0
        missed = [event(n) for n in range(max(1, since - 1), newest + 1)]
        for item in stream.start(
            subscribed({"id": "s", "channel": "room:1"}, newest, events=missed, recovered=True), 0.0
        ):
            if item.content is not None and not isinstance(item.content, Missed):
                seen.append(item.content.offset)

    for step in steps:
        if step == "drop":
            newest += 1
        elif step == "resume":
            snapshot()
        else:
            offset = min(int(step), newest + 1)
            newest = max(newest, offset)
            try:
                item = stream.event(event(offset), 0.0)
            except Gap:
                snapshot()
            else:
                seen += [item.content.offset] if item and item.content and not isinstance(item.content, Missed) else []
    snapshot()
    assert seen == list(range(1, newest + 1))


def test_backoff_and_pacer_stay_in_their_bounds() -> None:
    backoff = Backoff(0.5, 20.0, lambda: 1.0)
    assert [backoff.next() for _ in range(8)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 20.0, 20.0]
    pacer = Pacer()
    assert pacer.take(0.0) == 0.0
    pacer.start({"rate": 20.0, "burst": 10, "user": {"rate": 10.0, "burst": 100}}, 0.0)
    assert [round(pacer.take(0.0), 3) for _ in range(11)] == [0.0] * 9 + [0.1, 0.2]
    assert pacer.take(5.0) == 0.0


# --- the real service ----------------------------------------------------------------------------------------------------


async def test_five_lines_follow_a_channel_of_the_real_service(server: Running) -> None:
    signer = TokenSigner(SECRET)
    async with AsyncTidewire(
        server.url,
        api_key=API_KEY,
        token=lambda: signer.token("ann", grants=["room:*", "shelf:*"], info={"name": "Ann"}),
    ) as client:
        room = client.channel("room:1")
        await room.ready()
        await client.publish("room:1", "chat.message", {"text": "from the backend"})
        own = await room.publish("chat.message", {"text": "from the client"})
        assert [one.data["text"] for one in [await room.next(DEADLINE), await room.next(DEADLINE)]] == [
            "from the backend", "from the client",
        ]  # fmt: skip
        assert own.offset == 2
        assert (await room.history(limit=1)).events[0].id == own.id
        assert [member.user for member in (await room.presence()).members or []] == ["ann"]
        assert room.present is not None
        with pytest.raises(ApiError, match="invalid_data"):
            await room.publish("chat.message", {"text": ""})
        shelf = client.channel("shelf:1")
        await shelf.ready()
        await shelf.set_presence({"status": "busy"})
        last = client.channel("room:2", tail=2)
        await client.publish_many([_message("room:2", n) for n in range(3)])
        assert [(await last.next(DEADLINE)).data["text"] for _ in range(2)] == ["1", "2"]


def _message(channel: str, n: int) -> Any:
    from tidewire import NewEvent

    return NewEvent(channel, "chat.message", {"text": str(n)})


async def test_channel_for_threads_follows_publishes_and_reads(server: Running) -> None:
    pool = ThreadPoolExecutor(2)

    def work() -> None:
        with Tidewire(server.url, token=lambda: token("ann", grants=["room:*", "shelf:*"])) as client:
            with client.channel("room:1") as room:
                room.ready()
                sent = [room.publish("chat.message", {"text": str(n)}) for n in range(2)]
                assert room.next(DEADLINE).id == sent[0].id
                assert next(room).id == sent[1].id
                assert str(room.position).endswith(f":1:{sent[0].id}")
                assert [one.id for one in room.history(limit=1).events] == [sent[1].id]
                assert room.presence().count == 1
                assert room.present is not None
                with pytest.raises(DeadlineExceededError):
                    room.next(0.01)
            assert list(room) == []
            value = client.channel("doc:1")
            value.ready()
            value.publish("doc.cursor", {"user": "ann"}, if_rev=0)
            value.remove_value("doc.cursor", "ann")
            assert [value.next(DEADLINE).removed for _ in range(2)] == [False, True]
            shelf = client.channel("shelf:1")
            shelf.ready()
            shelf.set_presence({"status": "busy"})
            waiting = pool.submit(list, shelf)
            pool.submit(shelf.ready).result(DEADLINE)
        assert waiting.result(DEADLINE) == [], "an iteration ends with the client"
        with pytest.raises(ConfigurationError, match="closed"):
            client.channel("room:2")
        with pytest.raises(ConfigurationError, match="closed"):
            value.ready()

    with pool:
        await asyncio.to_thread(work)
    await server.at_rest()


def test_channels_for_threads_and_asyncio_have_the_same_methods() -> None:
    def described(kind: type) -> dict[str, Any]:
        methods = {name: one for name, one in vars(kind).items() if callable(one) and not name.startswith("_")}
        return {name: (inspect.getdoc(one), list(inspect.signature(one).parameters)) for name, one in methods.items()}

    assert described(Channel) == described(AsyncChannel)


FORK = """
import os, signal, sys, threading
from tidewire import Tidewire, TokenSigner

url, key, secret = sys.argv[1:]
signer = TokenSigner(secret)
client = Tidewire(url, api_key=key, token=lambda: signer.token("ann", grants=["room:*"]))

def publish_and_follow(name):
    with client.channel(name) as channel:
        channel.ready()
        sent = client.publish(name, "chat.message", {"text": "hi"})
        assert channel.next(20).id == sent.id
        assert client.connection_id

publish_and_follow("room:1")
child = os.fork()
publish_and_follow("room:2")
if child == 0:
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    for event in client.channel("room:3"):
        raise AssertionError(event)
except KeyboardInterrupt:
    client.close()
    print("interrupted")
"""


@pytest.mark.slow
async def test_client_for_threads_works_in_a_fork_and_ends_with_ctrl_c(server: Running) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORK, server.url, API_KEY, SECRET, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )  # fmt: skip
    try:
        printed, _ = await asyncio.wait_for(process.communicate(), DEADLINE * 2)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (process.returncode, printed) == (0, b"interrupted\n")
    async with AsyncTidewire(server.url, api_key=API_KEY) as client:
        assert (await client.channel_info("room:2")).offset == 2, "one event of each process"


async def test_subscription_token_grants_a_channel_of_the_real_service(server: Running) -> None:
    signer = TokenSigner(SECRET)
    async with AsyncTidewire(server.url, api_key=API_KEY, token=signer.token("ann")) as client:
        with pytest.raises(ForbiddenError):
            await client.channel("room:1").ready()
        async with client.channel("room:1", token=lambda: signer.subscription_token("ann", "room:1")) as room:
            await room.ready()
            await client.publish("room:1", "chat.message", {"text": "hi"})
            assert (await room.next(DEADLINE)).data == {"text": "hi"}


async def test_no_secret_of_a_connection_is_logged(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret = token("ann")
    async with AsyncTidewire(server.url, token=lambda: secret) as client:
        await client.channel("room:1").ready()
    assert secret not in caplog.text


async def test_wrong_address_is_explained(server: Running) -> None:
    async with AsyncTidewire(server.ops_url, token="t") as client:
        with pytest.raises(NotFoundError) as refused:
            await client.channel("room:1").ready()
    assert "/ws" in refused.value.help


@pytest.mark.slow
async def test_clients_under_restarts_cuts_and_lost_replies_lose_nothing_and_repeat_nothing() -> None:
    """Ten threads publish, a thread and a task follow, while the service restarts and the network breaks; the store is real."""
    threads, each = 10, 12
    total = threads * each
    port, ops_port = free_port(), free_port()
    proxy = Proxy(port)
    url = f"http://127.0.0.1:{await proxy.start()}"
    signer = TokenSigner(SECRET)
    options: dict[str, Any] = {
        "retries": RetryPolicy(1000, base=0.02, max_wait=0.1),
        "token": lambda: signer.token("ann", grants=["log:*"]),
    }
    by_thread: list[str] = []
    by_task: list[str] = []

    def publish(client: Tidewire, thread: int) -> None:
        for n in range(each):
            client.publish("log:1", "log.entry", f"{thread}.{n}", deadline=DEADLINE * 3)

    def follow(channel: Channel) -> None:
        for one in channel:
            by_thread.append(one.data)
            if len(by_thread) == total:
                return

    async def follow_async(channel: AsyncChannel) -> None:
        async for one in channel:
            by_task.append(one.data)
            if len(by_task) == total:
                return

    async with RedisServer() as redis, asyncio.timeout(DEADLINE * 4):
        node: dict[str, Any] = {"port": port, "ops_port": ops_port, "broker_settings": {"url": redis.url}}
        with (
            ThreadPoolExecutor(threads + 1) as pool,
            Tidewire(url, api_key=API_KEY, transport=Losing(), **options) as client,
        ):
            async with AsyncTidewire(url, **options) as other:
                async with serving(**node):
                    channel, other_channel = await asyncio.to_thread(client.channel, "log:1"), other.channel("log:1")
                    await asyncio.gather(asyncio.to_thread(channel.ready), other_channel.ready())
                    for one in (client._connection, other._connection):
                        assert one is not None
                        one._backoff = Backoff(0.05, 0.2)
                    following = asyncio.create_task(follow_async(other_channel))
                    working = [asyncio.wrap_future(pool.submit(follow, channel))]
                    working += [asyncio.wrap_future(pool.submit(publish, client, n)) for n in range(threads)]
                    await eventually(lambda: len(by_task) >= total // 4)
                    proxy.cut()
                    await asyncio.wait([following], timeout=0.1)
                    proxy.heal()
                    await eventually(lambda: len(by_task) >= total // 2)
                async with serving(**node):  # the node has stopped, and another one takes over
                    await asyncio.gather(*working, following)
                    reconnects = [one._connection.reconnects for one in (client, other) if one._connection]
                await asyncio.to_thread(client.close)
    await proxy.close()
    expected = [f"{thread}.{n}" for thread in range(threads) for n in range(each)]
    assert sorted(by_task) == sorted(by_thread) == sorted(expected)
    assert by_task == by_thread
    assert min(reconnects) >= 2, "the connection was lost at the cut and at the restart"
    for thread in range(threads):
        assert [one for one in by_task if one.startswith(f"{thread}.")] == [f"{thread}.{n}" for n in range(each)]
