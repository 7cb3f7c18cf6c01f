"""What the routes share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import asyncpg
from fastapi import Depends, Request
from tidewire import AsyncTidewire, TokenSigner

from .database import connected
from .mail import MailSender
from .passwords import Passwords
from .settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The database, Tidewire, and what works in the background. One for each process."""

    settings: Settings
    pool: asyncpg.Pool
    tidewire: AsyncTidewire
    signer: TokenSigner
    passwords: Passwords
    mails: MailSender


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Services]:
    """Opens all of it, and closes it at the end."""
    async with (
        connected(settings.database_url) as pool,
        AsyncTidewire(settings.tidewire_url, api_key=settings.tidewire_api_key) as tidewire,
        MailSender(pool, settings).running() as mails,
    ):
        yield Services(settings, pool, tidewire, TokenSigner(settings.token_secret), Passwords(), mails)


def _of(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Shared = Annotated[Services, Depends(_of)]
"""A parameter of a route."""
