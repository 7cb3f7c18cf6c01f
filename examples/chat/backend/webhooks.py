"""Tidewire tells: these messages were published. They are stored, and whoever is away gets an e-mail (docs/webhooks.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import APIRouter, Request

from . import unread
from .messages import Message, store
from .services import Services, Shared
from .signed import content_of

router = APIRouter()

MAX_BODY = 4 * 1024 * 1024
"""Bytes of a delivery, which has up to 100 messages."""
MAX_COUNTED = 1000
"""Channels in one request to Tidewire."""


@router.post("/tidewire/webhooks", status_code=204, max_body_size=MAX_BODY)
async def receive(request: Request, services: Shared) -> None:
    """Accepts a delivery. If anything fails, Tidewire sends the same entries again; so each step may be repeated."""
    delivery = await content_of(request, services.settings.webhook_secret)
    messages = [Message.of(entry) for entry in delivery["entries"] if is_message(entry)]
    if not messages:
        return
    rooms = sorted({message.room for message in messages})
    members = await services.pool.fetch("SELECT DISTINCT user_name FROM members WHERE room = ANY($1)", rooms)
    await store(services.pool, messages, await away(services, [row["user_name"] for row in members]))
    services.mails.wake()
    await unread.push_to_members(services, rooms)


def is_message(entry: dict[str, Any]) -> bool:
    """Whether an entry is about a message of a user. Others are accepted, and ignored."""
    if entry["type"] != "event.published":
        return False
    event = entry["event"]
    return event["type"] == "chat.message" and event.get("from") is not None


async def away(services: Services, users: Sequence[str]) -> list[str]:
    """Returns the users who have no page open."""
    found: list[str] = []
    for some in _parts(users, MAX_COUNTED):
        counts = await services.tidewire.presence_counts([f"user:{user}" for user in some])
        found += [user for user in some if counts[f"user:{user}"] == 0]
    return found


def _parts(users: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    return (users[start : start + size] for start in range(0, len(users), size))
