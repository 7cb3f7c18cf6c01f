"""`tidewire tail`: against a running service, and against a scripted one that breaks off."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from service.cli import tail
from service.cli.tail import Position, Stop, Tail
from tests.support import harness

DEADLINE = 30.0
ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[web.WebSocketResponse], Awaitable[None]]


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "MIN_RECONNECT_DELAY", 0.0)


class Shown:
    """What was printed; tests await it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.put_nowait(event)

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(DEADLINE):
            return await self.events.get()


@asynccontextmanager
async def following(one: Tail) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Stop):
            await task


@asynccontextmanager
async def scripted(*connections: Script) -> AsyncIterator[str]:
    """A service whose n-th connection does what the n-th script says; there are no more than those."""
    waiting = list(connections)

    async def handle(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(protocols=("tidewire.v1",))
        await socket.prepare(request)
        await waiting.pop(0)(socket)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/ws", handle)
    async with TestServer(app, host="127.0.0.1") as server:
        yield str(server.make_url("")).rstrip("/")


async def joined(socket: web.WebSocketResponse, offset: int = 0, **fields: Any) -> dict[str, Any]:
    """Answers hello and the first subscribe; gives the subscribe."""
    assert (await socket.receive_json(timeout=DEADLINE))["type"] == "hello"
    await socket.send_json({"type": "welcome"})
    ready, request = await socket.receive_json(timeout=DEADLINE)
    assert ready == {"type": "ready"}
    await answer(socket, request, offset, **fields)
    return dict(request)


async def answer(socket: web.WebSocketResponse, request: dict[str, Any], offset: int = 0, **fields: Any) -> None:
    reply = {
        "type": "subscribed", "id": request["id"], "channel": "room:1", "epoch": "e1", "offset": offset, "events": [],
        "state": [],
    }  # fmt: skip
    if offset:
        reply["last"] = f"m-{offset}"
    await socket.send_json(reply | fields)


def event(offset: int | None, **fields: Any) -> dict[str, Any]:
    content = {
        "type": "chat.message",
        "channel": "room:1",
        "id": f"m-{offset}",
        "at": 1,
        "from": None,
        "data": {"n": offset},
    }
    return content | ({} if offset is None else {"offset": offset}) | fields


async def stay(socket: web.WebSocketResponse) -> None:
    """Stays until the other side goes."""
    async for _ in socket:
        pass


def one(url: str, shown: Shown, **options: Any) -> Tail:
    return Tail(url, "room:1", lambda: "token", shown, **options)


NEWER = json.loads((ROOT / "tests" / "vectors" / "newer.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("vector", NEWER, ids=lambda vector: vector["name"])
async def test_messages_of_a_newer_service_are_understood(vector: dict[str, Any]) -> None:
    async def newer(socket: web.WebSocketResponse) -> None:
        assert (await socket.receive_json(timeout=DEADLINE))["type"] == "hello"
        await socket.send_json({"type": "welcome", **vector["welcome"]})
        _, request = await socket.receive_json(timeout=DEADLINE)
        await answer(socket, request, **vector["subscribed"])
        for frame in vector["frames"]:
            await socket.send_json(frame)
        await socket.send_json(event(None, id="last"))
        await stay(socket)

    shown = Shown()
    async with scripted(newer) as url, following(one(url, shown)):
        seen: list[str] = []
        while not seen or seen[-1] != "last":
            found = await shown.next()
            if not found["type"].startswith("presence."):
                seen.append(found["id"])
        assert seen == [*vector["events"], "last"]


# --- the real service --------------------------------------------------------------------------------------------------


async def test_tail_prints_events() -> None:
    shown = Shown()
    async with harness.serving() as server:
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "before"}})
        follower = Tail(server.url, "room:1", harness.token, shown)
        async with following(follower):
            async with asyncio.timeout(DEADLINE):
                while follower.position is None:  # noqa: ASYNC110  # what it waits for is what is tested
                    await asyncio.sleep(0.01)
            assert follower.position.offset == 1
            for text in ("one", "two"):
                await server.publish("room:1", {"type": "chat.message", "id": text, "data": {"text": text}})
            assert [(await shown.next())["data"]["text"] for _ in range(2)] == ["one", "two"]
            assert (follower.position.offset, follower.position.id) == (3, "two")
            position = follower.position
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "three"}})
        async with following(Tail(server.url, "room:1", harness.token, shown, since=position)):
            assert (await shown.next())["data"]["text"] == "three"


@pytest.mark.parametrize(
    ("channel", "token", "reason"),
    [
        ("room:1", None, "unauthenticated"),
        ("room:1", "nonsense", "invalid_token"),
        ("nope:1", "good", "unknown_channel"),
        ("no pe", "good", "invalid_channel"),
        ("inbox:ben", "good", "forbidden"),
    ],
)
async def test_tail_refused_stops_with_reason(channel: str, token: str | None, reason: str) -> None:
    async with harness.serving() as server, asyncio.timeout(DEADLINE):
        given = harness.token() if token == "good" else token
        with pytest.raises(Stop, match=reason):
            await Tail(server.url, channel, lambda: given, Shown()).run()


def heed_ctrl_c() -> None:
    """A shell lets what it starts with `&` ignore SIGINT, and every child inherits that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


async def test_tail_interrupted_prints_the_position_to_resume(tmp_path: Path) -> None:
    async with harness.serving() as server:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("TIDEWIRE_")}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "service", "tail", "room:1", "--url", server.url, "--json",
            "--user", "ann", "--grant", "room:*",
            cwd=tmp_path, env=environ | {"TIDEWIRE_AUTH__SECRET": harness.SECRET, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            preexec_fn=heed_ctrl_c,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(30):
                line = asyncio.create_task(process.stdout.readline())
                serial = 0
                while not line.done():  # it may not have subscribed yet
                    serial += 1
                    await server.publish(
                        "room:1", {"type": "chat.message", "id": f"n-{serial}", "data": {"text": "hi"}}
                    )
                    await asyncio.wait({line}, timeout=0.1)
                shown = json.loads(line.result())
                process.send_signal(signal.SIGINT)
                _, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert (shown["type"], shown["data"]) == ("chat.message", {"text": "hi"})
    assert process.returncode == 0, err
    assert b"resume with --since '" in err
    assert b"Traceback" not in err


# --- a scripted one ----------------------------------------------------------------------------------------------------


async def test_tail_after_lost_connection_resumes() -> None:
    shown, asked = Shown(), []

    async def first(socket: web.WebSocketResponse) -> None:
        asked.append(await joined(socket))
        await socket.send_json([event(1), event(2), event(2)])
        await socket.close(code=1012)

    async def second(socket: web.WebSocketResponse) -> None:
        asked.append(await joined(socket, 3, events=[event(3)], recovered=True))
        await socket.send_json(event(4))
        await stay(socket)

    async with scripted(first, second) as url, following(one(url, shown)):
        assert [(await shown.next())["offset"] for _ in range(4)] == [1, 2, 3, 4]
    assert "since" not in asked[0]
    assert asked[1]["since"] == {"epoch": "e1", "offset": 2, "id": "m-2"}


@pytest.mark.parametrize("code", ["rate_limited", "broker_unavailable"])
async def test_tail_after_retryable_refusal_subscribes_again(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()

    async def refusing(socket: web.WebSocketResponse) -> None:
        await socket.receive_json(timeout=DEADLINE)
        await socket.send_json({"type": "welcome"})
        _, request = await socket.receive_json(timeout=DEADLINE)
        refusal = {"code": code, "message": "not now", "retryable": True, "details": {"retry_after": 0.01}}
        await socket.send_json({"type": "error", "id": request["id"], **refusal})
        await stay(socket)

    async def accepting(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.send_json(event(1))
        await stay(socket)

    async with scripted(refusing, accepting) as url, following(one(url, shown)):
        assert (await shown.next())["offset"] == 1
    assert f"{code}: not now" in capsys.readouterr().err


async def test_tail_after_gap_resubscribes_once() -> None:
    shown, said = Shown(), []

    async def script(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.send_json([event(1), event(3), event(4)])
        said.append(await socket.receive_json(timeout=DEADLINE))
        await socket.send_json({"type": "unsubscribed", "channel": "room:1", "code": "requested"})
        said.append(await socket.receive_json(timeout=DEADLINE))
        await answer(socket, said[-1], 4, events=[event(2), event(3), event(4)], recovered=True)
        await stay(socket)

    async with scripted(script) as url, following(one(url, shown)):
        assert [(await shown.next())["offset"] for _ in range(4)] == [1, 2, 3, 4]
    assert [message["type"] for message in said] == ["unsubscribe", "subscribe"]
    assert said[1]["since"]["offset"] == 1


async def test_tail_prints_events_without_position(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()

    async def script(socket: web.WebSocketResponse) -> None:
        await joined(socket, 7, recovered=False, state=[event(None, rev=3, key="a")])
        await socket.send_json(event(None))
        await stay(socket)

    async with scripted(script) as url, following(follower := one(url, shown, since=Position("e0", 5, "x"))):
        assert (await shown.next())["rev"] == 3
        assert (await shown.next())["data"] == {"n": None}
        assert follower.position == Position("e1", 7, "m-7")
    assert "events are missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "reason"), [(4403, "closed with 4403"), (4409, "closed with 4409"), (4401, "closed with 4401")]
)
async def test_tail_after_final_close_stops(code: int, reason: str) -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.close(code=code)

    async with scripted(script) as url, asyncio.timeout(DEADLINE):
        with pytest.raises(Stop, match=reason):
            await one(url, Shown()).run()


async def test_tail_renews_a_token_that_it_signed() -> None:
    shown, refreshed = Shown(), []
    tokens = iter(["t1", "t2", "t3"])

    async def first(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.send_json({"type": "expiring", "in": 60})
        refreshed.append(await socket.receive_json(timeout=DEADLINE))
        await socket.close(code=4401)

    async def second(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.send_json(event(1))
        await stay(socket)

    async with scripted(first, second) as url, following(Tail(url, "room:1", lambda: next(tokens), shown, renews=True)):
        assert (await shown.next())["offset"] == 1
    assert [(message["type"], message["token"]) for message in refreshed] == [("refresh", "t2")]


async def test_tail_of_ended_subscription_stops() -> None:
    async def script(socket: web.WebSocketResponse) -> None:
        await joined(socket)
        await socket.send_json({"type": "unsubscribed", "channel": "room:1", "code": "removed"})
        await stay(socket)

    async with scripted(script) as url, asyncio.timeout(DEADLINE):
        with pytest.raises(Stop, match="the subscription was ended: removed"):
            await one(url, Shown()).run()


async def test_tail_after_refused_upgrade_stops_or_retries(capsys: pytest.CaptureFixture[str]) -> None:
    answers = [503, 503, 403, 403]  # each refusal is asked for its reason

    async def handle(request: web.Request) -> web.Response:
        status = answers.pop(0)
        return web.json_response({"code": f"c{status}", "detail": "because", "details": {}}, status=status)

    app = web.Application()
    app.router.add_get("/ws", handle)
    async with TestServer(app, host="127.0.0.1") as server, asyncio.timeout(DEADLINE):
        with pytest.raises(Stop, match="c403: because"):
            await one(str(server.make_url("")), Shown()).run()
    assert answers == []
    assert "c503: because" in capsys.readouterr().err


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["e1:7:m:1", "e1:0:"])
def test_position_parses_its_own_text(text: str) -> None:
    assert str(Position.parse(text)) == text


@pytest.mark.parametrize("text", ["", "e1", "e1:7", "e1:x:m", ":7:m"])
def test_position_of_other_text_is_refused(text: str) -> None:
    with pytest.raises(Exception, match="EPOCH:OFFSET:ID"):
        Position.parse(text)


def test_line_shows_time_place_type_sender_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    tail.print_line(event(7, **{"from": "ann", "data": {"text": "grüezi"}}))
    tail.print_line(event(None, rev=3))
    tail.print_line(event(None))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        '#7 chat.message ann {"text":"grüezi"}',
        '~3 chat.message (backend) {"n":null}',
        '- chat.message (backend) {"n":null}',
    ]


def test_line_says_what_was_removed(capsys: pytest.CaptureFixture[str]) -> None:
    value = event(None, rev=4, key="ann", removed=True)
    del value["data"]
    tail.print_line(value)
    tail.print_line(event(9, type="event.removed", data={"id": "m-1", "offset": 7}))
    more = [{"id": "m-3", "offset": 8}]
    tail.print_line(event(10, type="event.removed", data={"id": "m-1", "offset": 7, "more": more}))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "~4 chat.message (backend) removed ann",
        "#9 event.removed (backend) removed #7 m-1",
        "#10 event.removed (backend) removed #7 m-1, #8 m-3",
    ]


async def test_tail_is_told_of_removed_values() -> None:
    shown = Shown()
    async with harness.serving() as server, following(Tail(server.url, "doc:1", harness.token, shown)):
        value = {"type": "doc.cursor", "data": {"user": "ann"}}
        await harness.eventually(lambda: bool(server.service.node.streams.hub.rooms()))
        await server.publish("doc:1", value)
        assert (await shown.next())["rev"] == 1
        await server.publish("doc:1", {"type": "doc.cursor", "key": "ann", "removed": True})
        removed = await shown.next()
        assert (removed["removed"], removed["rev"]) == (True, 2)
