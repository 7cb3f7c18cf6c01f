"""Hashes passwords with Argon2id, as argon2-cffi recommends, in threads: one hash takes 30 ms and 64 MB."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from .problems import Problem

MAX_AT_ONCE = 2
MAX_WAITING = 50


class Passwords:
    """Hashes and checks a few passwords at a time, so that a crowd that logs in takes neither all memory nor all threads."""

    def __init__(self) -> None:
        self._hasher = PasswordHasher()
        self._free = asyncio.Semaphore(MAX_AT_ONCE)
        self._waiting = 0
        self._of_nobody = self._hasher.hash("the password of nobody")

    async def hash(self, password: str) -> str:
        """Returns what to store."""
        async with self._turn():
            return await asyncio.to_thread(self._hasher.hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether it is the password. Without a user it takes as long, so that nobody learns which names exist."""
        async with self._turn():
            is_right = await asyncio.to_thread(self._verify, stored or self._of_nobody, password)
        return is_right and stored is not None

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if self._waiting >= MAX_WAITING:
            raise Problem(503, "Too many people are logging in right now. Try again in a moment.")
        self._waiting += 1
        try:
            async with self._free:
                yield
        finally:
            self._waiting -= 1

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._hasher.verify(stored, password)
        except VerificationError:
            return False
