"""The transport that is ours, attacked: who is held back and who must not be, and what a fault of our own costs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
from msgspec import Raw as Part

from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.protocol.close import CloseCode
from service.realtime.node import Node
from service.realtime.session.handshake import split_frame
from tests.support.harness import DEADLINE, Running, eventually, serving, token
from tests.support.raw import CLOSE, HANDSHAKE, Raw, connected, text, upgraded

BIG = "x" * 20_000


async def parts(raw: Raw) -> list[dict[str, Any]]:
    """The messages of the next frame."""
    message: Any = await raw.message()
    return message if isinstance(message, list) else [message]


async def test_who_sends_much_behind_hello_is_read_further(server: Running) -> None:
    async with upgraded(server, None) as raw:
        raw.write(text(type="hello", token=token("ann")) + b"".join(text(type="ping", id=str(n)) for n in range(20)))
        got: list[str] = []
        while "19" not in got:
            got += [part["id"] for part in await parts(raw) if part["type"] != "welcome"]
        raw.write(text(type="ping", id="20"))
        got += [part["id"] for part in await parts(raw)]
        assert got == [str(number) for number in range(21)]


async def test_nothing_comes_behind_the_goodbye_to_a_slow_reader_that_reads_again() -> None:
    """What had waited for it came: RFC 6455 §5.5.1 forbids that."""
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
        (ben,) = node.delivery.registry.of_user("default", "ben")
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
        await eventually(lambda: node.delivery.budget.used == 0)


@pytest.mark.parametrize("prompt", [True, False])
async def test_a_fault_of_ours_ends_the_connection_and_frees_its_place(
    monkeypatch: pytest.MonkeyPatch, prompt: bool
) -> None:
    """It stayed on the roster for ever, neither served nor freed."""

    def broken(node: Node, frame: str | bytes) -> list[str | Part]:
        if "boom" in str(frame):
            raise RuntimeError("a bug")
        return split_frame(node, frame)

    monkeypatch.setattr("service.realtime.session.handler.split_frame", broken)
    async with serving() as server:
        async with upgraded(server) as raw:
            raw.write(b"" if prompt else text(type="ready") + text(type="subscribe", id="s", channel="room:1"))
            raw.write(text(type="ping", id="boom"))
            assert await raw.close_code() == 1011
        await server.at_rest()


class Undecided:
    """An authenticator that never comes to an end."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def authenticate(self, token: str) -> Identity:
        self.asked.set()
        await asyncio.Event().wait()
        raise AssertionError


async def test_a_shutdown_ends_connections_that_have_not_been_answered() -> None:
    undecided = Undecided()
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
