"""A demo service as its own process, a network that can be lost, and a Chromium."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.browser.firefox import Firefox, running
from tests.support.proxy import Proxy

PATIENCE = 30_000
"""Milliseconds that anything on a page may take to show, unless a test says otherwise."""

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
START = 60.0
"""Seconds that the service may take to start."""


@dataclass(frozen=True, slots=True)
class Demo:
    """The demo service: reached directly, and through a proxy."""

    url: str
    proxied: str
    proxy: Proxy
    folder: Path


@pytest_asyncio.fixture(loop_scope="session")
async def demo(tmp_path: Path) -> AsyncIterator[Demo]:
    """A demo service for one test."""
    async with running_demo(tmp_path) as demo:
        yield demo


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def demo_of_file(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Demo]:
    async with running_demo(tmp_path_factory.mktemp("demo")) as demo:
        yield demo


@pytest_asyncio.fixture(loop_scope="session")
async def shared_demo(demo_of_file: Demo) -> AsyncIterator[Demo]:
    """A demo service for all tests of a file. What they publish stays; the network is whole for each."""
    yield demo_of_file
    demo_of_file.proxy.heal()


@asynccontextmanager
async def running_demo(folder: Path) -> AsyncIterator[Demo]:
    """Runs the demo service in a folder. At its end, nothing may have been logged as an error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "service",
        "serve",
        "--demo",
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=os.environ
        | {
            "TIDEWIRE_PORT": "0",
            "TIDEWIRE_OPS_PORT": "0",
            "TIDEWIRE_LOG__FORMAT": "json",
            "TIDEWIRE_DEMO_SEED": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        },
    )
    assert process.stdout is not None
    lines: list[str] = []
    drain: asyncio.Task[None] | None = None
    proxy: Proxy | None = None
    try:
        async with asyncio.timeout(START):
            port = await _port(process.stdout, lines)
        drain = asyncio.create_task(_drain(process.stdout, lines))
        proxy = Proxy(port)
        yield Demo(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{await proxy.start()}", proxy, folder)
    finally:
        if proxy is not None:
            await proxy.close()
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            status = await process.wait()
        if drain is not None:
            await drain
    assert status == 0, lines[-20:]
    faults = [line for line in lines if '"level": "error"' in line]
    assert not faults, faults


async def _port(output: asyncio.StreamReader, lines: list[str]) -> int:
    while line := (await output.readline()).decode():
        lines.append(line)
        if '"serving"' in line:
            return int(json.loads(line)["port"])
    raise AssertionError(f"the service did not start: {lines}")


async def _drain(output: asyncio.StreamReader, lines: list[str]) -> None:
    while line := (await output.readline()).decode():
        lines.append(line)


@pytest_asyncio.fixture(loop_scope="session")
async def browser(chromium: Browser) -> AsyncIterator[Browser]:
    """Chromium without a page. Contexts share no cookie and no database; those of the test are closed after it."""
    yield chromium
    for context in chromium.contexts:
        await context.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def chromium() -> AsyncIterator[Browser]:
    """One Chromium for all tests of a process: its start takes as long as a test."""
    async with running_chromium() as browser:
        yield browser


@asynccontextmanager
async def running_chromium(ignore: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """Runs Chromium, without those of Playwright's arguments."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.fail("no Chromium: `make test` installs it, or apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=found, args=ARGUMENTS, ignore_default_args=ignore)
        yield browser
        await browser.close()


@dataclass(frozen=True, slots=True)
class Window:
    """A user's page, and what went wrong in it."""

    page: Page
    faults: list[str]


async def open_window(
    browser: Browser,
    url: str,
    user: str,
    page: str = "console",
    *,
    fragment: str = "",
    dark: bool = False,
    width: int = 1440,
) -> Window:
    """Opens the page of a demo for a user and waits until it is online."""
    context = await browser.new_context(
        color_scheme="dark" if dark else "light", viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    tab = await context.new_page()
    tab.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    faults: list[str] = []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    await tab.goto(f"{url}/demo/{page}/?user={user}#{fragment}")
    await tab.get_by_test_id("connection").get_by_text("Online").wait_for()
    return Window(tab, faults)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def firefox(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Firefox]:
    """One Firefox for all tests of a process."""
    async with running(tmp_path_factory.mktemp("firefox")) as firefox:
        yield firefox


@pytest.fixture(params=["chromium", "firefox"])
def each_browser(request: pytest.FixtureRequest, chromium: Browser, firefox: Firefox) -> Browser | Firefox:
    """Runs the test in both browsers."""
    return chromium if request.param == "chromium" else firefox
