"""What the scenarios of both browsers need of a browser. Playwright's objects have it, and those of `firefox`."""

from __future__ import annotations

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
