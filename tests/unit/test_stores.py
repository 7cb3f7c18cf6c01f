"""A smoke test of tests/stores: servers start, keep what their files hold, and leave nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time

import pytest

from tests.stores import (
    FLAVOURS,
    Flavour,
    RedisServer,
)
from tests.support.harness import eventually

pytestmark = pytest.mark.slow

ENDLESS = """
import asyncio
from tests.stores import RedisServer

async def main():
    async with RedisServer() as server:
        print(server.process.pid, server.folder, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

both = pytest.mark.parametrize("flavour", FLAVOURS)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@both
async def test_server_runs_for_its_block_and_leaves_nothing(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server:
        pid, folder = server.process.pid, server.folder
        assert await server.command("SET", "a", b"\xff\x00") == "OK"
        assert await server.command("GET", "a") == "\udcff\x00"
        version = await server.info("server")
        assert ("valkey_version" in version) == (flavour == "valkey")
        assert version["redis_version"].startswith("7.")
    assert not alive(pid)
    assert not folder.exists()


@both
async def test_killed_server_restarts_on_its_port_with_what_its_file_holds(flavour: Flavour) -> None:
    async with RedisServer(flavour, persistence="always") as kept, RedisServer(flavour) as lost:
        for server in (kept, lost):
            port = server.port
            await server.command("SET", "a", "1")
            server.kill()
            with pytest.raises(ConnectionRefusedError):
                await server.command("PING")
            await server.restart()
            assert server.port == port
        assert await kept.command("GET", "a") == "1"
        assert await lost.command("GET", "a") is None


async def test_killed_test_run_leaves_no_server() -> None:
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", ENDLESS, stdout=asyncio.subprocess.PIPE)
    assert run.stdout is not None
    async with asyncio.timeout(20):
        pid, folder = (await run.stdout.readline()).decode().split()
        assert alive(int(pid))
        run.kill()
        await run.wait()
    shutil.rmtree(folder)
    await eventually(lambda: not alive(int(pid)))


async def test_movable_clock_follows_advance_and_real_time() -> None:
    async with RedisServer("valkey", movable_clock=True) as server:
        await server.command("SET", "a", "1", "EX", 90)
        await server.advance(60)
        await server.advance(20)
        assert await server.time() == pytest.approx(time.time() + 80, abs=5)
        assert 8 <= await server.command("TTL", "a") <= 10
        await server.advance(10)
        assert await server.command("GET", "a") is None
        await server.advance(-90)
        assert await server.time() == pytest.approx(time.time(), abs=5)


# The groups take seconds to fail over: here each flavour does one kind of it, the tests of the brokers do all.
