"""Authenticators for tests: one without any method that works, and one that a test can pause."""

from __future__ import annotations

import asyncio

from service.core.hooks import ClientContext
from service.core.identity import Identity


class StubAuthenticator:
    """An authenticator that always has to wait, and asks no backend. A test overrides `authenticate`."""

    def authenticate_now(self, token: str) -> Identity | None:
        return None

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        raise AssertionError

    async def authenticate_without_token(self, context: ClientContext | None) -> Identity | None:
        return None

    async def authenticate_again(self, identity: Identity, token: str | None = None) -> Identity:
        raise AssertionError

    async def authenticate_subscription(self, token: str) -> Identity:
        raise AssertionError

    def forget(self, identity: Identity) -> None:
        raise AssertionError


class PausedAuthenticator(StubAuthenticator):
    """An authenticator that waits until the test opens it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.opens = asyncio.Event()

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        self.asked.set()
        await self.opens.wait()
        return Identity("default", "ann")
