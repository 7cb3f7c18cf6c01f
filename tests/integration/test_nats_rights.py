"""The rights that docs/guarantees.md names are all that the service needs at NATS."""

from __future__ import annotations

import re
from pathlib import Path

from service.adapters.nats.records import SEGMENT
from tests.harness import API_KEY, Client, serving, token
from tests.integration.test_redis_rights import talk
from tests.stores import NatsServer

PAGE = (Path(__file__).parents[2] / "docs" / "guarantees.md").read_text(encoding="utf-8")
[RULE] = re.findall(r"```\n(publish: .*?)```", PAGE, re.DOTALL)


async def test_the_service_works_with_the_rights_of_the_page() -> None:
    rules = f'authorization {{ users: [{{ user: "tidewire", password: "secret", permissions: {{ {RULE} }} }}] }}'
    async with NatsServer(config=rules) as nats:
        broker = {"url": nats.url, "user": "tidewire", "password": "secret"}
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
            for _ in range(2 * SEGMENT):  # so many that the stream is trimmed
                await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})
            listing = f"{server.url}/api/v1/channels"
            async with server.http.get(listing, headers={"Authorization": f"Bearer {API_KEY}"}) as response:
                assert [one["channel"] for one in (await response.json())["channels"]] == ["room:1"]
        assert "Violation" not in nats.log
