"""Repeats what fails for a while: connecting, and writing what another node has written at the same time."""

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
    """Returns the first result of `step`; after each of the `errors` it waits and tries again.

    `on_error` sees each of them first, and raises to give up.
    """
    while True:
        try:
            return await step()
        except errors as error:
            if on_error is not None:
                on_error(error)
        await asyncio.sleep(backoff.next())
