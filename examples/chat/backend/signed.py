"""Requests of Tidewire, signed as Standard Webhooks say (https://www.standardwebhooks.com). Others are refused."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from standardwebhooks import Webhook, WebhookVerificationError

from .problems import Problem


async def content_of(request: Request, secret: str) -> dict[str, Any]:
    """Returns the body of a request, if it was signed with this secret in the last five minutes. Raises Problem(401)."""
    try:
        content: dict[str, Any] = Webhook(secret).verify(await request.body(), dict(request.headers))
    except (WebhookVerificationError, ValueError):
        raise Problem(401, "This request is not signed by Tidewire.") from None
    return content
