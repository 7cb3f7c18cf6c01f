"""A JavaScript client of any age, in a process of its own; player.mjs is its other half."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.faults.tokens import token

PLAYER = Path(__file__).with_name("player.mjs")
DEADLINE = 60.0
"""Seconds for one command, on a machine where others work too."""


class Player:
    """Sends commands to the process, and reads its answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, command: str) -> dict[str, Any]:
        """Sends one command, and returns its answer. Fails the test if the client has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\n".encode())
        async with asyncio.timeout(DEADLINE):
            line = await self._process.stdout.readline()
        assert line, f"the client has ended at {command!r}"
        answer: dict[str, Any] = json.loads(line)
        assert "failed" not in answer, answer["failed"]
        return answer


@asynccontextmanager
async def playing(client: Path, port: int, channel: str, name: str) -> AsyncIterator[Player]:
    """A client from a folder of sources, connected to a node and subscribed to the channel."""
    process = await asyncio.create_subprocess_exec(
        *("node", str(PLAYER), str(client), f"ws://127.0.0.1:{port}/ws", token(name, "red"), channel, name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=16 * 2**20,
    )
    try:
        player = Player(process)
        await player.ask("open")
        yield player
        await player.ask("end")
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
