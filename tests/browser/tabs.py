"""What the scenarios of both browsers need of a browser. Playwright's objects have it, and those of `firefox`."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol


class Tab(Protocol):
    """A page."""

    async def goto(self, url: str) -> Any: ...

    async def go_back(self) -> Any: ...

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        """The value of an expression, or of a function for `arg`; a promise is awaited."""

    async def wait_for_function(self, expression: str, *, arg: Any = None) -> Any:
        """Waits until the value is true."""

    async def close(self) -> None: ...


class Context(Protocol):
    """Tabs with cookies and databases of their own."""

    async def new_page(self) -> Tab: ...

    async def add_init_script(self, script: str) -> Any: ...

    async def close(self) -> None: ...


class AnyBrowser(Protocol):
    """Chromium or Firefox."""

    async def new_context(self) -> Context: ...


async def becomes(tab: Tab, expression: str, arg: Any = None, *, within: float = 30.0) -> None:
    """Waits until the value is true. Playwright's `wait_for_function` needs a policy of the page that allows `eval`."""
    try:
        async with asyncio.timeout(within):
            while not await tab.evaluate(expression, arg):  # noqa: ASYNC110  # the page reports no event
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"not true within {within:g} s: {expression}") from None
