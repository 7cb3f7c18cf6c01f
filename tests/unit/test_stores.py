"""The launchers of tests/stores do what tests rely on: start, kill, stop, bring back, and leave nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import ssl
import sys
import time
from pathlib import Path

import hiredis
import nats
import pytest

from tests.harness import eventually
from tests.stores import (
    FLAVOURS,
    Certificates,
    Cluster,
    Flavour,
    MissingProgramError,
    NatsServer,
    RedisServer,
    Sentinels,
    ServerFailedError,
    process,
    shared_redis,
)
from tests.stores.process import free_port, program

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


def state(pid: int) -> str:
    """The kernel's letter for what a process does: R, S, T for stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@both
async def test_a_server_runs_for_the_length_of_its_block_and_leaves_nothing(flavour: Flavour) -> None:
    async with RedisServer(flavour) as server:
        pid, folder = server.process.pid, server.folder
        assert await server.command("SET", "a", b"\xff\x00") == "OK"
        assert await server.command("GET", "a") == "\udcff\x00"
        version = await server.info("server")
        assert ("valkey_version" in version) == (flavour == "valkey")
        assert version["redis_version"].startswith("7.")
    assert not alive(pid)
    assert not folder.exists()


async def test_a_server_is_gone_when_its_test_fails() -> None:
    server = RedisServer()

    async def failing_test() -> None:
        async with server:
            raise AssertionError("the test")

    with pytest.raises(AssertionError, match="the test"):
        await failing_test()
    assert not alive(server.process.pid)


@both
async def test_a_killed_server_comes_back_on_its_port_with_what_its_file_holds(flavour: Flavour) -> None:
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


async def test_a_stopped_server_answers_nobody_until_it_goes_on() -> None:
    async with RedisServer() as server:
        server.stop_()
        asking = asyncio.create_task(server.command("PING"))
        # A connection is taken by the kernel; the answer is not.
        _, writer = await asyncio.open_connection(*server.address)
        writer.transport.abort()
        assert state(server.process.pid) == "T"
        assert not asking.done()
        server.cont()
        assert await asking == "PONG"


async def test_users_and_passwords() -> None:
    async with RedisServer(password="secret", users={"app": "on >hidden ~app:* +get"}) as server:
        assert await server.command("PING") == "PONG"
        reader, writer = await asyncio.open_connection(*server.address)
        for line, reply in (
            (b"PING", b"-NOAUTH"),
            (b"AUTH wrong", b"-WRONGPASS"),
            (b"AUTH secret", b"+OK"),
            (b"AUTH app hidden", b"+OK"),
            (b"GET other", b"-NOPERM"),
            (b"GET app:1", b"$-1"),
        ):
            writer.write(line + b"\r\n")
            assert (await reader.readline()).startswith(reply)
        writer.close()
        await writer.wait_closed()


async def test_tls_is_checked_both_ways(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with RedisServer(tls=certificates, client_certificates=True) as server:
        assert server.url == f"rediss://127.0.0.1:{server.port}"
        assert await server.command("PING") == "PONG"
        reader, writer = await asyncio.open_connection(
            *server.address, ssl=ssl.create_default_context(cafile=str(certificates.ca))
        )
        with pytest.raises(ssl.SSLError, match="certificate required"):
            await reader.read()
        writer.transport.abort()
    with pytest.raises(ValueError, match="without TLS"):
        RedisServer("valkey", tls=certificates)


async def test_a_server_that_cannot_start_shows_what_it_said() -> None:
    with pytest.raises(ServerFailedError, match="Bad directive"):
        await RedisServer(config={"no-such-setting": 1}).start()


async def test_a_port_that_was_taken_meanwhile_is_left_to_whoever_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with RedisServer() as first:
        ports = [free_port(), first.port]
        monkeypatch.setattr(process, "free_port", ports.pop)
        async with RedisServer() as second:
            assert not ports
            assert second.port != first.port
            assert await second.command("PING") == await first.command("PING") == "PONG"


async def test_a_killed_test_run_leaves_no_server() -> None:
    run = await asyncio.create_subprocess_exec(sys.executable, "-c", ENDLESS, stdout=asyncio.subprocess.PIPE)
    assert run.stdout is not None
    async with asyncio.timeout(20):
        pid, folder = (await run.stdout.readline()).decode().split()
        assert alive(int(pid))
        run.kill()
        await run.wait()
    shutil.rmtree(folder)
    await eventually(lambda: not alive(int(pid)))


def test_a_missing_program_is_named_with_what_installs_it() -> None:
    with pytest.raises(MissingProgramError, match="apt-get install some-package"):
        program("no-such-program", "some-package")


@both
async def test_a_shared_server_is_started_once(flavour: Flavour) -> None:
    first = await shared_redis(flavour)
    assert await shared_redis(flavour) is first
    assert await first.command("PING") == "PONG"


async def test_a_clock_follows_what_it_is_told_and_real_time() -> None:
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


async def test_an_error_reply_is_raised() -> None:
    server = await shared_redis()
    with pytest.raises(hiredis.ReplyError, match="unknown command"):
        await server.command("NO-SUCH-COMMAND")


async def test_nats_keeps_its_streams_over_a_kill() -> None:
    async with NatsServer() as server:
        pid, port = server.process.pid, server.port
        async with await nats.connect(server.url) as client:
            await client.jetstream().add_stream(name="things", subjects=["things.*"])
            await client.jetstream().publish("things.a", b"1")
        server.kill()
        assert not alive(pid)
        await server.restart()
        assert server.port == port
        async with await nats.connect(server.url) as client:
            assert (await client.jetstream().get_msg("things", 1)).data == b"1"


async def nats_answer(server: NatsServer, shown: dict[str, str], context: ssl.SSLContext | None = None) -> str:
    """What NATS says to a client that shows this and pings. By hand: nats-py leaves refused connections open."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        assert (await reader.readline()).startswith(b"INFO ")
        if context is not None:
            await writer.start_tls(context)
        writer.write(b"CONNECT %s\r\nPING\r\n" % json.dumps({"verbose": False} | shown).encode())
        return (await reader.readline()).decode().strip()
    finally:
        writer.transport.abort()


async def test_nats_asks_for_a_token() -> None:
    async with NatsServer(token="secret") as server:
        assert await nats_answer(server, {"auth_token": "secret"}) == "PONG"
        assert "Authorization Violation" in await nats_answer(server, {"auth_token": "wrong"})


async def test_nats_asks_for_a_user() -> None:
    async with NatsServer(user="app", password="secret") as server:
        assert await nats_answer(server, {"user": "app", "pass": "secret"}) == "PONG"
        assert "Authorization Violation" in await nats_answer(server, {})


async def test_nats_speaks_tls_and_wants_a_certificate(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with NatsServer(tls=certificates, client_certificates=True) as server:
        assert server.url == f"tls://127.0.0.1:{server.port}"
        assert await nats_answer(server, {}, certificates.client_context()) == "PONG"
        with pytest.raises(ssl.SSLError, match="certificate required"):
            await nats_answer(server, {}, ssl.create_default_context(cafile=str(certificates.ca)))


# The groups take seconds to fail over: here each flavour does one kind of it, the tests of the brokers do all.


async def test_sentinels_promote_a_replica_that_lags_when_its_master_is_killed() -> None:
    async with Sentinels("redis", password="secret", sentinel_password="other") as group:
        master = await group.master()
        (replica,) = await group.replicas()
        await master.command("SET", "a", "1")
        await master.command("WAIT", 1, 1000)
        await group.cut(replica)
        await master.command("SET", "a", "2")
        master.kill()
        assert await group.promoted(master) is replica
        assert await replica.command("GET", "a") == "1"
        await master.restart()
        await group.settled()
        assert (await master.command("ROLE"))[0] == "slave"
        assert await master.command("GET", "a") == "1"


async def test_sentinels_fail_over_when_told_and_a_cut_replica_catches_up() -> None:
    async with Sentinels("valkey", replicas=2) as group:
        before = await group.master()
        master = await group.failover()
        assert master is not before
        await group.settled()
        replica, other = await group.replicas()
        await group.cut(replica)
        await master.command("SET", "a", "1")
        await master.command("WAIT", 1, 1000)
        assert await replica.command("GET", "a") is None
        assert await other.command("GET", "a") == "1"
        await group.mend(replica)
        assert await replica.command("GET", "a") == "1"
        ports = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in group.sentinels)
        assert group.url == f"redis+sentinel://{ports}/main"


async def test_a_cluster_fails_over_when_told() -> None:
    async with Cluster("redis", password="secret") as cluster:
        before = await cluster.master_of("a")
        await before.command("SET", "a", "1")
        with pytest.raises(hiredis.ReplyError, match="MOVED"):
            await next(node for node in cluster.nodes if node is not before).command("GET", "a")
        master = await cluster.failover("a")
        assert await master.command("GET", "a") == "1"
        await cluster.settled()
        assert await cluster.replicas_of("a") == [before]
        assert cluster.url == "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


async def test_a_cluster_replaces_a_killed_master_and_takes_it_back() -> None:
    async with Cluster("valkey") as cluster:
        before = await cluster.master_of("a")
        await before.command("SET", "a", "1")
        await before.command("WAIT", 1, 1000)
        before.kill()
        master = await cluster.promoted("a", before)
        assert await master.command("GET", "a") == "1"
        await before.restart()
        await cluster.settled()
        assert await cluster.replicas_of("a") == [before]
