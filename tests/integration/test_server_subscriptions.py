"""Subscriptions that the token or the backend makes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from service.realtime.session.handler import MAX_QUEUED
from tests.integration.cluster import cluster
from tests.support.api_client import ask, post
from tests.support.brokers import SlowBroker
from tests.support.harness import Running, eventually, serving, token
from tests.support.shared_broker import Bus
from tests.support.streams import sse, stream

ALONE = {"nodes": 1, "complete": True}


async def say(server: Running, text: str, channel: str = "room:1") -> None:
    await server.publish(channel, {"type": "chat.message", "data": {"text": text}})


# --- the claim --------------------------------------------------------------------------------------------------------


async def test_claim_subscribes_each_connection(server: Running) -> None:
    for _ in range(2):
        async with server.client("ann", channels=["room:1", "room:2", "room:1"]) as ann:
            assert [(await ann.until("subscribed"))["channel"] for _ in range(2)] == ["room:1", "room:2"]
            await say(server, "hi", "room:2")
            assert (await ann.until("chat.message"))["channel"] == "room:2"


async def test_claim_gives_no_rights(server: Running) -> None:
    async with server.client("ann", grants=[], channels=["room:1", "inbox:ben", "inbox:ann", "no such"]) as ann:
        refusals = [await ann.until("error") for _ in range(3)]
        assert [(one["code"], one["details"]["channel"]) for one in refusals] == [
            ("forbidden", "room:1"),
            ("forbidden", "inbox:ben"),
            ("invalid_channel", "no such"),
        ]
        assert (await ann.until("subscribed"))["channel"] == "inbox:ann"


@pytest.mark.parametrize("claim", ["room:1", [1], {"room:1": {}}, [f"room:{n}" for n in range(33)]])
async def test_claim_in_another_form_is_refused(server: Running, claim: Any) -> None:
    async with server.client(hello=False) as ann:
        await ann.send(type="hello", token=token("ann", channels=claim))
        assert (await ann.until("error"))["code"] == "invalid_token"
        assert await ann.closed() == 4401


async def test_claim_counts_towards_the_limit_of_subscriptions() -> None:
    async with (
        serving(limits={"subscriptions": 2}) as server,
        server.client("ann", channels=["room:1", "room:2", "room:3"]) as ann,
    ):
        refused = await ann.until("error")
        assert (refused["code"], refused["details"]["channel"]) == ("too_many_subscriptions", "room:3")


async def test_claim_applies_to_posted_streams_and_not_to_event_sources(server: Running) -> None:
    given = {"Authorization": f"Bearer {token('ann', channels=['room:2'])}"}
    async with stream(server, "room:1", headers=given) as opened:
        assert [(await opened.until("subscribed"))["channel"] for _ in range(2)] == ["room:1", "room:2"]
    async with sse(server, ["room:1"], headers=given) as opened:
        await opened.until("subscribed", channel="room:1")
        await say(server, "unheard", "room:2")
        await say(server, "heard")
        assert (await opened.until("chat.message"))["data"] == {"text": "heard"}


# --- the backend ------------------------------------------------------------------------------------------------------


async def test_backend_grants_the_channel_while_the_subscription_lasts(server: Running) -> None:
    await say(server, "before")
    async with server.client("ann", grants=[]) as ann:
        assert await post(server, "/users/ann/subscribe", {"channel": "room:1"}) == {"subscriptions": 1, **ALONE}
        reply = await ann.until("subscribed")
        assert (reply["id"], reply["channel"], reply["presence"]["count"]) == (None, "room:1", 1)
        assert len((await ann.ask("history", channel="room:1"))["events"]) == 1
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "forbidden"
        taken = await ann.ask("subscribe", channel="room:1", tail=1)
        assert (taken["type"], len(taken["tail"])) == ("subscribed", 1)
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "already_subscribed"
        assert len((await ann.ask("history", channel="room:1"))["events"]) == 1, "the rights stay"
        await ann.ask("unsubscribe", channel="room:1")
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "forbidden"


async def test_backend_gives_only_the_rights_that_it_names(server: Running) -> None:
    await say(server, "before")
    async with server.client("ann", grants=[]) as ann:
        await post(server, "/users/ann/subscribe", {"channel": "room:1", "rights": ["subscribe"]})
        assert "presence" not in await ann.until("subscribed")
        assert (await ann.ask("history", channel="room:1"))["code"] == "forbidden"


async def test_backend_subscribe_before_ready_is_pending_and_taken_over(server: Running) -> None:
    async with server.client("ann", grants=[], ready=False) as ann:
        await post(server, "/users/ann/subscribe", {"channel": "room:1"})
        await post(server, "/users/ann/subscribe", {"channel": "room:2"})
        await ann.send(type="subscribe", id="own", channel="room:1")
        await ann.ask("ping")
        await ann.send(type="ready")
        found = {message["channel"]: message["id"] for message in [await ann.until("subscribed") for _ in range(2)]}
        assert found == {"room:1": "own", "room:2": None}
        await say(server, "x")
        assert (await ann.until("chat.message"))["channel"] == "room:1"


async def test_backend_subscribe_of_a_subscribed_client_changes_nothing(server: Running) -> None:
    async with server.client("ann") as ann:
        await ann.subscribe("room:1")
        assert await post(server, "/users/ann/subscribe", {"channel": "room:1"}) == {"subscriptions": 1, **ALONE}
        await ann.silence()
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "already_subscribed"


async def test_backend_subscribe_reaches_event_sources_without_disturbing_their_positions(server: Running) -> None:
    async with sse(server, ["room:1"]) as opened:
        await opened.until("subscribed")
        await post(server, "/users/ann/subscribe", {"channel": "room:2"})
        await opened.until("subscribed", channel="room:2")
        await say(server, "b", "room:2")
        await say(server, "a")
        for channel in ("room:2", "room:1"):
            await opened.until("chat.message", channel=channel)
        last_id = opened.last_id
    async with sse(server, ["room:1"], query=f"&last_event_id={last_id}") as opened:
        assert (await opened.until("subscribed"))["recovered"] is True


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"channel": "inbox:ben"}, 403, "forbidden"),
        ({"channel": "nowhere:1"}, 404, "unknown_channel"),
        ({"channel": "room:1", "rights": []}, 400, "invalid_message"),
        ({"channel": "room:1", "rights": ["history"]}, 403, "forbidden"),
        ({"channel": "room:1", "rights": ["all"]}, 400, "invalid_message"),
        ({}, 400, "invalid_message"),
    ],
)
async def test_backend_subscribe_in_a_wrong_form_is_refused(
    server: Running, body: dict[str, Any], status: int, code: str
) -> None:
    async with server.client("ann") as ann:
        (await ask(server, "POST", "/users/ann/subscribe", body)).refused(status, code)
        await ann.silence()


async def test_backend_subscribe_leaves_out_connections_at_their_limit() -> None:
    async with serving(limits={"subscriptions": 1}) as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        assert await post(server, "/users/ann/subscribe", {"channel": "room:2"}) == {"subscriptions": 0, **ALONE}
        await ann.silence()


async def test_revoking_earlier_tokens_ends_what_the_backend_has_given_before(server: Running) -> None:
    async with server.client("ann", grants=["room:2"], iat=time.time() + 3) as ann:  # issued after the revocation
        await ann.subscribe("room:2")
        await post(server, "/users/ann/subscribe", {"channel": "room:1"})
        await ann.until("subscribed", channel="room:1")
        await post(server, "/users/ann/revoke", {})
        await ann.until("unsubscribed", channel="room:1", code="forbidden")
        assert (await ann.ask("chat.message", channel="room:2", data={"text": "x"}))["type"] == "ack"


async def test_revocation_ends_a_subscribe_of_the_backend_that_waits() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server, server.client("ann", grants=["room:1"], iat=time.time() + 3) as ann:
        broker.gates["snapshot"] = asyncio.Event()
        await ann.send(type="subscribe", id="own", channel="room:1")
        await eventually(lambda: "snapshot" in broker.waiting)
        assert (await post(server, "/users/ann/subscribe", {"channel": "room:2"}))["subscriptions"] == 1
        await post(server, "/users/ann/revoke", {})
        broker.gates.pop("snapshot").set()
        await ann.until("subscribed", channel="room:1")
        refused = await ann.until("error")
        assert (refused["code"], refused["details"]["channel"]) == ("forbidden", "room:2")
        assert (await ann.ask("unsubscribe", channel="room:2"))["code"] == "not_subscribed"


async def test_revocation_ends_a_subscription_that_is_being_taken_over() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server, server.client("ann", grants=[], iat=time.time() + 3) as ann:
        await post(server, "/users/ann/subscribe", {"channel": "room:1"})
        await ann.until("subscribed")
        broker.gates["unsubscribe"] = asyncio.Event()
        await ann.send(type="subscribe", id="own", channel="room:1")
        await eventually(lambda: "unsubscribe" in broker.waiting)
        await post(server, "/users/ann/revoke", {})
        broker.gates.pop("unsubscribe").set()
        assert (await ann.until("error", id="own"))["code"] == "forbidden"
        assert (await ann.ask("history", channel="room:1"))["code"] == "forbidden"


async def test_backend_commands_keep_their_order_while_the_client_is_busy() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server, server.client("ann") as ann:
        broker.gates["snapshot"] = asyncio.Event()
        await ann.send(type="subscribe", id="own", channel="room:1")
        await eventually(lambda: "snapshot" in broker.waiting)
        for channel in ("room:2", "room:3"):
            assert (await post(server, "/users/ann/subscribe", {"channel": channel}))["subscriptions"] == 1
        assert (await post(server, "/users/ann/unsubscribe", {"channel": "room:2"}))["subscriptions"] == 1
        broker.gates.pop("snapshot").set()
        assert [(await ann.until("subscribed"))["channel"] for _ in range(2)] == ["room:1", "room:3"]
        await ann.silence()
        assert (await ann.ask("unsubscribe", channel="room:2"))["code"] == "not_subscribed"


async def test_busy_client_takes_a_bounded_number_of_subscriptions_of_the_backend() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server, server.client("ann") as ann:
        broker.gates["snapshot"] = asyncio.Event()
        await ann.send(type="subscribe", id="own", channel="room:own")
        await eventually(lambda: "snapshot" in broker.waiting)
        answers = [await post(server, "/users/ann/subscribe", {"channel": f"room:{n}"}) for n in range(MAX_QUEUED + 1)]
        assert [answer["subscriptions"] for answer in answers] == [1] * MAX_QUEUED + [0]
        broker.gates.pop("snapshot").set()
        for _ in range(MAX_QUEUED + 1):
            await ann.until("subscribed")
        await ann.silence()


@pytest.mark.slow
async def test_backend_subscribe_reaches_every_node(make_bus: Callable[[], Bus]) -> None:
    async with cluster(make_bus) as nodes:
        first, second = (member.server for member in nodes.members)
        async with first.client(grants=[]) as here, second.client(grants=[]) as there, second.client("ben") as ben:
            answer = await post(first, "/users/ann/subscribe", {"channel": "room:1"})
            assert answer == {"subscriptions": 2, "nodes": 2, "complete": True}
            for client in (here, there):
                await client.until("subscribed", channel="room:1")
            await post(second, "/channels/room:1/events", {"type": "chat.message", "id": "m", "data": {"text": "x"}})
            for client in (here, there):
                await client.until("chat.message", id="m")
            await ben.silence()
            await post(second, "/users/ann/unsubscribe", {"channel": "room:1"})
            for client in (here, there):
                await client.until("unsubscribed", channel="room:1", code="removed")
