"""`tail`: `subscribed` brings the last events of a channel."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.harness import Running, token
from tests.support.streams import stream


def texts(message: dict[str, Any]) -> list[str]:
    return [event["data"]["text"] for event in message["tail"]]


async def say(server: Running, *lines: str) -> None:
    await server.publish("room:1", [{"type": "chat.message", "data": {"text": line}} for line in lines])


async def test_stream_with_tail_gets_last_events(server: Running) -> None:
    await say(server, "a", "b", "c")
    async with stream(server, {"channel": "room:1", "tail": 2}, {"channel": "room:2"}) as opened:
        first = await opened.until("subscribed")
        assert (first["channel"], texts(first), first["offset"]) == ("room:1", ["b", "c"], 3)
        second = await opened.until("subscribed")
        assert (second["channel"], "tail" in second) == ("room:2", False)


async def test_pending_subscription_gets_the_tail_of_the_time_of_ready(server: Running) -> None:
    await say(server, "a", "b")
    async with server.client(ready=False) as ann:
        await ann.send(type="subscribe", id="s", channel="room:1", tail=2)
        await ann.ask("ping")
        await say(server, "c")
        await ann.send(type="ready")
        reply = await ann.until("subscribed")
        assert (texts(reply), reply["offset"]) == (["b", "c"], 3)
        assert [event["data"]["text"] for event in reply["events"]] == ["c"], "published since the subscribe"


async def test_pending_subscription_that_loses_the_right_to_history_gets_no_tail(server: Running) -> None:
    await say(server, "a")
    async with server.client(ready=False) as ann:
        await ann.send(type="subscribe", id="s", channel="room:1", tail=2)
        reply = await ann.ask("refresh", token=token("ann", grants=[{"channel": "room:*", "rights": ["subscribe"]}]))
        assert reply["type"] == "ack"
        await ann.send(type="ready")
        assert "tail" not in await ann.until("subscribed")


async def test_tail_and_live_events_have_neither_gap_nor_repeat(server: Running) -> None:
    async def publish() -> None:
        for number in range(100):
            await say(server, str(number))

    publishing = asyncio.create_task(publish())
    async with server.client() as ann:
        for _ in range(5):
            reply = await ann.ask("subscribe", channel="room:1", tail=10)
            offsets = [event["offset"] for event in reply["tail"]]
            while not offsets or offsets[-1] < reply["offset"] + 5:
                offsets.append((await ann.until("chat.message"))["offset"])
            assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
            await ann.ask("unsubscribe", channel="room:1")
    await publishing
