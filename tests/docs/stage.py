"""Runs an application of the docs: a real service behind a network that can be cut, and the application's programs."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, expect

from service.settings import load_settings
from tests.docs.blocks import DOCS, ROOT, write_files
from tests.stores.process import free_port
from tests.support import harness
from tests.support.backend import SECRET as WEBHOOK_SECRET
from tests.support.proxy import Proxy

PACKAGES = ROOT / "tests" / "docs" / "migrate" / "node_modules"
"""The packages of the migrated applications; `make test-docs` installs them."""

TIMEOUT = 60_000
"""Milliseconds that a page may take to show something."""

expect.set_options(timeout=TIMEOUT)


@dataclass(slots=True)
class Program:
    """A program that runs, and what it has printed."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    async def printed(self, pattern: str, *, times: int = 1) -> None:
        """Waits until so many lines match the pattern."""
        await harness.eventually(
            lambda: sum(bool(re.search(pattern, line)) for line in self.lines) >= times or self._has_ended(),
            lambda: self.lines,
            within=TIMEOUT / 1000,
        )
        assert sum(bool(re.search(pattern, line)) for line in self.lines) >= times, self.lines

    def _has_ended(self) -> bool:
        return self.process.returncode is not None

    async def read(self) -> None:
        """Reads what the program prints, until its end."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode(errors="replace").rstrip())


@asynccontextmanager
async def program(command: Sequence[str | Path], folder: Path, environment: dict[str, str]) -> AsyncIterator[Program]:
    """Runs a program until the block ends. Fails the test if it has ended by itself, or has printed a traceback."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        | {"PYTHONUNBUFFERED": "1"}
        | environment,
    )
    running = Program(process)
    reader = asyncio.create_task(running.read())
    try:
        yield running
        assert process.returncode is None, running.lines
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(TIMEOUT / 1000):
            await process.wait()
            await reader
    assert not any("Traceback" in line for line in running.lines), running.lines


@dataclass(slots=True)
class Stage:
    """An application that runs."""

    origin: str
    server: harness.Running
    network: Proxy
    """Between pages and the service."""
    folder: Path
    browser: Browser
    backend: Program
    faults: list[str] = field(default_factory=list)
    """Exceptions of pages."""

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the application's programs."""
        return environment(self.server)

    async def window(self, user: str) -> Page:
        """Opens the page as that user, with cookies and storage of its own."""
        page = await (await self.browser.new_context()).new_page()
        page.set_default_timeout(TIMEOUT)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        await page.goto(f"{self.origin}/?user={user}")
        return page

    async def post(self, path: str, **options: Any) -> int:
        """Posts to the application's backend, and returns the status."""
        async with self.server.http.post(f"{self.origin}{path}", **options) as response:
            return response.status

    @asynccontextmanager
    async def run(self, file: str) -> AsyncIterator[Program]:
        """Runs another program of the application."""
        async with program([sys.executable, file], self.folder, self.environment) as running:
            yield running


def environment(server: harness.Running) -> dict[str, str]:
    """The variables that backends read."""
    return {
        "TIDEWIRE_URL": server.url,
        "TIDEWIRE_API_KEY": harness.API_KEY,
        "TIDEWIRE_SECRET": harness.SECRET,
        "WEBHOOK_SECRET": WEBHOOK_SECRET,
        "PYTHONPATH": "",
    }


@asynccontextmanager
async def stage(
    pages: Sequence[str],
    folder: Path,
    browser: Browser,
    *,
    command: Sequence[str] = (sys.executable, "serve.py"),
    replace: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Stage]:
    """Runs the application whose files are on these pages of docs/; `command` starts its backend. `replace` has texts
    that the files have differently, `settings` those of the service."""
    (folder / "clients").symlink_to(ROOT / "clients")
    (folder / "node_modules").symlink_to(PACKAGES)
    application = folder / "application"
    port = free_port()
    origin = f"http://localhost:{port}"
    for page in pages:
        write_files(DOCS / page, application)
    _replace(application, replace or {})
    use_port(application, port)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(300))
        server = await stack.enter_async_context(
            harness.serving(
                contract=application / "contract.yaml", origins=(origin,), **_settings_file(application), **settings
            )
        )
        network = Proxy(int(server.url.rpartition(":")[2]))
        stack.push_async_callback(network.close)
        _replace(application, {"ws://127.0.0.1:8080": f"ws://127.0.0.1:{await network.start()}"})
        backend = await stack.enter_async_context(program(command, application, environment(server)))
        await backend.printed("Running on")
        running = Stage(origin, server, network, application, browser, backend)
        yield running
        for context in browser.contexts:
            await context.close()
        assert running.faults == []


def _settings_file(application: Path) -> dict[str, Any]:
    """What the application's settings.yaml says of webhooks."""
    file = application / "settings.yaml"
    if not file.exists():
        return {}
    (application / "webhook-secret").write_text(WEBHOOK_SECRET)
    return {"webhooks": load_settings(file, {"TIDEWIRE_DEMO": "true"}).webhooks.model_dump()}


def use_port(folder: Path, port: int) -> None:
    """Lets the application's backend listen on that port, not on 3000."""
    _replace(
        folder,
        {
            "port=3000": f"port={port}",
            "listen(3000": f"listen({port}",
            "http://localhost:3000": f"http://localhost:{port}",
        },
        at_least=1,
    )


def _replace(folder: Path, texts: dict[str, str], at_least: int | None = None) -> None:
    """Replaces texts in all files. Fails the test if a text, or all but `at_least` of them, are in no file."""
    found = set()
    for file in filter(Path.is_file, folder.rglob("*")):
        content = file.read_text(encoding="utf-8")
        for old, new in texts.items():
            if old in content:
                found.add(old)
                content = content.replace(old, new)
        file.write_text(content, encoding="utf-8")
    assert len(found) >= (len(texts) if at_least is None else at_least), f"of {list(texts)}, the files have {found}"
