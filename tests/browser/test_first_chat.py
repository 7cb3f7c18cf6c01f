"""docs/start/first-chat.md: its files chat in two real windows."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, expect

from tests.stores.process import free_port
from tests.support import harness

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "start" / "first-chat.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
TIMEOUT = 30_000
"""Milliseconds that a window may take to show something; a user leaves the list 5 s after the last window."""


@asynccontextmanager
async def backend(folder: Path, port: int) -> AsyncIterator[None]:
    """Runs the tutorial's backend.py on that port, until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "backend.py",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert f"http://localhost:{port}" in (await process.stdout.readline()).decode()
        yield
    finally:
        process.send_signal(signal.SIGINT)
        await process.wait()


async def open_window(browser: Browser, origin: str, user: str) -> Page:
    """Opens the chat as that user, with cookies and storage of its own."""
    page = await (await browser.new_context()).new_page()
    await page.goto(f"{origin}/?user={user}")
    return page


async def test_tutorial_files_give_a_chat_with_presence_typing_and_history(tmp_path: Path, browser: Browser) -> None:
    expect.set_options(timeout=TIMEOUT)
    folder = tmp_path / "chat"
    folder.mkdir()
    (tmp_path / "clients").symlink_to(ROOT / "clients")
    port = free_port()
    origin = f"http://localhost:{port}"
    assert FILES.keys() == {"contract.yaml", "backend.py", "index.html"}
    (folder / "contract.yaml").write_text(FILES["contract.yaml"])
    (folder / "backend.py").write_text(FILES["backend.py"].replace("port=3000", f"port={port}"))
    (folder / "secret").write_text(harness.SECRET)
    async with (
        asyncio.timeout(90),
        harness.serving(contract=folder / "contract.yaml", origins=(origin,)) as server,
        backend(folder, port),
    ):
        html = FILES["index.html"].replace("ws://127.0.0.1:8080", server.url.replace("http", "ws", 1))
        assert html != FILES["index.html"]
        (folder / "index.html").write_text(html)

        ann, ben = [await open_window(browser, origin, user) for user in ("ann", "ben")]
        for page in (ann, ben):
            await expect(page.locator("#members")).to_have_text("ann, ben")

        await ann.locator("#text").press_sequentially("hi")
        await expect(ben.locator("#typing")).to_have_text("ann is typing …")
        await ann.locator("#text").press("Enter")
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(["ann: hi"])

        await ben.reload()
        await expect(ben.locator("#messages li")).to_have_text(["ann: hi"])

        await ben.context.set_offline(offline=True)
        await server.publish("room:lobby", {"type": "chat.message", "data": {"text": "hello from the backend"}})
        await ben.context.set_offline(offline=False)
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(["ann: hi", "the backend: hello from the backend"])

        await ben.close()
        await expect(ann.locator("#members")).to_have_text("ann")
