"""Tokens that grant one subscription."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.api_client import post
from tests.support.harness import Running, serving, token

FEW = {"expiry_notice": 0.8, "expiry_grace": 0.1}


def granting(channel: str, user: str = "ann", **claims: Any) -> str:
    return token(user, **{"aud": "tidewire:subscription", "grants": [channel], **claims})


async def test_token_grants_its_channel_until_unsubscribed(server: Running) -> None:
    async with server.client("ann", grants=[]) as ann:
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "forbidden"
        reply = await ann.ask("subscribe", channel="room:1", token=granting("room:1"), tail=5)
        assert (reply["type"], reply["tail"], reply["presence"]["count"]) == ("subscribed", [], 1)
        assert (await ann.ask("chat.message", channel="room:1", data={"text": "hi"}))["offset"] == 1
        assert (await ann.until("chat.message"))["data"] == {"text": "hi"}
        assert len((await ann.ask("history", channel="room:1"))["events"]) == 1
        assert (await ann.ask("presence", channel="room:1"))["type"] == "presence"
        await ann.ask("unsubscribe", channel="room:1")
        assert (await ann.ask("history", channel="room:1"))["code"] == "forbidden"
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "forbidden"


async def test_token_counts_in_no_other_channel(server: Running) -> None:
    async with server.client("ann", grants=[]) as ann:
        wide = granting("room:*")
        assert (await ann.ask("subscribe", channel="room:1", token=wide))["type"] == "subscribed"
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "forbidden"
        assert (await ann.ask("history", channel="room:2"))["code"] == "forbidden"
        assert (await ann.ask("subscribe", channel="room:2", token=granting("room:1")))["code"] == "forbidden"
        assert (await ann.ask("subscribe", channel="inbox:ben", token=granting("inbox:ben")))["code"] == "forbidden"


async def test_token_with_fewer_rights_shows_less(server: Running) -> None:
    await server.publish("room:1", {"type": "chat.message", "data": {"text": "before"}})
    async with server.client("ann", grants=[]) as ann:
        grants = [{"channel": "room:1", "rights": ["subscribe"]}]
        reply = await ann.ask("subscribe", channel="room:1", token=granting("", grants=grants), tail=5)
        assert (reply["type"], "tail" in reply, "presence" in reply) == ("subscribed", False, False)


async def test_token_grants_publishing_where_the_contract_asks_for_a_grant(server: Running) -> None:
    async with server.client("ann", grants=[]) as ann:
        await ann.subscribe("wall:1")
        assert (await ann.ask("wall.note", channel="wall:1", data={}))["code"] == "forbidden"
        await ann.ask("unsubscribe", channel="wall:1")
        assert (await ann.ask("subscribe", channel="wall:1", token=granting("wall:1")))["type"] == "subscribed"
        assert (await ann.ask("wall.note", channel="wall:1", data={}))["type"] == "ack"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        pytest.param(token("ann"), "invalid_token", id="a token for connections"),
        pytest.param(granting("room:1", "ben"), "forbidden", id="another user"),
        pytest.param(granting("room:1", tenant="other"), "forbidden", id="another tenant"),
        pytest.param(granting("room:1", ttl=-60), "token_expired", id="expired"),
        pytest.param(granting("room:1")[:-4] + "AAAA", "invalid_token", id="another signature"),
        pytest.param("nonsense", "invalid_token", id="no token"),
    ],
)
async def test_wrong_token_is_refused_and_changes_nothing(server: Running, wrong: str, code: str) -> None:
    async with server.client("ann", grants=["room:2"]) as ann:
        assert (await ann.ask("subscribe", channel="room:1", token=wrong))["code"] == code
        assert (await ann.ask("subscribe", channel="room:1"))["code"] == "forbidden"
        assert (await ann.ask("subscribe", channel="room:2"))["type"] == "subscribed"


async def test_subscription_token_opens_no_connection(server: Running) -> None:
    async with server.client(hello=False) as ann:
        await ann.send(type="hello", token=granting("room:1"))
        assert (await ann.until("error"))["code"] == "invalid_token"
        assert await ann.closed() == 4401


async def test_anonymous_client_has_no_token_that_fits() -> None:
    async with serving(auth={"anonymous": True}) as server, server.client(hello=False) as nobody:
        await nobody.send(type="hello")
        await nobody.until("welcome")
        await nobody.send(type="ready")
        refused = await nobody.ask("subscribe", channel="room:1", token=granting("room:1"))
        assert refused["code"] == "forbidden"


async def test_expired_token_ends_its_subscription_only() -> None:
    async with serving(deadlines=FEW) as server, server.client("ann", grants=["room:2"]) as ann:
        await ann.subscribe("room:2")
        await ann.ask("subscribe", channel="room:1", token=granting("room:1", ttl=1.2))
        expiring = await ann.until("expiring")
        assert (expiring["channel"], expiring["in"]) == ("room:1", 1)
        await ann.until("unsubscribed", channel="room:1", code="forbidden")
        assert (await ann.ask("chat.message", channel="room:2", data={"text": "x"}))["type"] == "ack"
        assert (await ann.ask("history", channel="room:1"))["code"] == "forbidden"
        assert (await ann.ask("subscribe", channel="room:1", token=granting("room:1")))["type"] == "subscribed"


async def test_refresh_with_channel_renews_the_token() -> None:
    async with serving(deadlines=FEW) as server, server.client("ann", grants=["room:2"]) as ann:
        await ann.subscribe("room:2")
        short = granting("room:1", ttl=1.2)
        await ann.ask("subscribe", channel="room:1", token=short)
        await ann.until("expiring")
        refused = await ann.ask("refresh", channel="room:1", token=granting("room:3"))
        assert refused["code"] == "forbidden"
        less = granting("", grants=[{"channel": "room:1", "rights": ["subscribe"]}], ttl=1.0)
        await ann.send(type="refresh", id="r", channel="room:1", token=less)
        withdrawn = await ann.until("presence")
        assert (withdrawn["id"], withdrawn["presence"]) == (None, None)
        await ann.until("ack", id="r")
        assert (await ann.until("expiring"))["channel"] == "room:1", "it runs out, too"
        assert (await ann.ask("refresh", channel="room:1", token=granting("room:1")))["type"] == "ack"
        assert (await ann.ask("refresh", channel="room:2", token=granting("room:2")))["code"] == "invalid_message"
        assert (await ann.ask("refresh", channel="room:3", token=granting("room:3")))["code"] == "not_subscribed"
        assert (await ann.ask("history", channel="room:1"))["type"] == "history", "with the rights of the new one"


async def test_refresh_of_the_connection_keeps_the_subscription(server: Running) -> None:
    async with server.client("ann", grants=["room:2"]) as ann:
        await ann.subscribe("room:2")
        await ann.ask("subscribe", channel="room:1", token=granting("room:1"))
        await ann.send(type="refresh", id="r", token=token("ann", grants=[]))
        await ann.until("unsubscribed", channel="room:2", code="forbidden")
        await ann.until("ack", id="r")
        assert (await ann.ask("chat.message", channel="room:1", data={"text": "x"}))["type"] == "ack"


async def test_revoked_subscription_token_ends_its_subscription(server: Running) -> None:
    async with server.client("ann", grants=["room:2"]) as ann:
        await ann.subscribe("room:2")
        given = granting("room:1", jti="grant-1")
        await ann.ask("subscribe", channel="room:1", token=given)
        await post(server, "/tokens/revoke", {"jti": "grant-1"})
        await ann.until("unsubscribed", channel="room:1", code="forbidden")
        assert (await ann.ask("subscribe", channel="room:1", token=given))["code"] == "invalid_token"
        assert (await ann.ask("chat.message", channel="room:2", data={"text": "x"}))["type"] == "ack"


async def test_pending_subscription_with_token_goes_live_at_ready(server: Running) -> None:
    async with server.client("ann", grants=[], ready=False) as ann:
        await ann.send(type="subscribe", id="s", channel="room:1", token=granting("room:1"))
        await ann.ask("ping")
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})
        await ann.send(type="ready")
        reply = await ann.until("subscribed", id="s")
        assert [event["data"]["text"] for event in reply["events"]] == ["x"]
