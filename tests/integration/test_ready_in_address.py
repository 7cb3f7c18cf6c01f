"""`ready=1` in the address of the upgrade. tests/vectors/conversations/28-ready-in-address.json has its usual course."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.core.broker import Snapshot
from service.core.channel import ChannelKey
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from tests.support.harness import DEADLINE, Running, serving, token
from tests.support.raw import HANDSHAKE, PING, PONG, TEXT, Raw, connected, frame, text, upgraded


def credentials(user: str = "ann") -> dict[str, str]:
    return {"Authorization": f"Bearer {token(user)}"}


async def open_ready(raw: Raw, channels: str, user: str = "ann") -> None:
    """Sends an upgrade with `ready=1`, and reads the head of its response."""
    answer = await raw.request(f"/ws?channels={channels}&ready=1", HANDSHAKE | credentials(user))
    assert answer.status == 101, answer


async def batch(raw: Raw) -> list[dict[str, Any]]:
    """Reads one frame, which holds a batch."""
    opcode, payload = await raw.receive()
    assert opcode == TEXT
    messages: list[dict[str, Any]] = json.loads(payload)
    return messages


def kinds(messages: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(message["type"], message.get("channel")) for message in messages]


@pytest.mark.parametrize("channel", ["room:1", "board:1", "news:1"])
async def test_ready_in_address_sends_welcome_and_subscribed_in_one_frame(server: Running, channel: str) -> None:
    for user in ("ann", "ben"):  # the first and a later member
        async with connected(server) as raw:
            await open_ready(raw, channel, user)
            assert kinds(await batch(raw)) == [("welcome", None), ("subscribed", channel)]


async def test_ready_in_address_with_many_channels_subscribes_in_their_order(server: Running) -> None:
    async with connected(server) as raw:
        await open_ready(raw, "news:1,room:1,board:1")
        assert kinds(await batch(raw)) == [
            ("welcome", None),
            ("subscribed", "news:1"),
            ("subscribed", "room:1"),
            ("subscribed", "board:1"),
        ]


async def test_ready_in_address_without_channels_sends_welcome(server: Running) -> None:
    async with upgraded(server, target="/ws?ready=1") as raw:
        raw.write(text(type="subscribe", id="s", channel="room:1"))
        assert kinds([await raw.message()]) == [("subscribed", "room:1")]


@pytest.mark.parametrize("query", ["ready=0", "ready", "ready=", "ready=true", "ready=01", "Ready=1", "already=1"])
async def test_other_spellings_of_ready_are_ignored(server: Running, query: str) -> None:
    async with upgraded(server, target=f"/ws?channels=room:1&{query}") as raw:
        raw.write(text(type="ping"))
        assert (await raw.message())["type"] == "pong"
        raw.write(text(type="ready"))
        assert kinds([await raw.message()]) == [("subscribed", "room:1")]


@pytest.mark.parametrize("query", ["ready=%31", "r%65ady=1", "ready=0&ready=1"])
async def test_ready_in_address_is_decoded_as_other_parameters_are(server: Running, query: str) -> None:
    async with connected(server) as raw:
        assert (await raw.request(f"/ws?channels=room:1&{query}", HANDSHAKE | credentials())).status == 101
        assert kinds(await batch(raw)) == [("welcome", None), ("subscribed", "room:1")]


async def test_early_ping_after_ready_in_address_is_answered_after_the_head(server: Running) -> None:
    async with connected(server) as raw:
        lines = ["GET /ws?channels=room:1&ready=1 HTTP/1.1", "Host: service.example"]
        lines += [f"{name}: {value}" for name, value in (HANDSHAKE | credentials()).items()]
        raw.write("\r\n".join([*lines, "", ""]).encode() + frame(PING, b"early"))
        assert (await raw.answer()).status == 101
        found = [await raw.receive(), await raw.receive()]
        assert {opcode for opcode, _ in found} == {TEXT, PONG}


class SlowBroker(MemoryBroker):
    """A broker whose snapshots of `room:slow` wait, and whose snapshots of `room:broken` fail."""

    def __init__(self) -> None:
        super().__init__(
            SystemClock(), idempotency_window=300, idempotency_entries=100, channels=1000, max_bytes=1_000_000
        )
        self.answers = asyncio.Event()

    async def snapshot(
        self, channel: ChannelKey, since: Position | None, max_events: int, max_bytes: int, tail: int = 0
    ) -> Snapshot:
        if channel.name == "room:slow":
            await self.answers.wait()
        if channel.name == "room:broken":
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away")
        return await super().snapshot(channel, since, max_events, max_bytes, tail)


async def test_ready_in_address_with_a_slow_broker_sends_welcome_first() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server, connected(server) as raw:
        await open_ready(raw, "room:1,room:slow,room:2")
        assert kinds(await batch(raw)) == [("welcome", None), ("subscribed", "room:1")]
        broker.answers.set()
        assert kinds(await batch(raw)) == [("subscribed", "room:slow"), ("subscribed", "room:2")]


async def test_ready_in_address_with_an_unreadable_channel_refuses_only_that_one() -> None:
    async with serving(broker=SlowBroker()) as server, connected(server) as raw:
        await open_ready(raw, "room:broken,room:1")
        welcome, error, subscribed = await batch(raw)
        assert (welcome["type"], subscribed["type"], subscribed["channel"]) == ("welcome", "subscribed", "room:1")
        assert (error["code"], error["details"]["channel"], error.get("id")) == (
            "broker_unavailable",
            "room:broken",
            None,
        )
        raw.write(text(type="subscribe", id="s", channel="room:broken"))  # it is not subscribed
        assert (await raw.message())["code"] == "broker_unavailable"


async def test_connection_that_is_lost_while_a_slow_broker_subscribes_leaves_no_state() -> None:
    broker = SlowBroker()
    async with serving(broker=broker) as server:
        async with connected(server) as raw:
            await open_ready(raw, "room:slow")
            assert (await raw.message())["type"] == "welcome"
        broker.answers.set()
        async with asyncio.timeout(DEADLINE):
            await server.service.node.streams.registry.wait_empty()
        await server.at_rest()
