"""What `helm test` runs in the cluster: `health`, `publish` or `resume`, with the image's own Python. Exits with 0 if it works.

Reads from the environment: PUBLIC and OPS (addresses of the Services), CHANNEL, TYPE, DATA, SECRET_FILE, ISSUER, AUDIENCE.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt

WITHIN = 30.0
"""Seconds that a test may take. It does not wait for a new pod to be ready."""
USER = "helm-test"

Message = dict[str, Any]


def token() -> str:
    """A token for the user of this test, valid for a minute."""
    secret = Path(os.environ["SECRET_FILE"]).read_text(encoding="utf-8").strip()
    claims = {"iss": os.environ["ISSUER"], "aud": os.environ["AUDIENCE"], "sub": USER, "exp": time.time() + 60}
    return jwt.encode({**claims, "grants": [os.environ["CHANNEL"]]}, secret, "HS256")


class Client:
    """One connection to the service."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._waiting: list[Message] = []

    async def say(self, **message: object) -> None:
        """Sends one message."""
        await self._socket.send_json(message)

    async def hear(self, kind: str, **wanted: object) -> Message:
        """Returns the next message of that kind, and drops others before it. Fails on an error or a close."""
        while True:
            while not self._waiting:
                frame = await self._socket.receive()
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    sys.exit(f"the connection ended before {kind!r} came: {self._socket.close_code} {frame.extra}")
                heard = json.loads(frame.data)
                self._waiting += heard if isinstance(heard, list) else [heard]
            message = self._waiting.pop(0)
            if message["type"] == "error":
                sys.exit(f"refused: {message}")
            if message["type"] == kind and all(message.get(name) == value for name, value in wanted.items()):
                return message


@asynccontextmanager
async def joined(session: aiohttp.ClientSession, since: Message | None = None) -> AsyncIterator[tuple[Client, Message]]:
    """A client that has subscribed, and its `subscribed` message."""
    async with session.ws_connect(f"{os.environ['PUBLIC']}/ws", protocols=["tidewire.v1"]) as socket:
        client = Client(socket)
        await client.say(type="hello", token=token())
        await client.hear("welcome")
        await client.say(type="ready")
        asked = {"since": since} if since else {}
        await client.say(type="subscribe", id="s", channel=os.environ["CHANNEL"], **asked)
        yield client, await client.hear("subscribed", channel=os.environ["CHANNEL"])


async def publish_from(client: Client) -> str:
    """Publishes the configured event, and returns its id."""
    event = secrets.token_hex(8)
    data = json.loads(os.environ["DATA"])
    await client.say(type=os.environ["TYPE"], id=event, channel=os.environ["CHANNEL"], data=data)
    await client.hear("ack", id=event)
    return event


async def health(session: aiohttp.ClientSession) -> None:
    """A pod is ready, and exports metrics."""
    async with session.get(f"{os.environ['OPS']}/readyz") as answer:
        if answer.status != 200:
            sys.exit(f"/readyz: {answer.status} {await answer.text()}")
    async with session.get(f"{os.environ['OPS']}/metrics") as answer:
        if "tidewire_connections" not in await answer.text():
            sys.exit("/metrics has no tidewire_connections")


async def publish(session: aiohttp.ClientSession) -> None:
    """One client publishes an event, and another one receives it."""
    async with joined(session) as (reader, _), joined(session) as (writer, _):
        event = await publish_from(writer)
        await reader.hear(os.environ["TYPE"], id=event)


async def resume(session: aiohttp.ClientSession) -> None:
    """A client that reconnects receives the events that it has missed."""
    async with joined(session) as (_, subscribed):
        since = {"epoch": subscribed["epoch"], "offset": subscribed["offset"], "id": subscribed.get("last")}
    async with joined(session) as (writer, _):
        event = await publish_from(writer)
    async with joined(session, {name: value for name, value in since.items() if value is not None}) as (_, back):
        if back.get("recovered") is not True or event not in [missed["id"] for missed in back["events"]]:
            sys.exit(f"did not resume: recovered is {back.get('recovered')}, {len(back['events'])} events came")


async def main(name: str) -> None:
    """Runs one test within the time limit."""
    async with asyncio.timeout(WITHIN), aiohttp.ClientSession() as session:
        await {"health": health, "publish": publish, "resume": resume}[name](session)
    print(f"{name}: good")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
