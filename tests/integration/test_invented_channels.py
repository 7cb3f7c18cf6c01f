"""Channels that somebody only names leave nothing in the store, whichever door they come through."""

from __future__ import annotations

import secrets
from typing import Any

from tests.stores import RedisServer
from tests.stores.process import until
from tests.support.api_client import ask
from tests.support.harness import Client, Running, serving, token

EMPTY_SECONDS = 60.0
"""`broker.empty_ttl`, as it is without a setting."""
PRESENCE_KEPT = 60.0
"""Seconds that the store keeps presence that no node speaks of, with the default `presence.ttl`."""


async def use_every_door(server: Running, channels: list[str]) -> None:
    """As a client with `?channels=`, with commands, resuming, refused; as the backend."""
    room = iter(channels)
    query = f"?channels={','.join(next(room) for _ in range(10))}"
    headers = {"Authorization": f"Bearer {token('ann')}"}
    known = await Client.open(server, hello=False, headers=headers, query=query)
    await known.close()
    async with server.client("ann") as ann:
        await ann.subscribe(next(room))
        await ann.subscribe(next(room), since={"epoch": "nobody", "offset": 7, "id": "x"})
        named = next(room)
        for kind in ("history", "presence"):
            await ann.ask(kind, channel=named)
        refused: dict[str, Any] = {"channel": next(room), "data": {"no": "text"}}
        await ann.send(type="chat.message", id="m", **refused)
        await ann.until("error")
        left = next(room)
        await ann.subscribe(left)
        await ann.ask("unsubscribe", channel=left)
    held = await Client.open(server, hello=False, ready=False, headers=headers, query=f"?channels={next(room)}")
    await held.send(type="subscribe", id="s", channel=next(room))
    await held.close()
    for what in ("", "/history", "/state", "/presence"):
        await ask(server, "GET", f"/channels/{next(room)}{what}")
    await ask(server, "POST", f"/channels/{next(room)}/events", {"type": "unknown", "data": {}})


async def test_invented_channels_leave_nothing_in_redis_for_longer_than_a_minute() -> None:
    word = secrets.token_hex(4)
    rooms = [f"room:{word}-{number}" for number in range(40)]
    async with (
        RedisServer() as redis,
        serving(broker_settings={"url": redis.url}, deadlines={"presence_leave": 0.05}) as server,
    ):
        await use_every_door(server, rooms)

        async def is_unlisted() -> bool:
            return not [key for key in await redis.keys() if ":channels" in key]

        await until(is_unlisted, "no index is left", within=20)
        keys = await redis.keys(f"*{word}*")
        assert keys, "positions that were told hold for a while"
        for key in keys:
            assert 0 < await redis.command("PTTL", key) <= 1000 * max(EMPTY_SECONDS, PRESENCE_KEPT), key
        assert (await ask(server, "GET", "/channels?limit=10")).body["channels"] == []
