"""Who is logged in: a cookie with a random value, whose hash is in the database."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Response

from .problems import Problem
from .services import Services, Shared

COOKIE = "chat_session"
DAYS = 30


@dataclass(frozen=True, slots=True)
class Session:
    """Somebody who is logged in, in one browser."""

    user: str
    token_id: str


async def begin(services: Services, response: Response, user: str) -> None:
    """Logs a user in: sets the cookie."""
    value = secrets.token_urlsafe(32)
    await services.pool.execute("DELETE FROM sessions WHERE expires_at < now()")
    await services.pool.execute(
        "INSERT INTO sessions VALUES ($1, $2, $3, now() + make_interval(days => $4))",
        _hash(value),
        user,
        secrets.token_urlsafe(12),
        DAYS,
    )
    # Lax: no other site can send requests with this cookie that change something.
    is_https = services.settings.site_url.startswith("https:")
    response.set_cookie(COOKIE, value, max_age=DAYS * 86_400, httponly=True, samesite="lax", secure=is_https)


async def end(services: Services, request: Request, response: Response) -> None:
    """Logs out. Connections of this browser are closed, and its Tidewire tokens count no more."""
    response.delete_cookie(COOKIE)
    token_id = await services.pool.fetchval(
        "DELETE FROM sessions WHERE token_hash = $1 RETURNING token_id", _hash(request.cookies.get(COOKIE, ""))
    )
    if token_id is not None:
        await services.tidewire.revoke_token(token_id)


async def _find(request: Request, services: Shared) -> Session | None:
    row = await services.pool.fetchrow(
        "SELECT user_name, token_id FROM sessions WHERE token_hash = $1 AND expires_at > now()",
        _hash(request.cookies.get(COOKIE, "")),
    )
    return None if row is None else Session(row["user_name"], row["token_id"])


MaybeSession = Annotated[Session | None, Depends(_find)]
"""A parameter of a route: who is logged in, or None."""


async def _require(session: MaybeSession) -> Session:
    if session is None:
        raise Problem(401, "You are not logged in.")
    return session


CurrentSession = Annotated[Session, Depends(_require)]
"""A parameter of a route that only somebody who is logged in may use."""


def _hash(value: str) -> bytes:
    return hashlib.sha256(value.encode()).digest()
