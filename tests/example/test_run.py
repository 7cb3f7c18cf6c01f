"""examples/chat/run.py, which `make example` runs: it says where the chat is, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.stores.process import free_port

pytestmark = [pytest.mark.example]

RUN = Path(__file__).parents[2] / "examples" / "chat" / "run.py"


async def start(port: int) -> Process:
    ports = ("--port", str(port), "--tidewire-port", str(free_port()))
    return await asyncio.create_subprocess_exec(sys.executable, str(RUN), *ports, stdout=PIPE, stderr=STDOUT)


def processes(folder: Path | str) -> list[int]:
    """The programs whose command names this folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended
            if str(folder) in file.read_text():
                found.append(int(file.parent.name))
    return found


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_run_ends_all_programs_and_deletes_their_data(ending: signal.Signals) -> None:
    port = free_port()
    run = await start(port)
    assert run.stdout is not None
    try:
        async with asyncio.timeout(60):
            text = (await run.stdout.readuntil(b"Ctrl+C ends")).decode()
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/")).status_code == 200
        [folder] = map(Path, re.findall(r"Logs: +(\S+)", text))
        assert len(processes(folder)) >= 3  # PostgreSQL, the mail server, Tidewire
    finally:
        run.send_signal(ending)
        async with asyncio.timeout(60):
            assert await run.wait() == 0
    assert processes(folder) == []
    assert not folder.exists()


async def test_run_with_a_port_that_is_taken_says_what_to_do() -> None:
    async with await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        run = await start(port)
        output, _ = await run.communicate()
    assert run.returncode == 1
    assert f"port {port} is taken. Choose others with --port and --tidewire-port.\n" in output.decode()


async def test_run_says_which_program_has_ended() -> None:
    run = await start(free_port())
    assert run.stdout is not None
    async with asyncio.timeout(60):
        text = (await run.stdout.readuntil(b"Ctrl+C ends")).decode()
        [folder] = map(Path, re.findall(r"Logs: +(\S+)", text))
        [mail] = processes(f"{folder}/mails")
        os.kill(mail, signal.SIGKILL)
        output = (await run.stdout.read()).decode()
        assert await run.wait() == 1
    assert "mail has ended (status -9)" in output
    assert processes(folder) == []
