"""The rights that docs/guarantees.md names are all that the service needs at Redis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.adapters import redis as redis_adapters
from tests.harness import API_KEY, Client, serving, token
from tests.stores import FLAVOURS, Flavour, RedisServer

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
[RULE] = re.findall(r"```\nACL SETUSER tidewire reset on >PASSWORD (.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("flavour", FLAVOURS)
async def test_the_service_works_as_the_user_of_the_page(flavour: Flavour) -> None:
    rules = f"on >secret {' '.join(RULE.split())}"
    async with RedisServer(flavour, password="for-nobody-else", users={"tidewire": rules}) as redis:
        broker = {"url": redis.url, "user": "tidewire", "password": "secret"}
        async with serving(
            broker_settings=broker,
            limits={"on_user_cap": "replace"},
            presence={"ttl": 3.0},
            deadlines={"presence_leave": 0.05},
        ) as server:
            async with server.client("ann") as ann, server.client("ben") as ben:
                await talk(ann, ben)
            headers = {"Authorization": f"Bearer {token('eve')}"}
            async with server.http.post(f"{server.url}/tickets", headers=headers) as response:
                ticket = (await response.json())["ticket"]
            eve = await Client.open(server, hello=False, query=f"?ticket={ticket}")
            await eve.close()
            await server.publish("room:1", {"type": "chat.pinned", "data": {"slot": "a", "text": "x"}})
            async with server.http.get(
                f"{server.url}/api/v1/channels", headers={"Authorization": f"Bearer {API_KEY}"}
            ) as response:
                assert [one["channel"] for one in (await response.json())["channels"]] == ["room:1"]
        assert "tidewire" not in str(await redis.command("ACL", "LOG"))


async def talk(ann: Client, ben: Client) -> None:
    """Presence, events of every class, history, leaving."""
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


def test_every_command_of_the_scripts_is_among_the_rights() -> None:
    folder = Path(redis_adapters.__file__).parent
    used = {
        word.lower()
        for file in folder.glob("*.lua")
        for word in re.findall(r"redis\.p?call\('(\w+)'", file.read_text())
    }
    allowed = {right.removeprefix("+").partition("|")[0] for right in RULE.split() if right.startswith("+")}
    assert len(used) > 15
    assert used <= allowed, used - allowed
