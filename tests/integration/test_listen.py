"""`tidewire webhooks` and `tidewire listen`, as programs, beside a running service and real receivers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook
from tidewire import AsyncTidewire

from service.__main__ import main
from service.cli import listen
from service.errors import ErrorCode, ServiceError
from tests.stores.process import until
from tests.support.backend import SECRET, serving_backend
from tests.support.harness import API_KEY, OTHER_API_KEY, Running, eventually
from tests.support.webhook_api import QUIET, delivered, say, telling, until_dead, until_done

pytestmark = pytest.mark.slow
DEADLINE = 30.0


def common(server: Running, key: str = API_KEY) -> list[str]:
    return ["--url", server.url, "--api-key", key]


def environment() -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}


async def run(*words: str) -> tuple[int, str, str]:
    """Runs a command to its end: exit status, output, notes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    async with asyncio.timeout(DEADLINE):
        out, notes = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), notes.decode()


class Listening:
    """A `tidewire listen` that runs. `lines` and `notes` are what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []
        self.notes: list[str] = []

    async def read(self, stream: asyncio.StreamReader | None, to: list[str]) -> None:
        """Reads what it prints, until its end."""
        assert stream is not None
        async for line in stream:
            to.append(line.decode().rstrip())  # noqa: PERF401  # tests look at the list meanwhile

    async def printed(self, count: int) -> list[str]:
        """Waits for so many lines."""
        await eventually(lambda: len(self.lines) >= count, lambda: (self.lines, self.notes))
        return self.lines[:count]

    async def noted(self, pattern: str) -> str:
        """Waits for a note that matches; it."""

        def matching() -> list[str]:
            return [note for note in self.notes if re.search(pattern, note)]

        await eventually(lambda: bool(matching()), lambda: (self.lines, self.notes))
        return matching()[0]


@asynccontextmanager
async def listening(server: Running, *options: str) -> AsyncIterator[Listening]:
    """Runs `tidewire listen` until the block ends, by Ctrl-C. Fails the test unless it then ends well."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "service", "listen", *common(server), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(),
    )
    running = Listening(process)
    readers = [
        asyncio.create_task(running.read(process.stdout, running.lines)),
        asyncio.create_task(running.read(process.stderr, running.notes)),
    ]
    try:
        await running.noted("listening to ")
        yield running
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(DEADLINE):
            status = await process.wait()
            await asyncio.gather(*readers)
    assert (status, [note for note in running.notes if "Traceback" in note]) == (0, [])


def answering(*statuses: int) -> Any:
    """A reply with these statuses, one after the other, then 204."""
    left: Iterator[int] = iter(statuses)

    async def reply(_: web.Request) -> web.Response:
        return web.Response(status=next(left, 204))

    return reply


# --- listen -----------------------------------------------------------------------------------------------------------


async def test_listen_shows_what_an_endpoint_is_told_from_now_on() -> None:
    async with telling() as server:
        await say(server, "room:1", "before")
        async with listening(server) as listener:
            async with server.client("ann") as ann:
                await ann.subscribe("room:2")
                await ann.ask("chat.message", channel="room:2", data={"text": "hi"})
                await ann.ask("chat.pinned", channel="room:2", data={"slot": "top"})
                await listener.printed(4)
            lines = sorted(re.sub(r"wh_\S+", "wh_…", line[9:]) for line in await listener.printed(6))
    patterns = [
        r"channel\.occupied room:2 wh_…",
        r"channel\.vacated room:2 wh_…",
        r"event\.published room:2 chat\.message \S+ #1 wh_…",
        r"event\.published room:2 chat\.pinned \S+ ~\d+ wh_…",
        r"presence\.joined room:2 ann wh_…",
        r"presence\.left room:2 ann wh_…",
    ]
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line


async def test_listen_since_begins_earlier_and_prints_json() -> None:
    async with telling() as server:
        await say(server, "room:1", "a", "b")
        async with listening(server, "--since", "10m", "--json") as listener:
            found = [json.loads(line) for line in await listener.printed(2)]
            await say(server, "room:1", "c")
            found.append(json.loads((await listener.printed(3))[2]))
        assert [entry["event"]["data"]["text"] for entry in found] == ["a", "b", "c"]


async def test_listen_forwards_each_entry_signed_in_a_delivery_of_its_own() -> None:
    async with telling() as server, serving_backend() as receiver:  # which checks each signature
        async with listening(server, "--forward-to", receiver.url, "--secret", SECRET) as listener:
            await say(server, "room:1", "a", "b", "c")
            lines = await listener.printed(3)
            assert not [note for note in listener.notes if "whsec_" in note]
        assert [entry["event"]["data"]["text"] for entry in delivered(receiver)] == ["a", "b", "c"]
        assert all(re.search(r"chat\.message .* → 200 in \d+ ms$", line) for line in lines)
        assert [(one["endpoint"], one["tenant"], len(one["entries"])) for one in receiver.questions] == [
            ("archive", "default", 1)
        ] * 3
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 3


async def test_listen_makes_a_secret_and_prints_it() -> None:
    async with telling() as server, serving_backend() as receiver:
        bodies: list[tuple[bytes, dict[str, str]]] = []

        async def keep(request: web.Request) -> web.Response:
            bodies.append((await request.read(), dict(request.headers)))
            return web.Response(status=204)

        receiver.secrets = []
        receiver.reply = keep
        async with listening(server, "--forward-to", receiver.url) as listener:
            note = await listener.noted("whsec_")
            await say(server, "room:1", "a")
            await listener.printed(1)
        [(body, headers)] = bodies
        Webhook(note.split()[-1]).verify(body, headers)


async def test_listen_sends_again_what_a_receiver_could_not_take_yet() -> None:
    async with telling(queues=1) as server, serving_backend() as receiver:
        receiver.reply = answering(503, 429)
        async with listening(server, "--forward-to", receiver.url, "--secret", SECRET) as listener:
            await say(server, "room:1", "a", "b")
            lines = await listener.printed(2)
            await listener.noted("→ 503; again in 1 s")
            await listener.noted("→ 429; again in 2 s")
        assert all("→ 204" in line for line in lines)
        assert [entry["event"]["data"]["text"] for entry in delivered(receiver)] == ["a", "a", "a", "b"]
        ids = [request.headers["webhook-id"] for request in receiver.requests]
        assert ids[0] == ids[1] == ids[2] != ids[3]


async def test_listen_goes_on_after_an_entry_that_is_refused() -> None:
    async with telling(queues=1) as server, serving_backend() as receiver:
        receiver.reply = answering(422)
        async with listening(server, "--forward-to", receiver.url, "--secret", SECRET) as listener:
            await say(server, "room:1", "a", "b")
            lines = await listener.printed(2)
        assert ["→ 422" in line for line in lines] == [True, False]
        assert [entry["event"]["data"]["text"] for entry in delivered(receiver)] == ["a", "b"]


async def test_listen_waits_for_a_receiver_that_is_not_there_yet(unused_tcp_port: int) -> None:
    received: list[Any] = []

    async def receive(request: web.Request) -> web.Response:
        received.append(await request.json())
        return web.Response(status=204)

    async with telling(queues=1) as server:
        url = f"http://127.0.0.1:{unused_tcp_port}/webhooks"
        async with listening(server, "--forward-to", url, "--secret", SECRET) as listener:
            await say(server, "room:1", "a")
            await listener.noted("again in 1 s")
            app = web.Application()
            app.router.add_post("/webhooks", receive)
            runner = web.AppRunner(app)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
            try:
                await listener.printed(1)
            finally:
                await runner.cleanup()
    assert len(received) == 1


async def test_listen_reads_beside_a_receiver_of_the_service() -> None:
    async with serving_backend() as real, serving_backend() as local, telling(real.endpoint("archive")) as server:
        async with listening(server, "--forward-to", local.url, "--secret", SECRET) as listener:
            await say(server, "room:1", "a", "b")
            await listener.printed(2)
            await eventually(lambda: len(delivered(real)) >= 2)
        assert delivered(real) == delivered(local)


async def test_listen_shows_what_is_replayed() -> None:
    async with serving_backend() as real, telling(real.endpoint("archive"), queues=1) as server:
        await say(server, "room:1", "a")
        await eventually(lambda: len(delivered(real)) >= 1)
        await until_done(server)
        async with listening(server) as listener:
            assert (await run("webhooks", "replay", "archive", "--since", "10m", *common(server)))[1] == "replayed 1\n"
            [line] = await listener.printed(1)
            assert delivered(real)[0]["id"] in line


async def test_listen_asks_which_endpoint_if_there_are_several() -> None:
    async with telling(QUIET, {"name": "more", "tenants": ["default"]}) as server:
        status, _, notes = await run("listen", *common(server))
        assert (status, "choose one with --endpoint: archive, more" in notes) == (1, True)
        status, _, notes = await run("listen", "--endpoint", "none", *common(server))
        assert (status, "no endpoint none; the tenant default has archive, more" in notes) == (1, True)
        status, _, notes = await run("listen", *common(server, OTHER_API_KEY))
        assert (status, "webhooks.endpoints has none of the tenant other" in notes) == (1, True)
        async with listening(server, "--endpoint", "archive") as listener:
            await say(server, "room:1", "a")
            await listener.printed(1)


async def test_listen_with_a_wrong_key_ends_with_the_reason() -> None:
    async with telling() as server:
        status, _, notes = await run("listen", *common(server, "a-wrong-key-that-is-long-enough"))
        assert (status, "invalid_api_key" in notes) == (1, True)


async def test_listen_reads_again_after_an_error_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that the broker can be away."""
    notes: list[str] = []
    monkeypatch.setattr("service.cli.output.note", notes.append)
    monkeypatch.setattr(listen, "MIN_PAUSE", 0.01)
    lines: list[str] = []
    monkeypatch.setattr("service.cli.output.result", lines.append)
    async with telling(queues=1) as server, AsyncTidewire(server.url, api_key=API_KEY, retries=0) as client:
        broker = server.service.node.broker
        history, failures = broker.history, 2

        async def failing(*arguments: Any) -> Any:
            nonlocal failures
            if failures:
                failures -= 1
                raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "away for the test")
            return await history(*arguments)

        monkeypatch.setattr(broker, "history", failing)
        found = await client.webhooks()
        listener = listen.Listener(client, found.endpoints[0], None, found.at)
        following = asyncio.create_task(listener.run())
        try:
            await say(server, "room:1", "a")
            await eventually(lambda: len(lines) == 1, lambda: notes)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    assert any("broker_unavailable" in note and "reading again in" in note for note in notes)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--forward-to", "localhost:3000"], "a receiver is a URL such as"),
        (["--forward-to", "ftp://localhost/x"], "a receiver is a URL such as"),
        (["--secret", "secret"], "the secret does not begin with whsec_"),
        (["--secret", "whsec_!"], "the secret is not base64"),
        (["--since", "yesterday"], "is not a duration"),
    ],
)
def test_listen_with_wrong_arguments_is_refused(
    options: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["listen", *options])
    assert reason in capsys.readouterr().err


# --- webhooks ---------------------------------------------------------------------------------------------------------


async def test_webhooks_list_shows_a_line_for_each_queue() -> None:
    async with serving_backend() as backend:
        backend.reply = answering(*[503] * 1000)
        async with telling(backend.endpoint("archive"), {"name": "more", "tenants": ["default"]}, queues=1) as server:
            await say(server, "room:1", "a")
            await eventually(lambda: bool(backend.questions))
            found: list[str] = []

            async def failing() -> bool:
                status, out, _ = await run("webhooks", "list", *common(server))
                found[:] = out.splitlines()
                return status == 0 and "503" in out

            await until(failing, "a failed delivery", within=DEADLINE)
    head, archive, more = found
    assert head.split() == ["ENDPOINT", "QUEUE", "WAITING", "OLDEST", "NODE", "LAST", "FAILURE"]
    assert re.fullmatch(r"archive +0 +[1-9]\d* +\d+s +\S+ +.*503.*", archive)
    assert re.fullmatch(r"more +0 +0 +- +\S+ +not sent: no url", more)


async def test_webhooks_commands_work_through_dead_letters() -> None:
    async with serving_backend() as backend, telling(backend.endpoint("archive"), queues=1, attempts=1) as server:
        backend.reply = answering(*[422] * 100)
        await say(server, "room:1", "a", "b", "c")
        ids = [letter["entry"]["id"] for letter in await until_dead(server, 3)]
        status, out, _ = await run("webhooks", "dead-letters", "archive", *common(server))
        assert status == 0
        for line, id in zip(out.splitlines(), ids, strict=True):
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  {id}  event\.published  room:1  .*422.*", line)
        _, out, _ = await run("webhooks", "dead-letters", "archive", "--json", *common(server))
        assert [json.loads(line)["entry"]["id"] for line in out.splitlines()] == ids
        assert (await run("webhooks", "drop", "archive", "--id", ids[0], *common(server)))[:2] == (0, "dropped 1\n")
        backend.reply = {}
        backend.questions.clear()
        replay = ("webhooks", "replay", "archive")
        assert (await run(*replay, "--id", ids[1], *common(server)))[:2] == (0, "replayed 1\n")
        assert (await run(*replay, "--dead-letters", *common(server)))[:2] == (0, "replayed 1\n")
        await eventually(lambda: len(delivered(backend)) >= 2)
        assert [entry["id"] for entry in delivered(backend)] == ids[1:]
        assert (await run("webhooks", "drop", "archive", "--dead-letters", *common(server)))[:2] == (0, "dropped 0\n")
        assert (await run("webhooks", "dead-letters", "archive", *common(server)))[:2] == (0, "")


async def test_webhooks_command_for_an_unknown_endpoint_says_so() -> None:
    async with telling() as server:
        status, out, notes = await run("webhooks", "dead-letters", "none", *common(server))
        assert (status, out, "not_found" in notes) == (1, "", True)


@pytest.mark.parametrize(
    "command", [["webhooks", "list"], ["webhooks", "replay", "archive", "--dead-letters"], ["listen"]]
)
def test_command_without_a_key_fails_with_the_reason(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main(command) == 1
    assert "TIDEWIRE_API__KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["webhooks"],
        ["webhooks", "replay", "archive"],
        ["webhooks", "drop", "archive"],
        ["webhooks", "drop", "archive", "--id", "wh_1", "--dead-letters"],
    ],
)
def test_webhooks_command_that_does_not_say_what_is_refused(command: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(command)
