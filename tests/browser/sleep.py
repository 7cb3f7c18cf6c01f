"""A machine that sleeps: no process of the browser runs."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from playwright.async_api import Browser

from tests.browser.firefox import Firefox


@asynccontextmanager
async def asleep(browser: Browser | Firefox) -> AsyncIterator[None]:
    """Stops all processes of a browser until the block ends. Its connections stay open."""
    if isinstance(browser, Firefox):
        processes = [-browser.group]
    else:
        cdp = await browser.new_browser_cdp_session()
        found = await cdp.send("SystemInfo.getProcessInfo")
        await cdp.detach()
        processes = [process["id"] for process in found["processInfo"]]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)
