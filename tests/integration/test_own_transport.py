"""The WebSocket under attack: what is paused, what must not be, and what a fault of the service costs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest

from service.core.channel import ChannelKey
from service.core.hooks import ClientContext
from service.core.identity import Identity
from service.protocol.close import CloseCode
from tests.support.authenticator import StubAuthenticator
from tests.support.harness import DEADLINE, Running, eventually, serving, token
from tests.support.raw import CLOSE, HANDSHAKE, TEXT, Raw, connected, frame, text, upgraded

BIG = "x" * 20_000


async def parts(raw: Raw) -> list[dict[str, Any]]:
    """The messages of the next frame."""
    message: Any = await raw.message()
    return message if isinstance(message, list) else [message]


async def test_many_messages_behind_hello_are_all_read(server: Running) -> None:
    async with upgraded(server, None) as raw:
        raw.write(text(type="hello", token=token("ann")) + b"".join(text(type="ping", id=str(n)) for n in range(20)))
        got: list[str] = []
        while "19" not in got:
            got += [part["id"] for part in await parts(raw) if part["type"] != "welcome"]
        raw.write(text(type="ping", id="20"))
        got += [part["id"] for part in await parts(raw)]
        assert got == [str(number) for number in range(21)]


async def test_slow_reader_that_resumes_gets_nothing_behind_the_close() -> None:
    """RFC 6455 §5.5.1 forbids frames behind a close frame; waiting ones were once sent."""
    async with (
        serving(outbox={"bytes": 200_000, "close_grace": 3.0}) as server,
        connected(server, receive_buffer=4096) as raw,
    ):
        await raw.request(headers=HANDSHAKE | {"Authorization": f"Bearer {token('ben')}"})
        raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
        node = server.service.node
        await eventually(
            lambda: server.service.node.cluster.actions.count_subscribers(ChannelKey("default", "room:1")) == 1
        )
        (ben,) = node.streams.registry.of_user("default", "ben")
        for _ in range(100):
            await server.publish("room:1", {"type": "chat.message", "data": {"text": BIG}})
            if ben.closing is not None:
                break
        assert ben.closing is not None
        assert ben.closing[0] is CloseCode.SLOW_CONSUMER
        assert ben.queued_messages == 0, "what will not be sent is not kept"
        opcodes = []
        with suppress(EOFError, ConnectionError):
            while True:
                opcodes.append((await raw.receive())[0])
        assert opcodes[-1] == CLOSE
        assert opcodes.count(CLOSE) == 1
        await eventually(lambda: node.streams.budget.used == 0)


@pytest.mark.parametrize("before", ["", "a command", "a refusal"])
async def test_fault_in_a_command_closes_the_connection_and_frees_its_slot(
    monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """Once the connection stayed in the registry for ever, neither served nor freed."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    # The first of these runs for a batch, the second for a message that is refused.
    monkeypatch.setattr(
        f"service.realtime.session.handler.{'message_id' if before == 'a refusal' else 'split_frame'}", broken
    )
    async with serving() as server:
        async with upgraded(server) as raw:
            if before == "a command":
                raw.write(text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
            raw.write(text(type="nonsense") if before == "a refusal" else frame(TEXT, b'[{"type":"ping","id":"p"}]'))
            assert await raw.close_code() == 1011
        await server.at_rest()


class HangingAuthenticator(StubAuthenticator):
    """An authenticator that never finishes."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def authenticate(self, token: str, context: ClientContext | None = None) -> Identity:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_shutdown_closes_connections_that_await_authentication() -> None:
    undecided = HangingAuthenticator()
    async with AsyncExitStack() as clients:
        async with serving(authenticator=undecided, deadlines={"shutdown": 0.1}) as server:
            silent, asking = [await clients.enter_async_context(connected(server)) for _ in range(2)]
            fields = HANDSHAKE | {"Host": "x", "Authorization": "Bearer x"}
            lines = [f"{name}: {value}" for name, value in fields.items()]
            asking.write("\r\n".join(["GET /ws HTTP/1.1", *lines, "", ""]).encode())
            async with asyncio.timeout(DEADLINE):
                await undecided.asked.wait()
            admission = server.service.node.admission
            assert admission.slots.total == 1
        assert admission.slots.total == 0, "the seat is given back"
        await silent.gone()
        await asking.gone()
