"""docs/start/typescript.md: its files work as written, and Vite replaces a component without a new connection.

clients/js/test/packaging checks its types with the packed client."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from playwright.async_api import Browser, WebSocket, expect

from tests.stores.process import free_port
from tests.support import harness

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "clients" / "js"
MODULES = CLIENT / "node_modules"
PAGE = (ROOT / "docs" / "start" / "typescript.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.DOTALL))
NEEDED = ("react", "react-dom", "scheduler", "vite", "@vitejs")


async def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """Runs a program to its end, and returns its output."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=cwd, env=os.environ | env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None
    output = (await process.stdout.read()).decode()
    assert await process.wait() == 0, output
    return output


def install(app: Path) -> None:
    """Links the client, and what the page installs from the registry, into `app`."""
    (app / "package.json").write_text('{"name": "app", "private": true, "type": "module"}')
    (app / "node_modules").mkdir()
    (app / "node_modules" / "tidewire").symlink_to(CLIENT)
    for name in NEEDED:
        (app / "node_modules" / name).symlink_to(MODULES / name)


@asynccontextmanager
async def vite(app: Path, port: int) -> AsyncIterator[None]:
    """Runs Vite's development server."""
    process = await asyncio.create_subprocess_exec(
        *("node", MODULES / "vite" / "bin" / "vite.js", "--port", str(port), "--strictPort"),
        cwd=app,
        env=os.environ | {"NO_COLOR": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        assert process.stdout is not None
        while str(port) not in (line := (await process.stdout.readline()).decode()):
            assert line, "Vite did not start"
        yield
    finally:
        process.terminate()
        await process.communicate()


async def test_page_leads_from_an_empty_folder_to_a_typed_component(tmp_path: Path, browser: Browser) -> None:
    expect.set_options(timeout=20_000)
    port = free_port()
    app = tmp_path / "app"
    app.mkdir()
    install(app)
    (app / "contract.yaml").write_text(FILES["contract.yaml"])
    origin = f"http://localhost:{port}"
    async with (
        asyncio.timeout(90),
        harness.serving(contract=app / "contract.yaml", origins=(origin,)) as server,
    ):
        for name, text in FILES.items():
            (app / name).write_text(text.replace("ws://127.0.0.1:8080", server.url.replace("http", "ws", 1)))
        node = ("node", "--experimental-websocket")  # Node.js 22 needs no flag
        assert (await run(*node, "first.mjs", cwd=app, TOKEN=harness.token("ann"))).startswith("ann: hello\n")

        async with vite(app, port):
            page = await browser.new_page()
            sockets: list[str] = []

            def opened(socket: WebSocket) -> None:
                sockets.append(socket.url)

            page.on("websocket", opened)
            await page.goto(f"{origin}/?token={harness.token('ben')}")
            await expect(page.locator("li")).to_have_text(["ann: hello"])
            await page.get_by_role("button").click()
            await expect(page.locator("li")).to_have_text(["ann: hello", "ben: hi"])

            await page.evaluate("globalThis.mark = true")
            (app / "Room.tsx").write_text((app / "Room.tsx").read_text().replace("Say hi</", "Greet</"))
            await expect(page.get_by_role("button")).to_have_text("Greet")
            await server.publish("room:42", {"type": "chat.message", "data": {"text": "after the change"}})
            await expect(page.locator("li")).to_have_text(["ann: hello", "ben: hi", ": after the change"])
            assert await page.evaluate("mark"), "the page was not loaded again"
            assert sum(url.startswith(server.url.replace("http", "ws", 1)) for url in sockets) == 1
            assert await server.metric("subscriptions") == 1
            await page.close()
