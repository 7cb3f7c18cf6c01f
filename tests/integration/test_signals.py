"""Signals to a process that serves, from its first moment on."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from service.app import Service
from service.signals import STOP_SIGNALS
from tests.integration.command import CHECKOUT, SOON, Command, command
from tests.stores.process import HOST
from tests.support.harness import API_KEY, CONTRACT, SECRET, Client, Running

pytestmark = pytest.mark.slow

SETTINGS = {
    "AUTH__SECRET": SECRET,
    "API__KEY": API_KEY,
    "CONTRACT": str(CONTRACT),
    "LOG__FORMAT": "json",
    "OPS_PORT": "0",
    "PORT": "0",
}
QUICKLY = 10.0
"""Seconds for an end that waits for nobody, on a busy machine; far less than what would be waited for."""


async def ended_quickly(run: Command) -> int:
    try:
        async with asyncio.timeout(QUICKLY):
            return await run.ended()
    except TimeoutError:
        raise AssertionError(f"it runs on:\n{run.text()}") from None


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Accepts connections and says nothing: its port, and whether somebody has come."""
    come, over = asyncio.Event(), asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        come.set()
        await over.wait()
        writer.close()

    server = await asyncio.start_server(accept, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1], come
    finally:
        over.set()
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("scheme", "number"), [*(("redis", number) for number in STOP_SIGNALS), ("nats", signal.SIGTERM)]
)
async def test_stop_signal_while_waiting_for_broker_ends_the_start(scheme: str, number: signal.Signals) -> None:
    async with (
        silent_server() as (port, come),
        command(
            "service", "serve", **SETTINGS, BROKER__URL=f"{scheme}://{HOST}:{port}", BROKER__UNREADY_AFTER="600"
        ) as run,
    ):
        async with asyncio.timeout(SOON):
            await come.wait()
        run.process.send_signal(number)
        assert await ended_quickly(run) == 0, run.text()
        assert run.told("serving") == []
        assert [entry["event"] for entry in run.log if entry["level"] not in ("info", "warning")] == [], run.text()
        assert len(run.told("stopped")) == 1


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_stop_signal_before_settings_are_read_ends_the_process(number: signal.Signals, tmp_path: Path) -> None:
    """Process 1 of a container would not hear it otherwise: the kernel keeps signals without a handler from it."""
    settings = tmp_path / "settings.yaml"
    os.mkfifo(settings)
    async with command("service", "serve", "--config", str(settings)) as run:
        async with asyncio.timeout(SOON):
            pipe = await asyncio.to_thread(os.open, settings, os.O_WRONLY)  # as soon as it is read from
        try:
            run.process.send_signal(number)
            assert await ended_quickly(run) == 0
        finally:
            os.close(pipe)
        assert run.log == []


@asynccontextmanager
async def slow_to_go(**others: str) -> AsyncIterator[tuple[Command, list[Client]]]:
    """A service whose drain would take a minute, and its clients."""
    settings = {**SETTINGS, "ROLLOUT__DRAIN_RATE": "0.5", "DEADLINES__SHUTDOWN": "600"} | others
    async with command("service", "serve", **settings) as run, aiohttp.ClientSession() as http:
        await run.until(lambda: bool(run.told("serving")))
        url = f"http://{HOST}:{run.told('serving')[0]['port']}"
        server = Running(cast(Service, None), url, "", http)
        yield run, [await Client.open(server, f"u{number}") for number in range(30)]


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_second_stop_signal_ends_the_drain(number: signal.Signals) -> None:
    async with slow_to_go() as (run, clients):
        ends = [asyncio.create_task(client.closed()) for client in clients]
        run.process.send_signal(number)
        run.process.send_signal(signal.SIGTERM)  # at the same time: as a service manager and a parent do it
        async with asyncio.timeout(SOON):
            await ends[0]
        assert not any(end.done() for end in ends[2:]), "the first goes after two seconds, the last after a minute"
        run.process.send_signal(number)
        assert await ended_quickly(run) == 0
        async with asyncio.timeout(SOON):
            assert await asyncio.gather(*ends) == [1012] * len(clients)
        for client in clients:
            assert [one["reason"] for one in client.received if one["type"] == "reconnect"] == ["shutdown"]


async def test_sighup_ignored_at_the_start_stays_ignored() -> None:
    """`nohup tidewire serve` outlives its terminal. SIGPIPE ends nothing either."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # is handed down
    try:
        async with slow_to_go() as (run, clients):
            run.process.send_signal(signal.SIGHUP)
            run.process.send_signal(signal.SIGPIPE)
            for client in clients[:3]:
                await client.silence()
            run.process.send_signal(signal.SIGTERM)
            await run.until(lambda: bool(run.told("draining")))
            assert len(run.told("draining")) == 1
            await asyncio.gather(*(client.close() for client in clients))
            assert await ended_quickly(run) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


ENDS_SLOWLY = """
import atexit, sys
from service.__main__ import main
atexit.register(lambda: print("ending", flush=True) or sys.stdin.readline())
sys.exit(main())
"""


async def test_stop_signals_after_the_drain_are_ignored() -> None:
    """Python takes a while to end, and whoever has sent two signals may send a third."""
    environ = {**os.environ, **{f"TIDEWIRE_{name}": value for name, value in SETTINGS.items()}}
    run = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ENDS_SLOWLY, "serve"),
        cwd=CHECKOUT,
        env=environ,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert run.stdin is not None
    assert run.stdout is not None
    try:
        async with asyncio.timeout(SOON):
            await _line_with(run.stdout, b'"serving"')
            run.send_signal(signal.SIGTERM)
            await _line_with(run.stdout, b"ending")
            for number in STOP_SIGNALS:
                run.send_signal(number)
            run.stdin.write(b"\n")
            assert (await run.communicate())[0] == b""
        assert run.returncode == 0
    finally:
        if run.returncode is None:
            run.kill()
            await run.wait()


async def _line_with(output: asyncio.StreamReader, words: bytes) -> None:
    seen = []
    while words not in (line := await output.readline()):
        seen.append(line)
        assert line, seen
