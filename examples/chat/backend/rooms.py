"""Rooms and their members. Who knows the invitation of a room may join it."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from tidewire import TidewireError

from . import unread
from .problems import Problem, log
from .services import Services, Shared
from .sessions import CurrentSession

router = APIRouter(prefix="/api")

MAX_ROOMS = 50
"""Rooms of a user."""
MAX_MEMBERS = 200
"""Members of a room."""


class NewRoom(BaseModel):
    """What a new room needs."""

    title: Annotated[str, Field(max_length=200)]


@router.get("/rooms")
async def my_rooms(session: CurrentSession, services: Shared) -> list[dict[str, Any]]:
    """The rooms of the user, by title, with the number of unread messages."""
    numbers = await unread.of_user(services.pool, session.user)
    rooms = await services.pool.fetch(
        "SELECT id, title FROM rooms WHERE id = ANY($1) ORDER BY lower(title), id", list(numbers)
    )
    return [{"id": room["id"], "title": room["title"], **numbers[room["id"]]} for room in rooms]


@router.post("/rooms", status_code=201)
async def create_room(new: NewRoom, session: CurrentSession, services: Shared) -> dict[str, str]:
    """Makes a room; its first member is the user."""
    title = " ".join(new.title.split())
    if not 1 <= len(title) <= 60:
        raise Problem(422, "A room needs a name of at most 60 characters.", "title")
    await _refuse_too_many_rooms(services, session.user)
    room, invitation = secrets.token_hex(6), secrets.token_urlsafe(12)
    async with services.pool.acquire() as connection, connection.transaction():
        await connection.execute("INSERT INTO rooms VALUES ($1, $2, $3)", room, title, invitation)
        await connection.execute("INSERT INTO members (room, user_name) VALUES ($1, $2)", room, session.user)
    await _tell(services, session.user, room)
    return {"id": room}


@router.get("/rooms/{room}")
async def show_room(room: str, session: CurrentSession, services: Shared) -> dict[str, Any]:
    """A room with its members, and the code that invites others."""
    found = await services.pool.fetchrow(
        "SELECT title, invitation FROM rooms JOIN members ON room = id WHERE id = $1 AND user_name = $2",
        room,
        session.user,
    )
    if found is None:
        raise _no_such_room()
    members = await services.pool.fetch("SELECT user_name FROM members WHERE room = $1 ORDER BY user_name", room)
    return {"id": room, **dict(found), "members": [row["user_name"] for row in members]}


@router.get("/invitations/{invitation}")
async def show_invitation(invitation: str, _session: CurrentSession, services: Shared) -> dict[str, str]:
    """The room to which an invitation leads."""
    return dict(await _invited(services, invitation))


@router.post("/invitations/{invitation}")
async def join(invitation: str, session: CurrentSession, services: Shared) -> dict[str, str]:
    """Makes the user a member of the room. What was written before counts as read."""
    room = (await _invited(services, invitation))["id"]
    await _refuse_too_many_rooms(services, session.user)
    async with services.pool.acquire() as connection, connection.transaction():
        if await connection.fetchrow("SELECT id FROM rooms WHERE id = $1 FOR NO KEY UPDATE", room) is None:
            raise _no_such_room()  # its last member has left meanwhile
        count = await connection.fetchval(
            "SELECT count(*) FROM members WHERE room = $1 AND user_name <> $2", room, session.user
        )
        if count >= MAX_MEMBERS:
            raise Problem(409, f"This room is full: it has {MAX_MEMBERS} members.")
        await connection.execute(
            "INSERT INTO members (room, user_name, read_until)"
            " SELECT $1, $2, coalesce(max(number), 0) FROM messages WHERE room = $1 ON CONFLICT DO NOTHING",
            room,
            session.user,
        )
    await _tell(services, session.user, room)
    return {"id": room}


@router.delete("/rooms/{room}/members/me", status_code=204)
async def leave(room: str, session: CurrentSession, services: Shared) -> None:
    """Ends the membership, and the user's subscriptions to the room. The last member takes the room along.

    If Tidewire cannot be reached, the page asks again; Tidewire itself checks memberships every ten minutes (contract.yaml).
    """
    async with services.pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM rooms WHERE id = $1 FOR UPDATE", room)
        await connection.execute("DELETE FROM members WHERE room = $1 AND user_name = $2", room, session.user)
        is_empty = await connection.fetchval(
            "DELETE FROM rooms WHERE id = $1 AND NOT EXISTS (SELECT FROM members WHERE room = $1) RETURNING true", room
        )
    channel = f"room:{room}"
    await services.tidewire.unsubscribe_user(session.user, channel)
    await services.tidewire.remove_value(f"user:{session.user}", "room.unread", room)
    if is_empty:
        await services.tidewire.purge(channel)
    else:
        await services.tidewire.publish(channel, "room.changed", {})


async def require_member(services: Services, room: str, user: str) -> None:
    """Raises Problem(404): who is not a member does not even learn whether there is such a room."""
    is_member = await services.pool.fetchval(
        "SELECT EXISTS (SELECT FROM members WHERE room = $1 AND user_name = $2)", room, user
    )
    if not is_member:
        raise _no_such_room()


def _no_such_room() -> Problem:
    return Problem(404, "There is no such room, or you are not a member of it.")


async def _invited(services: Services, invitation: str) -> Any:
    room = await services.pool.fetchrow("SELECT id, title FROM rooms WHERE invitation = $1", invitation)
    if room is None:
        raise Problem(404, "This invitation leads nowhere. Ask for a new one.")
    return room


async def _refuse_too_many_rooms(services: Services, user: str) -> None:
    if await services.pool.fetchval("SELECT count(*) FROM members WHERE user_name = $1", user) >= MAX_ROOMS:
        raise Problem(409, f"You are in {MAX_ROOMS} rooms, as many as possible. Leave one first.")


async def _tell(services: Services, user: str, room: str) -> None:
    """Tells open pages: those of the user, and those that show the room. Who misses it sees it at the next visit."""
    try:
        await unread.push_to_user(services, user, room)
        await services.tidewire.publish(f"room:{room}", "room.changed", {})
    except TidewireError as error:
        log.warning("nobody was told of the new member of %s: %s", room, error)
