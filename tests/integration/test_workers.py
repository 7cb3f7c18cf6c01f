"""Several workers on one port: real processes, a real Redis, and every way in which one of them ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from service.app import Service
from service.signals import STOP_SIGNALS
from tests.contract.redis_stage import new_prefix
from tests.integration.command import SOON, Command, command, is_alive
from tests.stores import shared_redis
from tests.stores.process import HOST, free_port
from tests.support.harness import API_KEY, CONTRACT, SECRET, Client, Running
from tests.support.raw import Raw, connected

pytestmark = pytest.mark.slow

FAULTY = Path(__file__).parents[1] / "unit/contracts/five_faults.yaml"
WORKERS = 3
CROWD = 60
"""Clients enough for every worker to get some: that one gets none is rarer than 1 in 10 000 000 000."""
QUICKLY = 20.0
"""Seconds for a drain that does not wait for its time."""
LISTENING = "0A"


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def seen(holds: Callable[[], bool], what: Callable[[], object]) -> None:
    """Looks at other processes until it holds."""
    try:
        async with asyncio.timeout(SOON):
            while not holds():  # noqa: ASYNC110  # no event reaches us from a process that does not know of us
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {SOON:g} s; at last: {what()}") from None


def listeners(port: int) -> int:
    """Sockets of this machine that listen there."""
    lines = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return sum(int(line[1].split(":")[1], 16) == port and line[3] == LISTENING for line in lines)


def two_ports() -> tuple[int, int]:
    """Two free ports that stand side by side."""
    while True:
        first = free_port()
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, first + 1))
            return first, first + 1


async def settings(**others: str) -> dict[str, str]:
    """What is good, with a Redis that nobody else uses; rates for a crowd on one machine."""
    return {
        "AUTH__SECRET": SECRET,
        "API__KEY": API_KEY,
        "CONTRACT": str(CONTRACT),
        "BROKER__URL": (await shared_redis("redis")).url,
        "BROKER__PREFIX": new_prefix(),
        "LIMITS__CONNECT_RATE_PER_IP__BURST": "5000",
        "LOG__FORMAT": "json",
        "OPS_PORT": "0",
        "PORT": "0",
        "WORKERS": str(WORKERS),
    } | others


@dataclass
class Machine:
    """A service of several workers that serve."""

    run: Command
    http: aiohttp.ClientSession
    """Makes a new connection for each request, as the kernel spreads connections and not requests."""
    clients: list[Client] = field(default_factory=list)

    def serving(self) -> dict[int, dict[str, Any]]:
        """What each worker has said when it last came to serve."""
        return {entry["worker"]: entry for entry in self.run.told("serving")}

    @property
    def pids(self) -> dict[int, int]:
        return {worker: said["pid"] for worker, said in self.serving().items()}

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.serving()[0]['port']}"

    async def serve(self) -> None:
        """Waits until all workers serve."""
        await self.run.until(lambda: len(self.serving()) == WORKERS or self.run.told("stopped") != [])
        assert len(self.serving()) == WORKERS, self.run.text()

    async def ops(self, worker: int, path: str) -> tuple[int, str]:
        async with self.http.get(f"http://{HOST}:{self.serving()[worker]['ops_port']}/{path}") as response:
            return response.status, await response.text()

    async def metric(self, worker: int, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = ((await self.ops(worker, "metrics"))[1]).splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return sum(float(value) for sample, _, value in samples if sample.partition("{")[0] == f"tidewire_{name}")

    async def each(self, name: str) -> dict[int, float]:
        """A metric of every worker."""
        return {worker: await self.metric(worker, name) for worker in range(WORKERS)}

    @property
    def front(self) -> Running:
        """All workers together, as clients and backends see them. The service's own object is in other processes."""
        return Running(cast(Service, None), self.url, "", self.http)

    async def connect(self, user: str) -> Client:
        client = await Client.open(self.front, user)
        self.clients.append(client)
        return client

    async def crowd(self) -> list[Client]:
        """Clients that have joined `news:1`."""
        clients = await asyncio.gather(*(self.connect(f"u{number}") for number in range(CROWD)))
        await asyncio.gather(*(client.subscribe("news:1") for client in clients))
        return list(clients)

    async def publish(self, text: str) -> None:
        await self.front.publish("news:1", {"type": "news.flash", "data": {"text": text}})


@asynccontextmanager
async def machine(*arguments: str, **others: str) -> AsyncIterator[Machine]:
    connector = aiohttp.TCPConnector(force_close=True, limit=0)
    async with (
        command("service", "serve", *arguments, **await settings(**others)) as run,
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=SOON)) as http,
    ):
        made = Machine(run, http)
        try:
            await made.serve()
            yield made
        finally:
            await everyone([client.close() for client in made.clients])


async def texts(client: Client, count: int) -> list[str]:
    return [(await client.expect("news.flash"))["data"]["text"] for _ in range(count)]


async def everyone(awaitables: Sequence[Awaitable[Any]]) -> list[Any]:
    async with asyncio.timeout(SOON):
        return list(await asyncio.gather(*awaitables))


# --- one service --------------------------------------------------------------------------------------------------------


async def test_workers_share_connections_and_deliver_each_other_s_events() -> None:
    async with machine() as there:
        clients = await there.crowd()
        spread = await there.each("connections")
        assert sum(spread.values()) == CROWD
        assert all(spread.values()), spread
        wanted = [str(number) for number in range(30)]
        for text in wanted:
            await there.publish(text)
        assert await everyone([texts(client, len(wanted)) for client in clients]) == [wanted] * CROWD
        published = await there.each("publishes_total")
        assert sum(published.values()) == len(wanted)
        assert all(published.values()), published
        assert await there.each("nodes") == dict.fromkeys(range(WORKERS), float(WORKERS))


async def test_parent_reserves_the_port_without_listening() -> None:
    """A listener of its own would get connections that nobody accepts."""
    async with machine() as there:
        ports = {said["port"] for said in there.serving().values()}
        assert len(ports) == 1, "0 is one free port for all"
        assert listeners(ports.pop()) == WORKERS
        assert threads(there.run.pid) == 1
        assert sorted(children(there.run.pid)) == sorted(there.pids.values())
        statuses = [await there.ops(worker, path) for worker in range(WORKERS) for path in ("healthz", "readyz")]
        assert {status for status, _ in statuses} == {200}


async def test_worker_serves_ops_port_plus_its_number() -> None:
    async with command(
        "service", "serve", "--workers", "2", **await settings(OPS_PORT=str(two_ports()[0]), WORKERS="9")
    ) as run:
        there = Machine(run, aiohttp.ClientSession())
        async with there.http:
            await run.until(lambda: len(there.serving()) == 2)
            said = there.serving()
            assert [said[0]["ops_port"] + worker for worker in range(2)] == [
                said[worker]["ops_port"] for worker in range(2)
            ]
            assert str(said[0]["ops_port"]) == run.settings["OPS_PORT"]
            assert [(await there.ops(worker, "readyz"))[0] for worker in range(2)] == [200, 200]
        run.process.terminate()
        assert await run.ended() == 0
        assert set(there.serving()) == {0, 1}, "the command line wins over the environment"


# --- a worker ends ------------------------------------------------------------------------------------------------------


async def test_killed_worker_is_replaced_and_its_clients_resume() -> None:
    async with machine() as there:
        crowd = await there.crowd()
        await there.publish("before")
        firsts = await everyone([client.expect("news.flash") for client in crowd])
        victim = 1
        before, lost = there.pids, int(await there.metric(victim, "connections"))
        assert 0 < lost < CROWD
        os.kill(before[victim], signal.SIGKILL)
        next_ = {asyncio.create_task(client.ws.receive()): client for client in crowd}
        gone: set[asyncio.Task[aiohttp.WSMessage]] = set()
        async with asyncio.timeout(SOON):
            while len(gone) < lost:
                done, _ = await asyncio.wait(next_.keys() - gone, return_when=asyncio.FIRST_COMPLETED)
                gone |= done
        assert {next_[ended].ws.close_code for ended in gone} == {1006}
        await there.publish("meanwhile")
        stayed = [json.loads(message.data) for message in await everyone(list(next_.keys() - gone))]
        assert [message["data"]["text"] for message in stayed] == ["meanwhile"] * (CROWD - lost), "they notice nothing"

        back = [await there.connect(f"back{number}") for number in range(lost)]
        since = {"offset": 1, "id": firsts[0]["id"], "epoch": await epoch_of(back[0])}
        for client in back:
            reply = await client.subscribe("news:1", since=since)
            assert reply["recovered"] is True
            assert [event["data"]["text"] for event in reply["events"]] == ["meanwhile"]

        await there.run.until(lambda: there.pids[victim] != before[victim])
        [told] = there.run.told("worker_ended")
        assert (told["worker"], told["pid"], told["how"]) == (victim, before[victim], "killed by SIGKILL")
        assert {worker for worker, pid in there.pids.items() if pid != before[worker]} == {victim}
        assert (await there.ops(victim, "readyz"))[0] == 200
        newcomers = [await there.connect(f"new{number}") for number in range(CROWD)]
        assert len(newcomers) == CROWD
        assert await there.metric(victim, "connections") > 0, "the new one gets its share"


async def epoch_of(client: Client) -> str:
    """The stream's epoch."""
    return str((await client.ask("history", channel="news:1"))["epoch"])


async def test_draining_worker_accepts_no_connection_and_is_replaced() -> None:
    """Its listener goes first: until then the kernel gives it its share."""
    async with machine(OUTBOX__CLOSE_GRACE="15", DEADLINES__BODY="15") as there, AsyncExitStack() as stack:
        # Requests that have begun keep a drain going for as long as `close_grace` allows.
        begun = [await stack.enter_async_context(half_published(there, number)) for number in range(CROWD)]
        victim = 2
        port, pid = there.serving()[0]["port"], there.pids[victim]
        os.kill(pid, signal.SIGTERM)
        async with asyncio.timeout(SOON):
            while (told := await there.ops(victim, "readyz"))[0] == 200:
                pass
        assert listeners(port) == WORKERS - 1, "at the very moment at which it is not ready any more"
        assert json.loads(told[1])["reasons"][0]["code"] == "draining"
        clients = [await there.connect(f"f{number}") for number in range(CROWD)]
        assert len(clients) == CROWD
        assert there.run.told("worker_ended") == []
        assert is_alive(pid), "all that went to the others while this one was still at it"

        for raw in begun:
            await raw.close()
        await there.run.until(lambda: there.pids[victim] != pid)
        [entry] = there.run.told("worker_ended")
        assert (entry["worker"], entry["pid"], entry["how"]) == (victim, pid, "exit status 0")
        assert listeners(port) == WORKERS


@asynccontextmanager
async def half_published(there: Machine, number: int) -> AsyncIterator[Raw]:
    """A request that a worker has begun to handle and that lacks its body."""
    async with connected(there.front) as raw:
        lines = [
            f"POST /api/v1/channels/news:{number}/events HTTP/1.1",
            f"Host: {HOST}",
            f"Authorization: Bearer {API_KEY}",
            "Content-Type: application/json",
            "Content-Length: 100",
            "Expect: 100-continue",
        ]
        raw.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        assert (await raw.answer()).status == 100
        yield raw


# --- all of them end ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", STOP_SIGNALS)
async def test_stop_signal_drains_every_worker(number: signal.Signals) -> None:
    async with machine() as there:
        clients = await there.crowd()
        pids = there.pids
        there.run.process.send_signal(number)
        assert await everyone([client.closed() for client in clients]) == [1012] * CROWD
        assert await there.run.ended() == 0
        assert not any(map(is_alive, pids.values()))
        assert {entry.get("worker") for entry in there.run.told("stopped")} == {None, *range(WORKERS)}
        assert there.run.told("worker_ended") == []


async def test_second_stop_signal_ends_every_drain() -> None:
    async with machine(ROLLOUT__DRAIN_RATE="0.5", DEADLINES__SHUTDOWN="600") as there:
        ends = [asyncio.create_task(client.closed()) for client in await there.crowd()]
        there.run.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(SOON):
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)  # after two seconds; all would take forty
        there.run.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(QUICKLY):
            assert await there.run.ended() == 0
        assert await everyone(ends) == [1012] * CROWD


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
async def test_terminal_signal_to_all_processes_ends_with_success(number: signal.Signals) -> None:
    """It sends them to the whole group, and some people press twice."""
    async with machine() as there:
        for _ in range(2):
            for pid in (there.run.pid, *there.pids.values()):
                os.kill(pid, number)
        assert await there.run.ended() == 0
        assert there.run.told("worker_failed") == []


async def test_killed_parent_ends_its_workers() -> None:
    async with machine() as there:
        clients = await there.crowd()
        pids, port = there.pids, there.serving()[0]["port"]
        there.run.process.kill()
        assert await everyone([client.closed() for client in clients]) == [1012] * CROWD, "they drain, as if told to"
        assert await there.run.ended() == -signal.SIGKILL
        await seen(
            lambda: not any(map(is_alive, pids.values())), lambda: [pid for pid in pids.values() if is_alive(pid)]
        )
        assert listeners(port) == 0


# --- a start that cannot be ---------------------------------------------------------------------------------------------


async def test_contract_fault_is_reported_once() -> None:
    async with command("service", "serve", **await settings(CONTRACT=str(FAULTY))) as run:
        assert await run.ended() == 1
        assert [entry["level"] for entry in run.log] == ["raw"] * 5, run.text()
        assert len({entry["event"] for entry in run.log}) == 5


async def test_memory_broker_is_refused() -> None:
    async with command(
        "service", "serve", "--workers", "2", **await settings(BROKER__URL="memory://", WORKERS="")
    ) as run:
        assert await run.ended() == 1
        [entry] = run.log
        assert "start a Redis or Valkey on this machine" in entry["event"]


@pytest.mark.parametrize("shared", [False, True])
async def test_port_in_use_is_reported_once(shared: bool) -> None:
    """Also where that program would share it, as another service with workers would: each would get half of the clients."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        async with command("service", "serve", **await settings(PORT=str(port))) as run:
            assert await run.ended() == 1
            [entry] = run.log
            assert entry["event"] == "listen_failed"
            assert entry["reason"] == f"Address already in use: {HOST} port {port} (settings host and port)"


async def test_unknown_host_is_reported_once() -> None:
    async with command("service", "serve", **await settings(HOST="192.0.2.1")) as run:
        assert await run.ended() == 1
        [entry] = run.log
        assert entry["reason"] == "Cannot assign requested address: 192.0.2.1 port 0 (settings host and port)"


async def test_ops_port_in_use_stops_the_start() -> None:
    first, taken = two_ports()
    with socket.socket() as other:
        other.bind((HOST, taken))
        other.listen()
        async with command("service", "serve", **await settings(OPS_PORT=str(first), WORKERS="2")) as run:
            assert await run.ended() == 1
            [entry] = run.told("listen_failed")
            assert entry["worker"] == 1
            assert f"port {taken} (settings ops_host and ops_port)" in entry["reason"]
            [given_up] = run.told("workers_given_up")
            assert (
                given_up["reason"] == "worker 1 ended before it served (exit status 1); its own log records are above"
            )
            assert run.told("draining", worker=0) != []


async def test_unavailable_broker_is_reported_once() -> None:
    port = free_port()
    async with command(
        "service", "serve", **await settings(BROKER__URL=f"redis://{HOST}:{port}", BROKER__UNREADY_AFTER="0.5")
    ) as run:
        assert await run.ended() == 1
        assert [entry["worker"] for entry in run.told("start_failed")] == [0]
        assert len(run.told("workers_given_up")) == 1


# --- the parent ---------------------------------------------------------------------------------------------------------


def play(name: str, *arguments: str) -> Any:
    """One of the plays under a parent with little patience."""
    return command("tests.integration.worker_plays", name, *arguments)


async def test_worker_that_fails_repeatedly_stops_all() -> None:
    async with play("dies") as run:
        assert await run.ended() == 1
        assert [entry["worker"] for entry in run.told("worker_ended")] == [1, 1, 1]
        [entry] = run.told("workers_given_up")
        assert entry["reason"] == (
            "worker 1 ended 3 times in a row within 60 s of its start, at last: killed by SIGKILL; its own log records are above"
        )


@pytest.mark.parametrize(("name", "status", "words"), [("refuses", 3, 0), ("faulty", 1, 1)])
async def test_worker_that_never_served_stops_all(name: str, status: int, words: int) -> None:
    async with play(name) as run:
        assert await run.ended() == 1
        assert [entry["worker"] for entry in run.told("worker_ended")] == [0], "the others have not been started"
        assert len(run.told("worker_failed")) == words
        [entry] = run.told("workers_given_up")
        assert (
            entry["reason"] == f"worker 0 ended before it served (exit status {status}); its own log records are above"
        )


async def test_worker_that_does_not_start_to_serve_is_killed() -> None:
    async with play("never") as run:
        assert await run.ended() == 1
        [entry] = run.told("worker_killed")
        assert entry["reason"] == "it did not start to serve"


async def test_worker_with_stuck_loop_is_replaced(tmp_path: Path) -> None:
    async with play("hangs", str(tmp_path / "hung")) as run:
        await run.until(lambda: len(run.told("at work")) == 2)
        [entry] = run.told("worker_killed")
        assert (entry["worker"], entry["reason"]) == (1, "its event loop is stuck")
        run.process.terminate()
        assert await run.ended() == 0


async def test_worker_that_does_not_end_is_killed() -> None:
    async with play("stays") as run:
        await run.until(lambda: len(run.told("at work")) == 2)
        run.process.terminate()
        assert await run.ended() == 128 + signal.SIGKILL
        assert [entry["reason"] for entry in run.told("worker_killed")] == ["it did not end after its drain"] * 2


async def test_parent_returns_the_highest_exit_status() -> None:
    async with play("mixed") as run:
        await run.until(lambda: len(run.told("at work")) == 2)
        run.process.terminate()
        assert await run.ended() == 5
