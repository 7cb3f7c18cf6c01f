"""The in-memory service of `tidewire/testing` sends what this service sends."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.compatibility.revisions import CHECKOUT
from tests.support.harness import API_KEY, DEADLINE, serving, token

SCENARIO = CHECKOUT / "clients" / "js" / "test" / "parity.mjs"
DEBOUNCE = 0.5
"""Seconds; parity.mjs has the same."""


async def test_memory_service_sends_what_the_service_sends() -> None:
    seeing = {"channel": "room:*", "rights": ["subscribe"]}
    grants: dict[str, list[Any]] = {"ann": ["room:*"], "ben": ["room:*"], "cid": [seeing], "dan": []}
    async with serving(deadlines={"presence_leave": DEBOUNCE}) as server:
        world = {
            "url": f"{server.url.replace('http', 'ws')}/ws",
            "api": server.url,
            "key": API_KEY,
            "tokens": {user: token(user, grants=given) for user, given in grants.items()},
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
