"""Webhooks about events: what an endpoint is told, in which order, and what happens when it does not accept them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.support import harness
from tests.support.harness import Client, Running, eventually
from tests.support.receiver import Receiver, receiving

CONTRACT = Path(__file__).parent / "webhooks.yaml"
ROOM = "room:1"


@asynccontextmanager
async def serving(*endpoints: dict[str, Any], **groups: Any) -> AsyncIterator[Running]:
    webhooks = {"endpoints": endpoints, **groups.pop("webhooks", {})}
    async with harness.serving(contract=CONTRACT, webhooks=webhooks, **groups) as server:
        yield server
        await server.at_rest()


@asynccontextmanager
async def scene(**endpoint: Any) -> AsyncIterator[tuple[Running, Receiver, Client]]:
    """A receiver, a service that tells it, and a subscribed client."""
    async with receiving() as receiver, serving(receiver.endpoint(**endpoint)) as server, server.client() as ann:
        await ann.subscribe(ROOM)
        yield server, receiver, ann


async def say(client: Client, number: int, type_: str = "chat.message", **more: Any) -> dict[str, Any]:
    return await client.ask(type_, channel=ROOM, data={"n": number}, **more)


async def test_endpoint_is_told_of_each_published_event() -> None:
    async with scene() as (_, receiver, ann):
        ack = await say(ann, 1)
        assert (ack["type"], ack["offset"]) == ("ack", 1)
        await say(ann, 2, "chat.quiet")
        await say(ann, 3)
        await eventually(lambda: len(receiver.entries) == 2)
        first, second = receiver.entries
        event = first["event"]
        assert {**first, "event": ...} == {
            "id": first["id"],
            "type": "event.published",
            "at": event["at"],
            "channel": ROOM,
            "event": ...,
        }
        assert first["id"].startswith("wh_")
        assert {**event, "at": 0, "epoch": ""} == {
            "type": "chat.message",
            "id": "q2",
            "at": 0,
            "from": "ann",
            "data": {"n": 1},
            "offset": 1,
            "epoch": "",
        }
        assert second["event"]["offset"] == 3
        delivery, request = receiver.deliveries[0], receiver.requests[0]
        assert (delivery["endpoint"], delivery["tenant"]) == ("archive", "default")
        assert request.headers["Content-Type"] == "application/json"
        assert not {"Cookie", "Authorization"} & set(request.headers)
