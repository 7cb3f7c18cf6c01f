"""The JavaScript client in a Node process, for tests of what it does with a real service."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.stores.process import program
from tests.support.harness import DEADLINE, eventually, token

_SCRIPT = Path(__file__).with_name("js_client.mjs")


class CallFailedError(Exception):
    """A call of the client has rejected; `code` says with what."""

    def __init__(self, code: str, message: str, details: dict[str, Any] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.details = details or {}


class JsClient:
    """One `Tidewire` object. What it reports is in `lines`, in order; `after` is in seconds since `connect()`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._serial = 0
        self.lines: list[dict[str, Any]] = []

    async def read(self) -> None:
        """Reads what the process reports, until it ends."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            report = json.loads(line)
            if (call := report.get("call")) is None:
                self.lines.append(report)
            elif "failed" in report:
                self._calls[call].set_exception(
                    CallFailedError(report["failed"], report["message"], report.get("details"))
                )
            else:
                self._calls[call].set_result(report["result"])

    def start(self, op: str, **more: Any) -> asyncio.Future[Any]:
        """Calls a method, and returns the future of its result."""
        assert self._process.stdin is not None
        self._serial += 1
        future = self._calls[self._serial] = asyncio.get_running_loop().create_future()
        self._process.stdin.write(json.dumps({"op": op, "call": self._serial, **more}).encode() + b"\n")
        return future

    async def call(self, op: str, **more: Any) -> Any:
        """Calls a method, and returns its result. Raises CallFailedError."""
        async with asyncio.timeout(DEADLINE):
            return await self.start(op, **more)

    def all(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """The reports of a kind so far."""
        return [
            line
            for line in self.lines
            if kind in line and all(line.get(name) == value for name, value in fields.items())
        ]

    @property
    def states(self) -> list[tuple[str, str]]:
        """State and transport, in order."""
        return [(line["state"]["state"], line["state"]["transport"]) for line in self.all("state")]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for what the reports show."""
        await eventually(holds, lambda: self.lines[-10:])

    async def ready(self, transport: str) -> None:
        """Waits until the client is connected in this way."""
        await self.until(lambda: self.states[-1:] == [("ready", transport)])


@asynccontextmanager
async def js_client(url: str, user: str = "ann", **options: Any) -> AsyncIterator[JsClient]:
    """A client of that address, which has not connected yet. `options` are those of `Tidewire`; `tokens` are what its
    function returns, the last one again and again."""
    argument = json.dumps({"url": url, "tokens": [token(user)], **options})
    process = await asyncio.create_subprocess_exec(
        program("node", "nodejs"), str(_SCRIPT), argument, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    client = JsClient(process)
    reading = asyncio.create_task(client.read())
    try:
        yield client
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(DEADLINE):
                await process.wait()
        except TimeoutError:
            process.kill()
            raise
        finally:
            await reading
    assert process.returncode == 0
