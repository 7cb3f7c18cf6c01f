"""Commands whose output nobody reads any more: they end without a word, with the status of a program that SIGPIPE ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.command import CHECKOUT, SOON
from tests.support.harness import API_KEY, CONTRACT, SECRET, Running, serving, token

pytestmark = pytest.mark.slow

CLOSED = 128 + signal.SIGPIPE
ENVIRON = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHON"))}


async def run(*words: str, stdout: int, stderr: int = subprocess.PIPE, cwd: Path = CHECKOUT) -> tuple[int, str]:
    """A command's exit status, and what it wrote to standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *words),
        cwd=cwd,
        env=ENVIRON | {"PYTHONPATH": str(CHECKOUT), "TIDEWIRE_AUTH__SECRET": SECRET, "TIDEWIRE_API__KEY": API_KEY},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
    )
    try:
        async with asyncio.timeout(SOON):
            _, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return await process.wait(), (said or b"").decode()


@pytest.fixture
def unread() -> int:
    """A pipe's end to write to, whose other end is closed."""
    reading, writing = os.pipe()
    os.close(reading)
    return writing


PRINTING = {
    "token": ["token", "--user", "ann"],
    "check": ["check", str(CONTRACT)],
    "help": ["--help"],
    "help of a command": ["tail", "--help"],
    "version": ["--version"],
}


@pytest.mark.parametrize("words", PRINTING.values(), ids=PRINTING)
async def test_command_without_reader_ends_silently(words: list[str], unread: int) -> None:
    assert await run(*words, stdout=unread) == (CLOSED, "")
    os.close(unread)


async def publish(server: Running) -> None:
    await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})


async def test_publish_without_reader_ends_silently(unread: int) -> None:
    async with serving() as server:
        words = ("publish", "--url", server.url, "room:1", "chat.message", '{"text": "x"}')
        assert await run(*words, stdout=unread) == (CLOSED, "")
    os.close(unread)


async def test_tail_ends_when_its_reader_closes() -> None:
    """`tidewire tail room:1 | head -1`: the next event may be hours away."""
    async with serving() as server:
        reading, writing = os.pipe()
        words = ("tail", "--url", server.url, "--token", token(), "room:1")
        tailing = asyncio.create_task(run(*words, stdout=writing))
        with os.fdopen(reading, "rb", buffering=0) as reader:
            line = asyncio.create_task(asyncio.to_thread(reader.readline))
            while not line.done():  # an event is shown only to who has joined
                await publish(server)
                await asyncio.wait([line], timeout=0.1)
            assert b"chat.message" in await line
            os.close(writing)
        assert await tailing == (CLOSED, "")


COMPLAINING = {
    "a fault": (["check", "nowhere.yaml"], 1),
    "a misspelt command": (["tokn"], 2),
    "nobody there": (["health"], 1),
    "a notice": (["token", "--user", "ann", "--grant", "*:*:*:"], 2),
}


@pytest.mark.parametrize(("words", "status"), COMPLAINING.values(), ids=COMPLAINING)
async def test_command_without_reader_of_notes_keeps_its_status(words: list[str], status: int, unread: int) -> None:
    assert (await run(*words, stdout=subprocess.DEVNULL, stderr=unread))[0] == status
    os.close(unread)


async def test_command_on_full_disk_reports_it() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        status, said = await run("token", "--user", "ann", stdout=full)
        assert (status, said) == (1, "tidewire: cannot write to standard output: No space left on device\n")
        assert (await run("token", "--user", "ann", stdout=full, stderr=full))[0] == 1
    finally:
        os.close(full)
