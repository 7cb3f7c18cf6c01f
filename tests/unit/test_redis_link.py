"""A link to Redis against a scripted server: order of replies, pieces of replies, silence, and who learns of it when."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from itertools import cycle
from typing import Any

import hiredis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.adapters.redis.connections.link import Link, LinkLost, ReplyError
from tests.support.harness import eventually

PING = b"*1\r\n$4\r\nPING\r\n"


class Wire(asyncio.Transport):
    """The other end: keeps what is written, and says what a test has it say."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self.written: list[bytes] = []
        self.aborted = False
        link.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def abort(self) -> None:
        if not self.aborted:
            self.aborted = True
            asyncio.get_running_loop().call_soon(self._link.connection_lost, None)

    @property
    def commands(self) -> list[bytes]:
        """The names of the commands that were written, in order."""
        reader = hiredis.Reader(notEnoughData=b"")
        reader.feed(b"".join(self.written))
        return [command[0] for command in iter(reader.gets, b"")]

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._link.data_received(piece)


def linked(
    on_push: Callable[[list[Any]], None] | None = None,
    *,
    ping: float = 60.0,
    silence: float = 180.0,
    timeout: float = 300.0,
    on_pong: Callable[[float], None] | None = None,
) -> tuple[Link, Wire]:
    link = Link(ping=ping, silence=silence, timeout=timeout, on_push=on_push, on_pong=on_pong)
    return link, Wire(link)


async def test_what_is_asked_in_one_turn_travels_in_one_write() -> None:
    link, wire = linked()
    calls = [link.call("GET", n) for n in range(3)]
    assert wire.written == []
    await asyncio.sleep(0)
    [written] = wire.written
    assert written.count(b"GET") == 3
    wire.say(b"+a\r\n:2\r\n$-1\r\n")
    assert [await call for call in calls] == [b"a", 2, None]
    assert link.waiting == 0
    link.abort()


async def test_an_error_is_its_callers_alone() -> None:
    link, wire = linked()
    first, second, third = (link.call("X") for _ in range(3))
    wire.say(b"+1\r\n-ERR no\r\n+3\r\n")
    assert await first == b"1"
    with pytest.raises(ReplyError, match="ERR no"):
        await second
    assert await third == b"3"
    assert link.is_open
    link.abort()


async def test_a_cancelled_call_keeps_its_turn() -> None:
    link, wire = linked()
    first, second = link.call("X"), link.call("Y")
    first.cancel()
    wire.say(b"+first's\r\n+second's\r\n")
    assert await second == b"second's"
    link.abort()


replies = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 9),
    st.none(),
    st.sampled_from(["error", "push", "pong"]),
)


@settings(max_examples=50, deadline=None)
@given(said=st.lists(replies, min_size=1, max_size=12), sizes=st.lists(st.integers(1, 60), min_size=1))
def test_replies_in_pieces_of_any_size(said: list[bytes | int | str | None], sizes: list[int]) -> None:
    async def check() -> None:
        pushed: list[Any] = []
        link, wire = linked(pushed.append)
        expected: list[Any] = []
        calls: list[asyncio.Future[Any]] = []
        stream = b""
        for reply in said:
            if reply == "push":
                stream += b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n"
                continue
            calls.append(link.call("X"))
            if isinstance(reply, bytes):
                stream += b"$%d\r\n%b\r\n" % (len(reply), reply)
            elif isinstance(reply, int):
                stream += b":%d\r\n" % reply
            elif reply is None:
                stream += b"$-1\r\n"
            elif reply == "pong":
                stream += b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
            else:
                stream += b"-ERR no\r\n"
            expected.append(
                {"pong": [b"pong", b""], "error": "ERR no"}.get(reply, reply) if isinstance(reply, str) else reply
            )
        for size in cycle(sizes):
            wire.say(stream[:size])
            stream = stream[size:]
            if not stream:
                break
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(one) if isinstance(one, Exception) else one for one in got] == expected
        assert pushed == [[b"message", b"c", b"m"]] * said.count("push")
        link.abort()
        await asyncio.sleep(0)

    asyncio.run(check())


async def test_a_lost_link_tells_its_owner_before_its_callers() -> None:
    link, wire = linked()
    order: list[str] = []
    link.on_lost = lambda: order.append(f"owner, open: {link.is_open}")
    call = link.call("X")
    call.add_done_callback(lambda _: order.append("caller"))
    wire.abort()
    with pytest.raises(LinkLost):
        await call
    await link.lost.wait()
    assert order == ["owner, open: False", "caller"]
    with pytest.raises(LinkLost):
        await link.call("Y")
    link.tell("SUBSCRIBE", "c")
    await asyncio.sleep(0)
    assert b"SUBSCRIBE" not in b"".join(wire.written)


async def test_a_refused_certificate_is_said() -> None:
    link, _ = linked()
    call = link.call("X")
    error = ssl.SSLError(1, "[SSL] no")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    link.connection_lost(error)
    with pytest.raises(LinkLost, match="CERTIFICATE_REQUIRED"):
        await call


async def test_what_is_no_redis_ends_the_link() -> None:
    link, wire = linked()
    call = link.call("X")
    wire.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(LinkLost, match="protocol"):
        await call


async def test_an_error_that_nobody_waits_for_ends_the_link() -> None:
    link, wire = linked(lambda _: None)
    link.tell("SUBSCRIBE", "c")
    wire.say(b"-NOPERM no\r\n")
    await link.lost.wait()
    assert link.fault == "NOPERM no"


async def test_an_error_that_was_taken_in_uses_up_nobodys_turn() -> None:
    link, wire = linked(lambda _: None)
    taken: list[str] = []

    def take(error: str) -> bool:
        taken.append(error)
        return error.startswith("MOVED")

    link.on_refusal = take
    call = link.call("X")
    wire.say(b"-MOVED 1 h:1\r\n+x\r\n")
    assert await call == b"x"
    assert taken == ["MOVED 1 h:1"]
    link.abort()


# --- time -------------------------------------------------------------------------------------------------------------


async def test_a_ping_is_timed_until_its_answer_and_a_call_is_not() -> None:
    took: list[float] = []
    link, wire = linked(ping=0.02, on_pong=took.append)
    call = link.call("GET", "a")
    await eventually(lambda: wire.commands[-1:] == [b"PING"])
    wire.say(b"+a\r\n")
    assert await call == b"a"
    assert took == []
    turn = link.turn
    wire.say(b"+PONG\r\n" * (len(wire.commands) - 1))
    assert 0 <= took[-1] <= asyncio.get_running_loop().time() - turn + 0.02
    link.abort()


async def test_silence_ends_the_link() -> None:
    began = time.monotonic()
    link, wire = linked(ping=0.05, silence=0.2)
    call = link.call("X")
    with pytest.raises(LinkLost, match="does not answer"):
        await call
    assert 0.2 <= time.monotonic() - began < 20
    assert wire.aborted
    assert b"".join(wire.written).count(PING) >= 2


async def test_a_server_that_answers_pings_is_not_silent() -> None:
    link, wire = linked(ping=0.02, silence=0.1)
    answered = 0
    while answered < 10:  # twice as long as silence may last
        await asyncio.sleep(0.01)
        while b"".join(wire.written).count(PING) > answered:
            # One that cannot save its data says so instead of PONG.
            wire.say(b"+PONG\r\n" if answered % 2 else b"-MISCONF cannot save\r\n")
            answered += 1
    assert link.is_open
    link.abort()


async def test_our_own_standstill_is_not_the_servers() -> None:
    link, wire = linked(ping=0.05, silence=0.2, timeout=0.2)
    call = link.call("X")
    await asyncio.sleep(0.01)
    time.sleep(0.4)  # noqa: ASYNC251  # the standstill
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert link.is_open
    assert not call.done()
    wire.say(b"+x\r\n")
    assert await call == b"x"
    link.abort()


async def test_an_overdue_call_fails_and_keeps_its_turn() -> None:
    link, wire = linked(ping=0.05, silence=60.0, timeout=0.2)
    await asyncio.sleep(0.045)  # just before a tick: what a call has waited counts from its own beginning
    began = time.monotonic()
    late = link.call("X")
    with pytest.raises(TimeoutError):
        await late
    assert 0.2 <= time.monotonic() - began < 20
    in_time = link.call("Y")
    await asyncio.sleep(0)
    answers = {b"PING": b"+PONG\r\n", b"X": b"+late\r\n", b"Y": b"+in time\r\n"}
    wire.say(*(answers[command] for command in wire.commands))
    assert await in_time == b"in time"
    link.abort()
