"""Tidewire asks: may this user read the room? May this message be published? (docs/hooks.md)"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from . import moderation
from .services import Services, Shared
from .signed import content_of

router = APIRouter()


@router.post("/tidewire/hooks")
async def decide(request: Request, services: Shared) -> dict[str, Any]:
    """Answers a question. What it does not know it refuses."""
    question = await content_of(request, services.settings.hook_secret)
    if not await is_member(services, question):
        return {"allow": False, "reason": "You are not a member of this room."}
    if question["hook"] == "read":
        return {"allow": True}
    if question["hook"] == "publish" and question["event"]["type"] == "chat.message":
        return moderate(question["event"]["data"]["text"])
    return {"allow": False}


async def is_member(services: Services, question: dict[str, Any]) -> bool:
    """Whether the user of a question is a member of its room."""
    room = question["channel"].removeprefix("room:")
    member: bool = await services.pool.fetchval(
        "SELECT EXISTS (SELECT FROM members WHERE room = $1 AND user_name = $2)", room, question["user"]
    )
    return member


def moderate(text: str) -> dict[str, Any]:
    """Refuses a message, changes it, or lets it pass."""
    reason = moderation.reason_to_refuse(text)
    if reason is not None:
        return {"allow": False, "reason": reason}
    masked = moderation.masked(text)
    return {"allow": True} if masked == text else {"allow": True, "data": {"text": masked}}
