"""An authenticator that a test can pause."""

from __future__ import annotations

import asyncio

from service.core.identity import Identity


class PausedAuthenticator:
    """An authenticator that waits until the test opens it."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.opens = asyncio.Event()

    def authenticate_now(self, token: str) -> None:
        return None

    async def authenticate_subscription(self, token: str) -> Identity:
        raise AssertionError

    async def authenticate(self, token: str) -> Identity:
        self.asked.set()
        await self.opens.wait()
        return Identity("default", "ann")
