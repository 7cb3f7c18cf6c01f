"""What people and Tidewire ask the backend of the example, as requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import default
from itertools import count
from typing import Any

import asyncpg
import httpx
from standardwebhooks import Webhook
from tidewire import AsyncTidewire

from examples.chat.stack import Stack

PASSWORD = "correct horse battery"
_numbers = count(1)


def new_name(name: str) -> str:
    """A name that no other test uses."""
    return f"{name}-{next(_numbers)}"


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody who is logged in."""

    name: str
    http: httpx.AsyncClient

    async def create_room(self, title: str = "Harbour") -> tuple[str, str]:
        """Returns the id of the room, and its invitation."""
        room = (await self.http.post("/api/rooms", json={"title": title})).raise_for_status().json()["id"]
        return room, (await self.http.get(f"/api/rooms/{room}")).json()["invitation"]

    async def join(self, invitation: str) -> None:
        (await self.http.post(f"/api/invitations/{invitation}")).raise_for_status()

    async def unread(self) -> list[int]:
        return [room["unread"] for room in (await self.http.get("/api/rooms")).raise_for_status().json()]


class Chat:
    """The running example."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def tidewire(self) -> AsyncTidewire:
        """Tidewire, as the backend uses it."""
        return AsyncTidewire(self.stack.tidewire_url, api_key=self.stack.secrets["api-key"])

    def visitor(self) -> httpx.AsyncClient:
        """Somebody who is not logged in."""
        return httpx.AsyncClient(base_url=self.stack.url, timeout=20)

    @asynccontextmanager
    async def person(self, name: str) -> AsyncIterator[Person]:
        """Makes an account, with a name that begins with this one."""
        async with self.visitor() as http:
            form = {"name": new_name(name), "password": PASSWORD}
            (await http.post("/api/accounts", json={**form, "email": f"{form['name']}@example.org"})).raise_for_status()
            yield Person(form["name"], http)

    async def deliver(self, entries: Sequence[dict[str, Any]], **more: Any) -> httpx.Response:
        """Posts a webhook delivery, signed as Tidewire signs it."""
        body = {"endpoint": "backend", "tenant": "default", "entries": list(entries)}
        return await self.post("/tidewire/webhooks", body, secret="webhook-secret", **more)

    async def post(self, path: str, body: dict[str, Any], *, secret: str, forged: bool = False) -> httpx.Response:
        """Posts a signed request."""
        text, now, number = json.dumps(body), datetime.now(UTC), f"d-{next(_numbers)}"
        headers = {
            "Content-Type": "application/json",
            "webhook-id": number,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(self.stack.secrets[secret]).sign(number, now, text),
        }
        async with self.visitor() as http:
            return await http.post(path, content=text + " " * forged, headers=headers)

    async def rows(self, query: str, *values: object) -> list[Any]:
        """Reads the database."""
        connection = await asyncpg.connect(self.stack.database_url)
        try:
            return [tuple(row) if len(row) > 1 else row[0] for row in await connection.fetch(query, *values)]
        finally:
            await connection.close()

    def mails_to(self, name: str) -> list[tuple[str, str]]:
        """Subject and text of the mails that have arrived for somebody."""
        files = sorted(self.stack.mails.glob("*"), key=lambda file: file.stat().st_mtime)
        found = [message_from_bytes(file.read_bytes(), policy=default) for file in files]
        return [(mail["Subject"], mail.get_content()) for mail in found if mail["To"] == f"{name}@example.org"]


def message(room: str, sender: str, text: str, entry: str | None = None) -> dict[str, Any]:
    """An entry of a delivery: a message that was published."""
    number = next(_numbers)
    event = {"type": "chat.message", "id": f"m-{number}", "from": sender, "at": 1_795_374_000_000 + number}
    return {
        "id": entry or f"wh_{number}",
        "type": "event.published",
        "at": event["at"],
        "channel": f"room:{room}",
        "event": {**event, "data": {"text": text}, "offset": number, "epoch": "e1"},
    }
