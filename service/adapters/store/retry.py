"""Retries steps that fail temporarily: connecting, and conflicting writes of several nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.core.backoff import Backoff

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


async def retry(
    step: Callable[[], Awaitable[T]],
    backoff: Backoff,
    errors: type[E] | tuple[type[E], ...],
    on_error: Callable[[E], None] | None = None,
) -> T:
    """Calls `step` until it succeeds, and returns its result. After one of the `errors`, waits and retries.

    Each error is passed to `on_error`, which may raise to give up.
    """
    while True:
        try:
            return await step()
        except errors as error:
            if on_error is not None:
                on_error(error)
        await asyncio.sleep(backoff.next())
