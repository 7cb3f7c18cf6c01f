"""A page of Chromium that Playwright does not manage: Playwright's pages are always visible, so Chromium never freezes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from playwright.async_api import Browser, CDPSession


class PlainPage:
    """A page, by commands of the Chrome DevTools Protocol."""

    def __init__(self, browser: CDPSession, session: str) -> None:
        self._browser = browser
        self._session = session
        self._serial = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        browser.on("Target.receivedMessageFromTarget", self._receive)

    def _receive(self, event: dict[str, Any]) -> None:
        message = json.loads(event["message"])
        if event["sessionId"] == self._session and message.get("id") in self._replies:
            self._replies.pop(message["id"]).set_result(message)

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Runs a command."""
        self._serial += 1
        reply = self._replies[self._serial] = asyncio.get_running_loop().create_future()
        text = json.dumps({"id": self._serial, "method": method, "params": params})
        await self._browser.send("Target.sendMessageToTarget", {"message": text, "sessionId": self._session})
        message: dict[str, Any] = await reply
        assert "error" not in message, message
        result: dict[str, Any] = message["result"]
        return result

    async def evaluate(self, expression: str) -> Any:
        found = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def becomes(self, condition: str) -> None:
        """Waits until the condition is true, as often as the page can answer."""
        while not await self.evaluate(condition):  # noqa: ASYNC110  # the page reports no event
            await asyncio.sleep(0.01)

    async def freeze(self) -> None:
        """Hides and freezes the page, as Chromium does with tabs that nobody looks at."""
        await self.send("Page.setWebLifecycleState", state="frozen")

    async def thaw(self) -> None:
        await self.send("Page.setWebLifecycleState", state="active")


@asynccontextmanager
async def plain_page(browser: Browser, url: str) -> AsyncIterator[PlainPage]:
    """Opens a page, outside of all contexts."""
    cdp = await browser.new_browser_cdp_session()
    target = (await cdp.send("Target.createTarget", {"url": url}))["targetId"]
    try:
        attached = await cdp.send("Target.attachToTarget", {"targetId": target, "flatten": False})
        yield PlainPage(cdp, attached["sessionId"])
    finally:
        await cdp.send("Target.closeTarget", {"targetId": target})
        await cdp.detach()
