"""How many messages each member has not seen. PostgreSQL counts; Tidewire brings the numbers to the open pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import asyncpg
from tidewire import NewEvent

from .services import Services

MAX_COUNTED = 100
"""Pages show 99+ from here on, and the database counts no further."""

COUNT = f"""
    SELECT members.room, members.user_name, unread.count AS unread, newest.number AS newest
    FROM members,
        LATERAL (SELECT count(*) FROM (
            SELECT FROM messages
            WHERE messages.room = members.room AND number > read_until AND sender <> members.user_name
            LIMIT {MAX_COUNTED}
        ) AS first_hundred) AS unread,
        LATERAL (SELECT coalesce(max(number), 0) AS number FROM messages WHERE messages.room = members.room) AS newest
"""  # noqa: S608  # a constant


async def push_to_members(services: Services, rooms: Sequence[str]) -> None:
    """Tells all members of these rooms."""
    await _push(services, "room = ANY($1)", rooms)


async def push_to_user(services: Services, user: str, room: str) -> None:
    """Tells the pages of one member."""
    await _push(services, "user_name = $1 AND room = $2", user, room)


async def of_user(pool: asyncpg.Pool, user: str) -> dict[str, dict[str, Any]]:
    """Returns the numbers of a user's rooms."""
    rows = await pool.fetch(f"{COUNT} WHERE user_name = $1", user)
    return {row["room"]: _data(row) for row in rows}


async def _push(services: Services, which: str, *values: object) -> None:
    """The rows stay locked until the numbers are published, so that an older number never follows a newer one."""
    async with services.pool.acquire() as connection, connection.transaction():
        await connection.execute(
            f"SELECT FROM members WHERE {which} ORDER BY room, user_name FOR NO KEY UPDATE",
            *values,  # ours
        )
        rows = await connection.fetch(f"{COUNT} WHERE {which}", *values)
        result = await services.tidewire.publish_many(
            NewEvent(f"user:{row['user_name']}", "room.unread", _data(row)) for row in rows
        )
        for refused in result.refused:
            raise refused.error


def _data(row: asyncpg.Record) -> dict[str, Any]:
    return {"room": row["room"], "unread": row["unread"], "newest": row["newest"]}
