"""Firefox, driven over WebDriver BiDi (W3C): the few commands that the scenarios of both browsers need.

Playwright needs a Firefox of its own, or a newer one than Debian's. Puppeteer would need a program in Node.js between it and
the tests.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp

TIMEOUT = 20.0
"""Seconds for a command, and for `wait_for_function`."""
START = 60.0
"""Seconds until Firefox listens."""
PREFERENCES = {
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.timeout.enable_budget_timer_throttling": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,#remote-settings-dummy/v1",
    "toolkit.telemetry.enabled": False,
}
"""Firefox contacts nobody by itself."""
_EVALUATE = """(async () => {
  const found = (%s);
  return JSON.stringify(await (typeof found === 'function' ? found(%s) : found));
})()"""
_WAIT = """async () => {
  const deadline = performance.now() + %d;
  for (;;) {
    const found = (%s);
    if (await (typeof found === 'function' ? found(%s) : found)) return true;
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}"""
_BUSY = "() => { const end = performance.now() + 500; while (performance.now() < end); }"


class FirefoxError(Exception):
    """A command failed, or a script."""


class Firefox:
    """A running Firefox."""

    def __init__(self, process: asyncio.subprocess.Process, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._process = process
        self._ws = ws
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._serial = 0
        self._reading = asyncio.Lock()
        self.errors: list[tuple[str, str]] = []
        """Errors of consoles that have been read: the id of the tab, and the text."""

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Runs a command. No task reads the answers: one of those that wait reads for all."""
        self._serial += 1
        reply = self._replies[self._serial] = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(2 * TIMEOUT):
            await self._ws.send_json({"id": self._serial, "method": method, "params": params})
            while not reply.done():
                async with self._reading:
                    if not reply.done():
                        self._read(await self._ws.receive_json())
        found: dict[str, Any] = reply.result()
        if found["type"] == "error":
            raise FirefoxError(f"{method}: {found['error']}: {found['message']}")
        result: dict[str, Any] = found["result"]
        return result

    def _read(self, message: dict[str, Any]) -> None:
        entry = message.get("params", {})
        if message.get("method") == "log.entryAdded" and entry["level"] == "error":
            self.errors.append((entry["source"].get("context", ""), entry["text"] or ""))
        if (reply := self._replies.pop(message.get("id", 0), None)) is not None:
            reply.set_result(message)

    async def new_context(self) -> FirefoxContext:
        created = await self.call("browser.createUserContext")
        return FirefoxContext(self, created["userContext"])

    @property
    def group(self) -> int:
        """The process group of all its processes."""
        return self._process.pid


class FirefoxContext:
    """Tabs with cookies and databases of their own."""

    def __init__(self, firefox: Firefox, id: str) -> None:
        self._firefox = firefox
        self._id = id

    async def new_page(self) -> FirefoxPage:
        created = await self._firefox.call("browsingContext.create", type="tab", userContext=self._id)
        return FirefoxPage(self._firefox, created["context"])

    async def add_init_script(self, script: str) -> None:
        """Runs before the scripts of every page."""
        await self._firefox.call(
            "script.addPreloadScript", functionDeclaration=f"() => {{ {script} }}", userContexts=[self._id]
        )

    async def close(self) -> None:
        await self._firefox.call("browser.removeUserContext", userContext=self._id)


class FirefoxPage:
    """A tab."""

    def __init__(self, firefox: Firefox, id: str) -> None:
        self._firefox = firefox
        self._id = id

    async def goto(self, url: str) -> None:
        await self._firefox.call("browsingContext.navigate", context=self._id, url=url, wait="complete")

    @property
    def errors(self) -> list[str]:
        """The errors on its console before the last command."""
        return [text for tab, text in self._firefox.errors if tab == self._id]

    async def go_back(self) -> None:
        await self._firefox.call("browsingContext.traverseHistory", context=self._id, delta=-1)

    async def bring_to_front(self) -> None:
        """Shows this tab, and hides the others."""
        await self._firefox.call("browsingContext.activate", context=self._id)

    async def evaluate(self, expression: str, arg: Any = None) -> Any:
        return await self._run(_EVALUATE % (expression, json.dumps(arg)))

    async def wait_for_function(self, expression: str, *, arg: Any = None) -> None:
        waits = _WAIT % (TIMEOUT * 1000, expression, json.dumps(arg))
        if not await self.evaluate(waits):
            raise TimeoutError(expression)

    async def _run(self, script: str) -> Any:
        reply = await self._firefox.call(
            "script.evaluate", expression=script, target={"context": self._id}, awaitPromise=True
        )
        if reply["type"] == "exception":
            raise FirefoxError(reply["exceptionDetails"]["text"])
        text = reply["result"].get("value")
        return None if text is None else json.loads(text)

    async def crash(self) -> None:
        """Kills the process of the tab: the one that is busy when the tab is. Up to four tabs have processes of their own."""
        async with asyncio.timeout(TIMEOUT):
            while (pid := await self._busy_process()) is None:
                pass
        os.kill(pid, signal.SIGKILL)

    async def _busy_process(self) -> int | None:
        """The process that has used much more CPU time than all others while the tab was busy."""
        before = _cpu_ticks(self._firefox.group)
        await self.evaluate(_BUSY)
        used = {pid: ticks - before.get(pid, 0) for pid, ticks in _cpu_ticks(self._firefox.group).items()}
        busiest, second = sorted(used, key=used.__getitem__, reverse=True)[:2]
        return busiest if used[busiest] >= 10 and used[busiest] >= 5 * used[second] else None

    async def close(self) -> None:
        await self._firefox.call("browsingContext.close", context=self._id)


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Firefox]:
    """Runs Firefox with a new profile in that folder."""
    found = shutil.which("firefox-esr") or shutil.which("firefox")
    assert found, "no Firefox: `make test` installs it, or apt-get install firefox-esr"
    (folder / "user.js").write_text(
        "".join(f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in PREFERENCES.items())
    )
    process = await asyncio.create_subprocess_exec(
        *(found, "--headless", "--no-remote", "--profile", str(folder), "--remote-debugging-port", "0", "about:blank"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        address = None
        async with asyncio.timeout(START):
            while address is None:
                line = (await process.stderr.readline()).decode(errors="replace")
                assert line, "Firefox did not start"
                address = re.search(r"BiDi listening on (ws://\S+)", line)
        drain = asyncio.create_task(_drain(process.stderr))
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{address[1]}/session", max_msg_size=0) as ws,
        ):
            firefox = Firefox(process, ws)
            await firefox.call("session.new", capabilities={})
            await firefox.call("session.subscribe", events=["log.entryAdded"])
            yield firefox
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
    await drain


def _cpu_ticks(group: int) -> dict[int, int]:
    """The CPU time of each process of the group but the first, which has no tabs."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(") ")[2].split()
            if int(fields[2]) == group != int(path.parent.name):
                found[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    return found


async def _drain(output: asyncio.StreamReader) -> None:
    while await output.read(65536):
        pass
