"""A Redis link with a scripted server: order of replies, split replies, silence and the order of callbacks."""

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

from service.adapters.redis.connections.link import Link, LinkCallbacks, LinkLost, ReplyError
from tests.support.examples import examples
from tests.support.harness import eventually

PING = b"*1\r\n$4\r\nPING\r\n"


class ScriptedTransport(asyncio.Transport):
    """The server's side: records what is written, and sends what a test gives it."""

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

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._link.data_received(piece)


def linked(
    on_push: Callable[[list[Any]], None] | None = None,
    *,
    ping: float = 60.0,
    silence: float = 180.0,
    timeout: float = 300.0,
    on_pong: Callable[[float], None] | None = None,
    on_lost: Callable[[Link], None] | None = None,
    on_push_error: Callable[[str], bool] | None = None,
) -> tuple[Link, ScriptedTransport]:
    link = Link(
        ping_interval=ping,
        silence_timeout=silence,
        call_timeout=timeout,
        callbacks=LinkCallbacks(on_lost, on_push, on_push_error, on_pong),
    )
    return link, ScriptedTransport(link)


async def test_link_commands_of_one_iteration_travel_in_one_write() -> None:
    link, transport = linked()
    calls = [link.call("GET", n) for n in range(3)]
    assert transport.written == []
    await asyncio.sleep(0)
    [written] = transport.written
    assert written.count(b"GET") == 3
    transport.send(b"+a\r\n:2\r\n$-1\r\n")
    assert [await call for call in calls] == [b"a", 2, None]
    assert link.pending == 0
    link.abort()


async def test_link_error_reply_fails_only_its_caller() -> None:
    link, transport = linked()
    first, second, third = (link.call("X") for _ in range(3))
    transport.send(b"+1\r\n-ERR no\r\n+3\r\n")
    assert await first == b"1"
    with pytest.raises(ReplyError, match="ERR no"):
        await second
    assert await third == b"3"
    assert link.is_open
    link.abort()


async def test_link_cancelled_call_keeps_its_place_among_replies() -> None:
    link, transport = linked()
    first, second = link.call("X"), link.call("Y")
    first.cancel()
    transport.send(b"+first's\r\n+second's\r\n")
    assert await second == b"second's"
    link.abort()


replies = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 9),
    st.none(),
    st.sampled_from(["error", "push", "pong"]),
)


@settings(max_examples=examples(30), deadline=None)
@given(sent=st.lists(replies, min_size=1, max_size=12), sizes=st.lists(st.integers(1, 60), min_size=1))
def test_link_replies_split_anywhere_reach_their_callers(
    sent: list[bytes | int | str | None], sizes: list[int]
) -> None:
    async def check() -> None:
        pushed: list[Any] = []
        link, transport = linked(pushed.append)
        expected: list[Any] = []
        calls: list[asyncio.Future[Any]] = []
        stream = b""
        for reply in sent:
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
            transport.send(stream[:size])
            stream = stream[size:]
            if not stream:
                break
        got = await asyncio.gather(*calls, return_exceptions=True)
        assert [str(one) if isinstance(one, Exception) else one for one in got] == expected
        assert pushed == [[b"message", b"c", b"m"]] * sent.count("push")
        link.abort()
        await asyncio.sleep(0)

    asyncio.run(check())


async def test_link_lost_notifies_owner_before_callers() -> None:
    order: list[str] = []
    link, transport = linked(on_lost=lambda link: order.append(f"owner, open: {link.is_open}"))
    call = link.call("X")
    call.add_done_callback(lambda _: order.append("caller"))
    transport.abort()
    with pytest.raises(LinkLost):
        await call
    await link.lost.wait()
    assert order == ["owner, open: False", "caller"]
    with pytest.raises(LinkLost):
        await link.call("Y")
    link.send_unanswered("SUBSCRIBE", "c")
    await asyncio.sleep(0)
    assert b"SUBSCRIBE" not in b"".join(transport.written)


async def test_link_refused_certificate_is_named_in_error() -> None:
    link, _ = linked()
    call = link.call("X")
    error = ssl.SSLError(1, "[SSL] no")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    link.connection_lost(error)
    with pytest.raises(LinkLost, match="CERTIFICATE_REQUIRED"):
        await call


async def test_link_to_another_protocol_is_closed() -> None:
    link, transport = linked()
    call = link.call("X")
    transport.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(LinkLost, match="protocol"):
        await call


async def test_link_unexpected_error_reply_closes_link() -> None:
    link, transport = linked(lambda _: None)
    link.send_unanswered("SUBSCRIBE", "c")
    transport.send(b"-NOPERM no\r\n")
    await link.lost.wait()
    assert link.close_reason == "NOPERM no"


async def test_link_handled_push_error_keeps_replies_in_order() -> None:
    handled: list[str] = []

    def handle(error: str) -> bool:
        handled.append(error)
        return error.startswith("MOVED")

    link, transport = linked(lambda _: None, on_push_error=handle)
    call = link.call("X")
    transport.send(b"-MOVED 1 h:1\r\n+x\r\n")
    assert await call == b"x"
    assert handled == ["MOVED 1 h:1"]
    link.abort()


# --- time -------------------------------------------------------------------------------------------------------------


async def test_link_on_pong_gets_duration_of_pings_only() -> None:
    took: list[float] = []
    link, transport = linked(ping=0.02, on_pong=took.append)
    call = link.call("GET", "a")
    await eventually(lambda: transport.commands[-1:] == [b"PING"])
    transport.send(b"+a\r\n")
    assert await call == b"a"
    assert took == []
    transport.send(b"+PONG\r\n" * (len(transport.commands) - 1))
    assert 0 <= took[-1] < 1
    link.abort()


async def test_link_silent_server_closes_link() -> None:
    began = time.monotonic()
    link, transport = linked(ping=0.05, silence=0.2)
    call = link.call("X")
    with pytest.raises(LinkLost, match="does not answer"):
        await call
    assert 0.2 <= time.monotonic() - began < 20
    assert transport.aborted
    assert b"".join(transport.written).count(PING) >= 2


async def test_link_answered_pings_keep_link_open() -> None:
    link, transport = linked(ping=0.02, silence=0.1)
    answered = 0
    while answered < 10:  # twice the silence timeout
        await asyncio.sleep(0.01)
        while b"".join(transport.written).count(PING) > answered:
            # A server that cannot save its data answers MISCONF in place of PONG.
            transport.send(b"+PONG\r\n" if answered % 2 else b"-MISCONF cannot save\r\n")
            answered += 1
    assert link.is_open
    link.abort()


async def test_link_stalled_process_keeps_link_open() -> None:
    link, transport = linked(ping=0.05, silence=0.2, timeout=0.2)
    call = link.call("X")
    await asyncio.sleep(0.01)
    time.sleep(0.4)  # noqa: ASYNC251  # the process stalls
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert link.is_open
    assert not call.done()
    transport.send(b"+x\r\n")
    assert await call == b"x"
    link.abort()


async def test_link_overdue_call_fails_and_keeps_its_place() -> None:
    link, transport = linked(ping=0.05, silence=60.0, timeout=0.2)
    await asyncio.sleep(0.045)  # just before a tick: the timeout counts from the start of the call
    began = time.monotonic()
    late = link.call("X")
    with pytest.raises(TimeoutError):
        await late
    assert 0.2 <= time.monotonic() - began < 20
    in_time = link.call("Y")
    await asyncio.sleep(0)
    answers = {b"PING": b"+PONG\r\n", b"X": b"+late\r\n", b"Y": b"+in time\r\n"}
    transport.send(*(answers[command] for command in transport.commands))
    assert await in_time == b"in time"
    link.abort()
