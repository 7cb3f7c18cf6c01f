"""Tokens that expire while a client is connected."""

from __future__ import annotations

from tests.support.harness import serving, token


async def test_connection_without_refresh_closes_after_notice_and_grace() -> None:
    deadlines = {"expiry_notice": 0.8, "expiry_grace": 0.1}
    async with serving(deadlines=deadlines) as server, server.client(token_=token(ttl=1.2)) as ann:
        assert ann.welcome["expires_in"] <= 1
        assert (await ann.until("expiring"))["in"] <= 1
        assert await ann.closed() == 4401


async def test_refresh_keeps_the_connection_and_reauthorises_subscriptions() -> None:
    deadlines = {"expiry_notice": 0.8, "expiry_grace": 0.1}
    both = token(ttl=1.2, grants=["room:1", "room:2"])
    async with serving(deadlines=deadlines) as server, server.client(token_=both) as ann:
        await ann.subscribe("room:1")
        await ann.subscribe("room:2")
        await ann.until("expiring")
        await ann.send(type="refresh", id="r", token=token(ttl=3600, grants=["room:2"]))
        await ann.until("unsubscribed", channel="room:1", code="forbidden")
        await ann.until("ack", id="r")
        gone = await ann.ask("chat.message", channel="room:1", data={"text": "x"})
        assert gone["code"] == "forbidden"
        kept = await ann.ask("chat.message", channel="room:2", data={"text": "x"})
        assert kept["type"] == "ack"
        await ann.until("chat.message", channel="room:2")
        connection = server.service.node.streams.registry.of_user("default", "ann")[0]
        assert connection.session.identity.expires_at is not None
        assert not connection.is_expiry_sent, "it will be told when this one runs out"


async def test_refresh_needs_the_same_user_and_tenant() -> None:
    async with serving() as server, server.client() as ann:
        for wrong in (token("ben"), token("ann", tenant="other")):
            assert (await ann.ask("refresh", token=wrong))["code"] == "forbidden"
        assert (await ann.ask("refresh", token="nonsense"))["code"] == "invalid_token"
        assert (await ann.ask("refresh", token=token(ttl=-100)))["code"] == "token_expired"
        await ann.subscribe("room:1")


async def test_expiry_notice_is_sent_at_once_if_less_time_is_left() -> None:
    async with serving() as server, server.client(token_=token(ttl=30)) as ann:
        assert 25 <= (await ann.until("expiring"))["in"] <= 30
