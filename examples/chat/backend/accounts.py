"""Sign up, log in, log out, and the token with which a page connects to Tidewire."""

from __future__ import annotations

import re
from typing import Annotated

import asyncpg
from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

from . import sessions
from .problems import Problem
from .services import Services, Shared
from .sessions import CurrentSession, MaybeSession

router = APIRouter(prefix="/api")

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{1,19}")
EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s]+\.[^@\s]+")
MIN_PASSWORD = 10
MAX_FAILURES, FAILURE_MINUTES = 10, 10
TOKEN_SECONDS = 600
"""A page gets a new token before this one ends. As long as it counts, connections need no backend."""

Text = Annotated[str, Field(max_length=200)]


class Login(BaseModel):
    """A name and a password."""

    name: Text
    password: Text


class SignUp(Login):
    """A new account."""

    email: Text


@router.post("/accounts", status_code=201)
async def sign_up(form: SignUp, response: Response, services: Shared) -> dict[str, str]:
    """Makes an account, and logs in."""
    name = form.name.strip().lower()
    if not NAME.fullmatch(name):
        raise Problem(422, "A name has 2 to 20 letters a to z, digits, - or _.", "name")
    if not EMAIL.fullmatch(form.email.strip()):
        raise Problem(422, "This does not look like an e-mail address.", "email")
    if len(form.password) < MIN_PASSWORD:
        raise Problem(422, f"A password has at least {MIN_PASSWORD} characters.", "password")
    password_hash = await services.passwords.hash(form.password)
    try:
        await services.pool.execute(
            "INSERT INTO users (name, email, password_hash) VALUES ($1, $2, $3)",
            name,
            form.email.strip().lower(),
            password_hash,
        )
    except asyncpg.UniqueViolationError as error:
        if error.constraint_name == "users_pkey":
            raise Problem(409, "This name is taken.", "name") from None
        raise Problem(409, "There is an account with this e-mail address.", "email") from None
    await sessions.begin(services, response, name)
    return {"name": name}


@router.post("/session")
async def log_in(form: Login, response: Response, services: Shared) -> dict[str, str]:
    """Logs in."""
    name = form.name.strip().lower()[:20]
    await _refuse_guesses(services, name)
    stored = await services.pool.fetchval("SELECT password_hash FROM users WHERE name = $1", name)
    if not await services.passwords.matches(stored, form.password):
        await services.pool.execute("INSERT INTO login_failures (user_name) VALUES ($1)", name)
        raise Problem(401, "The name or the password is wrong.", "password")
    await sessions.begin(services, response, name)
    return {"name": name}


@router.delete("/session", status_code=204)
async def log_out(request: Request, response: Response, services: Shared) -> None:
    """Logs out."""
    await sessions.end(services, request, response)


@router.get("/me")
async def me(session: MaybeSession, services: Shared) -> dict[str, str] | None:
    """Who is logged in, if anybody, and where Tidewire is."""
    if session is None:
        return None
    return {"name": session.user, "tidewire": services.settings.tidewire_socket}


@router.get("/token", response_class=PlainTextResponse)
async def token(session: CurrentSession, services: Shared) -> str:
    """A token of Tidewire for the user. It grants no room: Tidewire asks about each (hooks.py)."""
    return services.signer.token(session.user, ttl=TOKEN_SECONDS, jti=session.token_id)


async def _refuse_guesses(services: Services, name: str) -> None:
    await services.pool.execute(
        "DELETE FROM login_failures WHERE at < now() - make_interval(mins => $1)", FAILURE_MINUTES
    )
    failures = await services.pool.fetchval("SELECT count(*) FROM login_failures WHERE user_name = $1", name)
    if failures >= MAX_FAILURES:
        raise Problem(429, f"Too many wrong passwords. Try again in {FAILURE_MINUTES} minutes.", "password")
