"""A log that fails affects nothing else: its reader ends, does not read, or the disk is full."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from service.app import Service
from tests.integration.command import CHECKOUT, SOON
from tests.stores.process import HOST, free_port, until
from tests.stores.redis_server import RedisServer
from tests.support.harness import API_KEY, CONTRACT, DEADLINE, SECRET, Client, Running

pytestmark = pytest.mark.slow

QUICKLY = 10.0
"""Seconds for an exit that waits only briefly for the reader of the log."""


@dataclass
class Served:
    """`tidewire serve` in a process of its own."""

    process: asyncio.subprocess.Process
    server: Running

    async def revokes(self, user: str) -> None:
        """Revokes a connected user, and checks that this is answered and done."""
        client = await Client.open(self.server, user)
        url = f"{self.server.url}/api/v1/users/{user}/revoke"
        async with asyncio.timeout(DEADLINE):
            async with self.server.http.post(url, headers={"Authorization": f"Bearer {API_KEY}"}) as response:
                assert response.status == 200, await response.text()
            assert await client.closed() == 4401

    async def ends(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(QUICKLY):
            return await self.process.wait()

    async def answers(self, path: str = "/readyz") -> bool:
        try:
            async with self.server.http.get(f"{self.server.ops_url}{path}") as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False


@asynccontextmanager
async def served(stderr: int, *arguments: str, closed: Sequence[int] = (), **settings: str) -> AsyncIterator[Served]:
    """Runs the process from its readiness to the end of the block. `closed`: descriptors that it starts without."""
    without = "".join(f" {descriptor}>&-" for descriptor in closed)
    port, ops_port = free_port(), free_port()
    given = {
        "AUTH__SECRET": SECRET,
        "API__KEY": API_KEY,
        "CONTRACT": str(CONTRACT),
        "PORT": str(port),
        "OPS_PORT": str(ops_port),
        **settings,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHONASYNCIO"))}
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", f'exec "$@"{without}', "sh", sys.executable, "-m", "service", "serve", *arguments),
        cwd=CHECKOUT,
        env={**kept, **{f"TIDEWIRE_{name}": value for name, value in given.items()}},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=SOON)) as http:
        server = Running(cast(Service, None), f"http://{HOST}:{port}", f"http://{HOST}:{ops_port}", http)
        running = Served(process, server)
        try:
            await until(running.answers, "the service")
            yield running
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


@contextmanager
def pipe() -> Iterator[list[int]]:
    """The read and the write end of a pipe. Whoever closes an end sets it to -1."""
    ends = list(os.pipe())
    try:
        yield ends
    finally:
        for end in ends:
            if end >= 0:
                os.close(end)


def close(ends: list[int], which: int) -> None:
    os.close(ends[which])
    ends[which] = -1


async def test_log_whose_reader_ends_affects_nothing_else() -> None:
    with pipe() as ends:
        async with served(ends[1]) as run:
            close(ends, 1)
            close(ends, 0)
            await run.revokes("ann")
            await until(lambda: drops(run, "write"), "a drop that is counted")
            assert await run.answers("/healthz")
            assert await run.ends() == 0


async def drops(run: Served, reason: str) -> bool:
    return await run.server.metric("log_records_dropped_total", reason=reason) > 0


async def test_log_on_a_full_disk_affects_nothing_else() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with served(full) as run:
            await run.revokes("ann")
            await until(lambda: drops(run, "write"), "a drop that is counted")
            assert await run.ends() == 0
    finally:
        os.close(full)


async def test_log_whose_reader_does_not_read_blocks_nothing() -> None:
    with pipe() as ends:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(ends[1], False)
        while True:
            try:
                os.write(ends[1], b"x")
            except BlockingIOError:
                break
        os.set_blocking(ends[1], True)
        async with served(ends[1], LOG__QUEUE_BYTES="65536") as run:
            await run.revokes("ann")
            assert await run.server.metric("log_queue_bytes") > 0
            async with asyncio.timeout(DEADLINE):
                while not await drops(run, "queue_full"):  # each is a line
                    async with run.server.http.post(
                        f"{run.server.url}/api/v1/users/ben/disconnect", headers={"Authorization": f"Bearer {API_KEY}"}
                    ) as response:
                        assert response.status == 200
            assert await run.ends() == 0


async def test_log_on_a_non_blocking_descriptor_loses_no_record() -> None:
    """Another process that shares standard error can set this, as nodejs does."""
    with pipe() as ends:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
        os.set_blocking(ends[1], False)
        async with served(ends[1], LOG__FORMAT="json", LOG__LEVEL="debug") as run:
            for number in range(40):
                async with run.server.http.post(
                    f"{run.server.url}/api/v1/users/u{number}/disconnect",
                    headers={"Authorization": f"Bearer {API_KEY}"},
                ) as response:
                    assert response.status == 200
            run.process.send_signal(signal.SIGTERM)
            close(ends, 1)
            with os.fdopen(ends[0], "rb", closefd=False) as reader:
                text = await asyncio.to_thread(reader.read)
            assert await run.process.wait() == 0
        assert [f'"u{number}"' in text.decode() for number in range(40)] == [True] * 40
        assert b'"stopped"' in text


async def test_broker_outage_without_a_log_reader_is_survived() -> None:
    async with RedisServer() as redis:
        with pipe() as ends:
            async with served(ends[1], BROKER__URL=redis.url) as run:
                close(ends, 1)
                close(ends, 0)
                redis.kill()
                await until(lambda: up(run, 0), "the loss")
                await redis.restart()
                await until(lambda: up(run, 1), "the return")
                await run.revokes("ann")
                assert await run.ends() == 0


async def up(run: Served, value: int) -> bool:
    return await run.server.metric("broker_up") == value


@pytest.mark.parametrize("is_read", [True, False])
async def test_workers_drain_with_and_without_a_log_reader(is_read: bool) -> None:
    async with RedisServer() as redis:
        with pipe() as ends:
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, 4096)
            async with served(ends[1], "--workers", "2", BROKER__URL=redis.url, LOG__LEVEL="debug") as run:
                close(ends, 1)
                if is_read:
                    close(ends, 0)
                await run.revokes("ann")
                assert await run.ends() == 0


async def test_demo_starts_without_a_reader_of_its_notice(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        async with served(full, "--demo") as run:
            async with run.server.http.get(f"{run.server.url}/") as response:
                assert response.status == 200
            assert await run.ends() == 0
    finally:
        os.close(full)


@pytest.mark.parametrize("closed", [(2,), (0, 1, 2)])
async def test_descriptors_closed_at_the_start_are_not_mistaken_for_others(closed: Sequence[int]) -> None:
    async with served(subprocess.DEVNULL, closed=closed) as run:
        open_now = Path(f"/proc/{run.process.pid}/fd")
        assert {(open_now / str(descriptor)).readlink() for descriptor in closed} == {Path("/dev/null")}
        await run.revokes("ann")
        assert await run.ends() == 0


async def test_workers_start_without_standard_descriptors() -> None:
    async with (
        RedisServer() as redis,
        served(subprocess.DEVNULL, "--workers", "2", closed=(0, 1, 2), BROKER__URL=redis.url) as run,
    ):
        await run.revokes("ann")
        assert await run.ends() == 0
