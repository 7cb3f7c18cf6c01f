"""The messages that the database keeps for good."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import asyncpg
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from . import mail, unread
from .rooms import require_member
from .services import Shared
from .sessions import CurrentSession

router = APIRouter(prefix="/api/rooms/{room}")


@dataclass(frozen=True, slots=True)
class Message:
    """A message, as the webhook has told it."""

    entry_id: str
    room: str
    sender: str
    event_id: str
    sent_at: datetime
    text: str

    @classmethod
    def of(cls, entry: dict[str, Any]) -> Message:
        """Reads an entry of a delivery."""
        event = entry["event"]
        return cls(
            entry["id"],
            entry["channel"].removeprefix("room:"),
            event["from"],
            event["id"],
            datetime.fromtimestamp(event["at"] / 1000, UTC),
            event["data"]["text"],
        )


async def store(pool: asyncpg.Pool, messages: Sequence[Message], away: Sequence[str]) -> None:
    """Stores messages that are not stored yet, in their order, and writes e-mails to members who are away: all or nothing.

    Messages of rooms that no longer exist are dropped.
    """
    async with pool.acquire() as connection, connection.transaction():
        # The lock keeps the numbers of a room in order, should two deliveries arrive at once.
        rooms = await connection.fetch(
            "SELECT id, title FROM rooms WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE",
            sorted({message.room for message in messages}),
        )
        titles = {room["id"]: room["title"] for room in rooms}
        for message in messages:
            if message.room not in titles:
                continue
            number = await connection.fetchval(
                "INSERT INTO messages (entry_id, room, sender, event_id, sent_at, text) VALUES ($1, $2, $3, $4, $5, $6)"
                " ON CONFLICT (entry_id) DO NOTHING RETURNING number",
                message.entry_id,
                message.room,
                message.sender,
                message.event_id,
                message.sent_at,
                message.text,
            )
            if number is not None:
                await mail.write(connection, message, number, titles[message.room], away)


@router.get("/messages")
async def older(
    room: str,
    session: CurrentSession,
    services: Shared,
    before: Annotated[str | None, Query(max_length=128)] = None,
    sender: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> dict[str, Any]:
    """A page of messages, oldest first: those before the message with this id of this sender, or the newest ones.

    They look like events of Tidewire, so that a page shows both alike.
    """
    await require_member(services, room, session.user)
    rows = await services.pool.fetch(
        "SELECT number, event_id, sender, sent_at, text FROM messages WHERE room = $1 AND number < coalesce("
        " (SELECT max(number) FROM messages WHERE room = $1 AND event_id = $2 AND sender = $3), 9223372036854775807)"
        " ORDER BY number DESC LIMIT $4",
        room,
        before,
        sender,
        limit + 1,
    )
    return {"messages": [_event(row) for row in reversed(rows[:limit])], "more": len(rows) > limit}


class Read(BaseModel):
    """What somebody has seen."""

    newest: Annotated[int, Field(ge=0, lt=2**63)]


@router.post("/read", status_code=204)
async def mark_read(room: str, read: Read, session: CurrentSession, services: Shared) -> None:
    """Marks the messages up to this number as read, in all pages of the user."""
    await require_member(services, room, session.user)
    await services.pool.execute(
        "UPDATE members SET read_until = greatest(read_until, least($3,"
        " (SELECT coalesce(max(number), 0) FROM messages WHERE room = $1))) WHERE room = $1 AND user_name = $2",
        room,
        session.user,
        read.newest,
    )
    await unread.push_to_user(services, session.user, room)


def _event(row: asyncpg.Record) -> dict[str, Any]:
    return {
        "id": row["event_id"],
        "from": row["sender"],
        "at": round(row["sent_at"].timestamp() * 1000),
        "data": {"text": row["text"]},
        "number": row["number"],
    }
