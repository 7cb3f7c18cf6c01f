"""Uses every operation of a store, to test the rights that docs/guarantees.md names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tests.support.api_client import ask, get, post
from tests.support.harness import Client, serving, token
from tests.support.streams import Poller

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")


def rule(begins: str) -> str:
    """Returns the only code block of the page that starts with `begins`, without that start."""
    [found] = re.findall(rf"```\n{re.escape(begins)}(.*?)```", PAGE, re.DOTALL)
    return str(found)


async def use_everything(broker: dict[str, Any], more: int = 1) -> None:
    """Runs a service on the store, and fails if it cannot do something there. `more`: durable events that the backend
    publishes."""
    async with serving(
        broker_settings=broker,
        limits={"on_user_cap": "replace"},
        presence={"ttl": 3.0},
        deadlines={"presence_leave": 0.05},
    ) as server:
        async with server.client("ann") as ann, server.client("ben") as ben:
            await _talk(ann, ben)
        poller = Poller("eve")
        await poller.poll(server, "room:1")
        await poller.poll(server, wait=0)
        headers = {"Authorization": f"Bearer {token('eve')}"}
        async with server.http.post(f"{server.url}/tickets", headers=headers) as response:
            ticket = (await response.json())["ticket"]
        eve = await Client.open(server, hello=False, query=f"?ticket={ticket}")
        await eve.close()
        await post(server, "/users/eve/revoke", None)
        await post(server, "/users/eve/disconnect", None)
        await server.publish("room:1", {"type": "chat.pinned", "data": {"slot": "a", "text": "x"}})
        for _ in range(more):
            await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})
        last = (await get(server, "/channels/room:1/history"))["events"][-1]
        for path in (f"/channels/room:1/events/{last['id']}", "/users/ben", "/channels/room:2/history"):
            answer = await ask(server, "DELETE", path)
            assert answer.status == 200, answer.body
        assert [one["channel"] for one in (await get(server, "/channels"))["channels"]] == ["room:1"]


async def _talk(ann: Client, ben: Client) -> None:
    """Uses presence, events of every delivery class, history and unsubscribe."""
    await ann.subscribe("room:1")
    await ben.subscribe("room:1")
    assert (await ann.ask("presence", channel="room:1"))["presence"]["count"] == 2
    await ben.send(type="chat.typing", channel="room:1", data={})
    await ann.until("chat.typing")
    await ben.send(type="chat.message", id="m", channel="room:1", data={"text": "x"})
    await ann.until("chat.message", offset=1)
    assert len((await ann.ask("history", channel="room:1"))["events"]) == 1
    assert (await ben.ask("unsubscribe", channel="room:1"))["type"] == "unsubscribed"
    await ann.until("presence.left")
