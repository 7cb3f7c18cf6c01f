"""The backend: `uvicorn backend.app:create_app --factory`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from . import accounts, hooks, messages, pages, problems, rooms, webhooks
from .services import running
from .settings import Settings

MAX_BODY = 64 * 1024
"""Bytes of a request. Deliveries of Tidewire may have more (webhooks.py)."""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Puts the backend together. `settings`: by default those of the environment."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    chosen = settings or Settings.from_environment()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(chosen) as app.state.services:
            yield

    app = FastAPI(title="Chat", lifespan=lifespan, max_body_size=MAX_BODY, openapi_url=None)
    for part in (accounts, rooms, messages, hooks, webhooks, pages):
        app.include_router(part.router)
    pages.mount_assets(app)
    problems.register(app)
    return app
