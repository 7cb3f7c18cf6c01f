"""The in-memory service of `tidewire/testing` sends what this service sends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.compatibility.revisions import CHECKOUT
from tests.support.backend import serving_backend
from tests.support.harness import API_KEY, DEADLINE, serving, token

SCENARIO = CHECKOUT / "clients" / "js" / "test" / "parity.mjs"
DEBOUNCE = 0.5
"""Seconds; parity.mjs has the same."""
SHOP = Path(__file__).parent / "calls.yaml"
ANSWERS = {
    "tea": {"data": {"price": 5}},
    "cake": {"error": {"reason": "sold_out", "message": "no cake", "data": {"left": 0}}},
    "gold": {"allow": False, "reason": "banned"},
    "air": {"data": {}},
}
"""What the backend answers, by the item; parity.mjs has the same."""


async def answer(request: web.Request) -> web.StreamResponse:
    data = json.loads(await request.read())["data"]
    return web.json_response({"data": None} if data is None else ANSWERS[data["item"]])


async def test_memory_service_sends_what_the_service_sends() -> None:
    seeing = {"channel": "room:*", "rights": ["subscribe"]}
    grants: dict[str, list[Any]] = {"ann": ["room:*"], "ben": ["room:*"], "cid": [seeing], "dan": []}
    async with (
        serving(deadlines={"presence_leave": DEBOUNCE}) as server,
        serving_backend() as backend,
        serving(contract=SHOP, hooks={"endpoints": [backend.endpoint("shop")]}) as shop,
    ):
        backend.reply = answer
        world = {
            "url": f"{server.url.replace('http', 'ws')}/ws",
            "api": server.url,
            "key": API_KEY,
            "tokens": {user: token(user, grants=given) for user, given in grants.items()},
            "shop": {"url": f"{shop.url.replace('http', 'ws')}/ws", "api": shop.url},
            "granting": token("dan", aud="tidewire:subscription", grants=["room:9"]),
        }
        process = await asyncio.create_subprocess_exec(
            "node", str(SCENARIO), json.dumps(world), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        try:
            async with asyncio.timeout(DEADLINE):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, output.decode()
    assert b"messages are the same" in output
