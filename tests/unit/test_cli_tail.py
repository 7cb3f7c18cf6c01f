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
from tidewire import Event, Position, TidewireError

from service.__main__ import main
from service.cli import tail
from service.cli.tail import Tail
from tests.support import harness
from tests.support.api_client import ask

DEADLINE = 30.0
ROOT = Path(__file__).resolve().parents[2]
Script = Callable[[web.WebSocketResponse], Awaitable[None]]


class Shown:
    """What was printed; tests await it."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[Event] = asyncio.Queue()

    def __call__(self, event: Event) -> None:
        self.events.put_nowait(event)

    async def next(self) -> Event:
        async with asyncio.timeout(DEADLINE):
            return await self.events.get()


@asynccontextmanager
async def following(one: Tail) -> AsyncIterator[asyncio.Task[None]]:
    task: asyncio.Task[None] = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, TidewireError):
            await task


def one(url: str, shown: Shown, **options: Any) -> Tail:
    return Tail(url, "room:1", harness.token, shown, **options)


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
            assert [(await shown.next()).data["text"] for _ in range(2)] == ["one", "two"]
            assert (follower.position.offset, follower.position.id) == (3, "two")
            position = follower.position
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "three"}})
        async with following(Tail(server.url, "room:1", harness.token, shown, since=position)):
            assert (await shown.next()).data["text"] == "three"


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
        with pytest.raises(TidewireError, match=reason):
            await Tail(server.url, channel, given, Shown()).run()


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


async def test_tail_after_missed_events_prints_a_note_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    async with harness.serving() as server:
        await server.publish("room:1", {"type": "chat.message", "data": {"text": "before"}})
        async with following(follower := one(server.url, shown, since=Position("e0", 5, "x"))):
            await harness.eventually(lambda: str(follower.position) != "e0:5:x")
            await server.publish("room:1", {"type": "chat.message", "data": {"text": "after"}})
            assert (await shown.next()).data == {"text": "after"}
    assert "events are missing here" in capsys.readouterr().err


async def test_tail_of_ended_connection_stops_with_reason() -> None:
    async with harness.serving() as server, asyncio.timeout(DEADLINE):
        tail_ = one(server.url, Shown())
        async with following(tail_) as task:
            await harness.eventually(lambda: tail_.position is not None)
            await ask(server, "POST", "/users/ann/disconnect", {"reason": "enough"})
            with pytest.raises(TidewireError, match="4403: enough"):
                await task


# --- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "e1", "e1:7", "e1:x:m", ":7:m"])
def test_tail_of_wrong_position_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tail", "room:1", "--since", text])
    assert "EPOCH:OFFSET:ID" in capsys.readouterr().err


def event(offset: int | None = None, **fields: Any) -> Event:
    content = {"type": "chat.message", "channel": "room:1", "id": "m", "at": 1, "data": {"n": offset}, "offset": offset}
    return Event(**{**content, **fields})


def test_line_shows_time_place_type_sender_and_data(capsys: pytest.CaptureFixture[str]) -> None:
    tail.print_line(event(7, sender="ann", data={"text": "grüezi"}))
    tail.print_line(event(rev=3))
    tail.print_line(event())
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        '#7 chat.message ann {"text":"grüezi"}',
        '~3 chat.message (backend) {"n":null}',
        '- chat.message (backend) {"n":null}',
    ]


def test_line_says_what_was_removed(capsys: pytest.CaptureFixture[str]) -> None:
    tail.print_line(event(rev=4, key="ann", removed=True, data=None))
    tail.print_line(event(rev=4, key="ann", removed=True, expired=True, data=None))
    tail.print_line(event(9, type="event.removed", data={"id": "m-1", "offset": 7}))
    more = [{"id": "m-3", "offset": 8}]
    tail.print_line(event(10, type="event.removed", data={"id": "m-1", "offset": 7, "more": more}))
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "~4 chat.message (backend) removed ann",
        "~4 chat.message (backend) ended ann",
        "#9 event.removed (backend) removed #7 m-1",
        "#10 event.removed (backend) removed #7 m-1, #8 m-3",
    ]


def test_json_line_has_every_field_of_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    tail._as_json(event(7, data=None))
    tail._as_json(event(rev=2, key="a", removed=True, sender="ann", data=None))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"from": None, "type": "chat.message", "channel": "room:1", "id": "m", "at": 1, "offset": 7, "data": None},
        {
            "from": "ann",
            "type": "chat.message",
            "channel": "room:1",
            "id": "m",
            "at": 1,
            "rev": 2,
            "key": "a",
            "removed": True,
        },
    ]


async def test_tail_is_told_of_removed_values() -> None:
    shown = Shown()
    async with harness.serving() as server, following(follower := Tail(server.url, "doc:1", harness.token, shown)):
        value = {"type": "doc.cursor", "data": {"user": "ann"}}
        await harness.eventually(lambda: follower.position is not None)
        await server.publish("doc:1", value)
        assert (await shown.next()).rev == 1
        await server.publish("doc:1", {"type": "doc.cursor", "key": "ann", "removed": True})
        removed = await shown.next()
        assert (removed.removed, removed.rev) == (True, 2)
