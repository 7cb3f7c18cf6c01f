"""docs/migrate: the applications after the move run as the pages print them, those before it against the other server."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Browser, Page, expect

from benchmarks.peers.peer import TOOLS
from service.contract.load import load
from tests.docs.blocks import DOCS, write_files
from tests.docs.stage import PACKAGES, TIMEOUT, program, stage
from tests.stores.process import free_port
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.asyncio(loop_scope="session")]
FOLDER = PACKAGES.parent
PAGES = sorted(page.stem for page in (DOCS / "migrate").glob("from-*.md"))


@pytest.mark.parametrize("page", PAGES)
async def test_page_contract_loads(page: str, tmp_path: Path) -> None:
    write_files(DOCS / "migrate" / f"{page}.md", tmp_path)
    assert load(tmp_path / "contract.yaml").channels


@pytest.mark.browser
@pytest.mark.docs
async def test_chat_from_pusher_works_after_the_move(tmp_path: Path, browser: Browser) -> None:
    async with stage(["migrate/from-pusher.md"], tmp_path, browser, command=("node", "server.mjs")) as running:
        ann, ben = await talk(running.window, "Ann, Ben")
        await say(ann, "hello @ben")
        await expect(ben.locator("#mentions")).to_have_text("1")
        await expect(ann.locator("#mentions")).to_have_text("0")
        running.network.cut()
        await say(ann, "while ben is away")
        running.network.heal()
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(
                ["ann: hi", "ann: hello @ben", "ann: while ben is away"]
            )


@pytest.mark.browser
@pytest.mark.docs
async def test_chat_from_socket_io_works_after_the_move(tmp_path: Path, browser: Browser) -> None:
    async with stage(["migrate/from-socket-io.md"], tmp_path, browser, command=("node", "server.mjs")) as running:
        ann, ben = await talk(running.window, "ann, ben")
        running.network.cut()
        await say(ann, "while both are away")
        running.network.heal()
        await ben.reload()
        for page in (ann, ben):
            await expect(page.locator("#messages li")).to_have_text(["ann: hi", "ann: while both are away"])


@pytest.mark.browser
@pytest.mark.docs
async def test_dashboard_from_centrifugo_works_after_the_move(tmp_path: Path, browser: Browser) -> None:
    async with stage(["migrate/from-centrifugo.md"], tmp_path, browser, command=(sys.executable, "app.py")) as running:
        ann, ben = [await running.window(user) for user in ("ann", "ben")]
        for page in (ann, ben):
            await expect(page.locator("#viewers")).to_have_text("ann, ben")
        assert await running.post("/sample", json={"value": 1.5}) == 200
        running.network.cut()
        assert await running.post("/sample", json={"value": 2.5}) == 200
        running.network.heal()
        await ben.reload()
        for page in (ann, ben):
            await expect(page.locator("#load")).to_have_text("2.5")
            await expect(page.locator("#samples li")).to_have_text(["1.5", "2.5"])


@pytest.mark.browser
@pytest.mark.docs
async def test_chat_on_socket_io_works_before_the_move(tmp_path: Path, browser: Browser) -> None:
    application = copy("socket-io", tmp_path)
    port = free_port()
    async with program(["node", "server.mjs"], application, {"PORT": str(port)}) as server:
        await server.printed("Running on")
        await talk(lambda user: opened(browser, port, user), "ann, ben")


@pytest.mark.browser
@pytest.mark.docs
async def test_dashboard_on_centrifugo_works_before_the_move(tmp_path: Path, browser: Browser) -> None:
    centrifugo = TOOLS / "bin" / "centrifugo"
    if not centrifugo.exists():
        pytest.skip("Centrifugo is not installed: `make bench PEERS=centrifugo` builds it with Go")
    application = copy("centrifugo", tmp_path)
    port, own_port = free_port(), free_port()
    network = Proxy(own_port)
    replace(application, "localhost:3000", f"localhost:{port}")
    replace(application, '"port": 8000', f'"port": {own_port}')
    replace(application, "ws://127.0.0.1:8000", f"ws://127.0.0.1:{await network.start()}")
    environment = {"PORT": str(port), "CENTRIFUGO_API": f"http://127.0.0.1:{own_port}/api"}
    try:
        async with (
            program([centrifugo, "--config", "config.json"], application, {}) as server,
            program([sys.executable, "app.py"], application, environment) as backend,
            aiohttp.ClientSession() as http,
        ):
            await server.printed("serving websocket")
            await backend.printed("Running on")
            ann, ben = [await opened(browser, port, user) for user in ("ann", "ben")]
            for page in (ann, ben):
                await expect(page.locator("#viewers")).to_have_text("ann, ben")
            for value in (1.5, 2.5):
                await http.post(f"http://localhost:{port}/sample", json={"value": value}, raise_for_status=True)
                network.cut()
            network.heal()
            await ben.reload()
            for page in (ann, ben):
                await expect(page.locator("#samples li")).to_have_text(["1.5", "2.5"])
    finally:
        await network.close()


def copy(name: str, folder: Path) -> Path:
    """Copies the application before the move to a folder where it finds its packages."""
    (folder / "node_modules").symlink_to(PACKAGES)
    application = folder / name / "before"
    shutil.copytree(FOLDER / name / "before", application)
    return application


def replace(folder: Path, old: str, new: str) -> None:
    """Replaces a text in all files; it has to be in one."""
    files = {file: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert any(old in content for content in files.values()), old
    for file, content in files.items():
        file.write_text(content.replace(old, new), encoding="utf-8")


async def opened(browser: Browser, port: int, user: str) -> Page:
    """Opens the application as that user."""
    page = await (await browser.new_context()).new_page()
    page.set_default_timeout(TIMEOUT)
    await page.goto(f"http://localhost:{port}/?user={user}")
    return page


async def talk(window: Callable[[str], Awaitable[Page]], members: str) -> tuple[Page, Page]:
    """Opens a chat in two windows: both show the members, that somebody types, and a message."""
    ann, ben = [await window(user) for user in ("ann", "ben")]
    for page in (ann, ben):
        await expect(page.locator("#members")).to_have_text(members)
    await ann.locator("#text").press_sequentially("hi")
    await expect(ben.locator("#typing")).to_have_text("ann typing …")
    await ann.locator("#text").press("Enter")
    for page in (ann, ben):
        await expect(page.locator("#messages li")).to_have_text(["ann: hi"])
    return ann, ben


async def say(page: Page, text: str) -> None:
    """Sends a message."""
    await page.locator("#text").fill(text)
    await page.locator("#text").press("Enter")
