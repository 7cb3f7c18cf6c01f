"""Plays tests/vectors/conversations against a running service, and holds that they cover the protocol.

tests/vectors/README.md says how a conversation is written.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.errors import ErrorCode
from service.protocol import messages
from service.protocol.close import CloseCode
from service.realtime.cluster.messages import INTERNAL_CHANNELS
from tests.support.api_client import ask
from tests.support.harness import DEADLINE, Running, serving, token
from tests.support.wire import Wire, connect

CONVERSATIONS = sorted((Path(__file__).parents[1] / "vectors" / "conversations").glob("*.json"))

Json = Any

PLACEHOLDER = re.compile(r"\$[a-z]\w*(:\w+)?")
"""No JSON path is one: they begin with `$.` or `$[`, or are `$` alone."""

NOT_OVER_A_CONNECTION = {
    ErrorCode.UNSUPPORTED_VERSION: "answers an upgrade",
    ErrorCode.UPGRADE_REQUIRED: "answers a plain GET",
    ErrorCode.INVALID_TICKET: "answers an upgrade",
    ErrorCode.INVALID_ADDRESS: "answers HTTP",
    ErrorCode.INVALID_RECEIPT: "answers HTTP",
    ErrorCode.INVALID_API_KEY: "the backend API's",
    ErrorCode.ORIGIN_REFUSED: "answers an upgrade",
    ErrorCode.HOOK_UNAVAILABLE: "needs a contract with a hook: tests/integration/test_hooks.py",
    ErrorCode.TOO_MANY_CALLS: "needs a contract with a call: tests/integration/test_calls.py",
    ErrorCode.CALL_FAILED: "the same",
    ErrorCode.OVERLOADED: "answers an upgrade",
    ErrorCode.DRAINING: "answers an upgrade",
    ErrorCode.NOT_FOUND: "answers HTTP",
    ErrorCode.METHOD_NOT_ALLOWED: "answers HTTP",
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: "answers HTTP",
    ErrorCode.INVALID_REQUEST: "answers HTTP",
    ErrorCode.URI_TOO_LONG: "answers HTTP",
    ErrorCode.HEADER_TOO_LARGE: "answers HTTP",
    ErrorCode.EXPECTATION_FAILED: "answers HTTP",
    ErrorCode.NOT_IMPLEMENTED: "answers HTTP",
    ErrorCode.HEADER_TOO_LARGE: "answers HTTP",
    ErrorCode.URI_TOO_LONG: "answers HTTP",
    ErrorCode.NOT_IMPLEMENTED: "answers HTTP",
    ErrorCode.EXPECTATION_FAILED: "answers HTTP",
    ErrorCode.INTERNAL: "needs a fault in the service",
}
NOT_PROVOKED = {
    CloseCode.ABNORMAL: "never sent, only seen",
    CloseCode.GOING_AWAY: "browsers send it",
    CloseCode.INTERNAL: "needs a fault in the service",
    CloseCode.OVERLOAD: "needs an issuer whose keys are away: tests/integration/test_identity.py",
    CloseCode.SLOW_CONSUMER: "needs a client that stops reading: tests/integration/test_slow_consumers.py",
}


class Difference(AssertionError):  # noqa: N818  # what a test looks for
    """What came is not what was expected."""


class Player:
    """Plays one conversation."""

    def __init__(self, server: Running, tokens: dict[str, Json], stack: AsyncExitStack) -> None:
        self._server = server
        self._tokens = tokens
        self._stack = stack
        self._peers: dict[str, Peer] = {}
        self._known: dict[str, Json] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def play(self, step: dict[str, Json]) -> None:
        """Takes one step; raises Difference if it does not go as written."""
        if "backend" in step:
            await self._backend(self.fill(step["backend"]), step["backend"].get("answer"))
        elif "service" in step:
            assert step["service"] == "stop", step
            task = asyncio.create_task(self._server.service.node.lifecycle.drain())
            self._stack.push_async_callback(asyncio.wait_for, task, DEADLINE)
        elif "connect" in step:
            await self._connect(step["who"], self.fill(step["connect"]))
        else:
            await self._speak(self._peers[step["who"]], step)

    async def _connect(self, who: str, options: dict[str, Json]) -> None:
        parameters = [f"channels={','.join(options['channels'])}"] if "channels" in options else []
        parameters += ["ready=1"] if options.get("ready") else []
        parameters += [f"features={','.join(options['features'])}"] if "features" in options else []
        query = f"?{'&'.join(parameters)}" if parameters else ""
        peer = self._peers[who] = Peer()
        port = int(self._server.url.rpartition(":")[2])
        peer.wire = await connect(port, peer.text, peer.gone, bearer=options.get("bearer"), query=query)
        self._stack.callback(peer.wire.abort)

    async def _speak(self, peer: Peer, step: dict[str, Json]) -> None:
        wire = peer.wire
        if "send" in step:
            wire.text(json.dumps(self.fill(step["send"])))
        elif "text" in step:
            wire.text(step["text"])
        elif "binary" in step:
            wire.binary(step["binary"].encode())
        elif "bytes" in step:
            wire.raw(bytes.fromhex(step["bytes"]))
        elif "expect" in step:
            self.match(step["expect"], await peer.next())
        elif "unordered" in step:
            await self._unordered(peer, list(step["unordered"]))
        elif "silent" in step:
            wire.text('{"type":"ping"}')
            self.match({"type": "pong"}, await peer.next())
        elif "close" in step:
            self.match(step["close"], await peer.next())
        else:
            assert step["leave"] is True, step
            wire.leave()
            async with asyncio.timeout(DEADLINE):
                assert await wire.gone == 1000

    async def _unordered(self, peer: Peer, patterns: list[Json]) -> None:
        while patterns:
            message = await peer.next()
            for pattern in patterns:
                known = dict(self._known)
                try:
                    self.match(pattern, message)
                except Difference:
                    self._known = known
                else:
                    patterns.remove(pattern)
                    break
            else:
                raise Difference(f"{message} is none of {patterns}")

    async def _backend(self, call: dict[str, Json], pattern: Json) -> None:
        answer = await ask(self._server, call["method"], call["path"], call.get("body"))
        assert answer.status == 200, answer
        if pattern is not None:
            self.match(pattern, answer.body)

    def fill(self, value: Json) -> Json:
        """Puts tokens and remembered values in their places."""
        if isinstance(value, dict):
            return {name: self.fill(held) for name, held in value.items() if name != "answer"}
        if isinstance(value, list):
            return [self.fill(held) for held in value]
        if not isinstance(value, str) or not PLACEHOLDER.fullmatch(value):
            return value
        kind, _, name = value.partition(":")
        if kind != "$token":
            return self._known[value[1:]]
        claims = {"user": name, **self._tokens.get(name, {})}
        return token(claims.pop("user"), **claims)

    def match(self, pattern: Json, value: Json, path: str = "$") -> None:
        """Compares; raises Difference with the path of the first difference."""
        if isinstance(pattern, str) and pattern.startswith("$="):
            self._known[pattern[2:]] = value
        elif isinstance(pattern, str) and pattern in KINDS:
            self._demand(KINDS[pattern](value), path, pattern, value)
        elif isinstance(pattern, dict):
            self._demand(isinstance(value, dict), path, pattern, value)
            open_ended = pattern.get("...", False)
            named = pattern.keys() - {"..."}
            self._demand(named <= value.keys() and (open_ended or named == value.keys()), path, pattern, value)
            for name in named:
                self.match(pattern[name], value[name], f"{path}.{name}")
        elif isinstance(pattern, list):
            self._demand(isinstance(value, list) and len(value) == len(pattern), path, pattern, value)
            for index, (part, held) in enumerate(zip(pattern, value, strict=True)):
                self.match(part, held, f"{path}[{index}]")
        else:
            wanted = self.fill(pattern)
            self._demand(type(value) is type(wanted) and value == wanted, path, wanted, value)

    def _demand(self, holds: bool, path: str, pattern: Json, value: Json) -> None:
        if not holds:
            raise Difference(f"at {path}: expected {pattern}, got {value}")


KINDS: dict[str, Callable[[Json], bool]] = {
    "$any": lambda value: True,
    "$string": lambda value: isinstance(value, str),
    "$int": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "$number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "$bool": lambda value: isinstance(value, bool),
}


class Peer:
    """One client: the messages that have come to it, and its close code as the last of them."""

    def __init__(self) -> None:
        self.wire: Wire
        self._came: asyncio.Queue[Json] = asyncio.Queue()

    def text(self, frame: bytes) -> None:
        """Takes a frame."""
        content = json.loads(frame)
        for message in content if isinstance(content, list) else [content]:
            self._came.put_nowait(message)

    def gone(self, code: int) -> None:
        """Takes the end."""
        self._came.put_nowait(code)

    async def next(self) -> Json:
        """What comes next, before the deadline."""
        async with asyncio.timeout(DEADLINE):
            return await self._came.get()


def read(path: Path) -> dict[str, Json]:
    """A conversation."""
    conversation: dict[str, Json] = json.loads(path.read_text())
    return conversation


@pytest.mark.parametrize("path", CONVERSATIONS, ids=lambda path: path.stem)
async def test_conversation_goes_as_written(path: Path) -> None:
    conversation = read(path)
    assert conversation["name"] == path.stem.partition("-")[2]
    groups = conversation.get("settings", {})
    broker = _broker(groups.pop("broker")) if "broker" in groups else None
    async with serving(broker=broker, **groups) as server, AsyncExitStack() as stack:
        player = Player(server, conversation.get("tokens", {}), stack)
        for number, step in enumerate(conversation["steps"]):
            try:
                await player.play(step)
            except (AssertionError, TimeoutError, KeyError) as fault:
                pytest.fail(f"step {number}, {json.dumps(step)[:300]}: {type(fault).__name__} {fault}")


def _broker(group: dict[str, Json]) -> MemoryBroker:
    bounds = {"idempotency_window": 300, "idempotency_entries": 1000, "channels": 1000, "max_bytes": 1_000_000, **group}
    bounds["channels"] += INTERNAL_CHANNELS  # as app.py does
    return MemoryBroker(SystemClock(), **bounds)


# --- what they cover ----------------------------------------------------------------------------------------------------


def steps() -> Iterator[dict[str, Json]]:
    """Every step of every conversation."""
    for path in CONVERSATIONS:
        yield from read(path)["steps"]


def said(*kinds: str) -> list[dict[str, Json]]:
    """Every message in steps of these kinds, also those within a batch."""
    held = [step[kind] for step in steps() for kind in kinds if kind in step]
    return [message for value in held for message in (value if isinstance(value, list) else [value])]


def test_every_client_message_is_sent() -> None:
    sent = {message["type"] for message in said("send")}
    assert not {command.__struct_config__.tag for command in messages.Command.__args__} - {None} - sent
    assert any(message.get("removed") for message in said("send")), "a removal"
    assert any("." in kind for kind in sent), "a declared event"


def test_every_server_message_is_expected_somewhere() -> None:
    expected = {message["type"] for message in said("expect", "unordered")} | {
        "pong",
        "closed",
        "receipt",  # like "closed" only in streams
        "reply",  # needs a contract with a call: tests/integration/test_calls.py
    }
    tags = {kind.__struct_config__.tag for kind in messages.ServerMessage.__subclasses__()} - {None}
    assert not tags - expected
    assert {"presence.joined", "presence.left", "presence.count"} <= expected
    events = [message for message in said("expect", "unordered") if "." in message["type"]]
    assert any("offset" in event for event in events), "a durable event"
    assert any("rev" in event for event in events), "a latest event"
    assert any("removed" in event for event in events), "a removed value"
    assert any("offset" not in event and "rev" not in event for event in events), "an ephemeral event"


def test_every_error_code_of_a_connection_occurs() -> None:
    provoked = {message["code"] for message in said("expect", "unordered") if message["type"] == "error"}
    assert {code.code for code in ErrorCode} - provoked == {code.code for code in NOT_OVER_A_CONNECTION}


def test_every_close_code_occurs() -> None:
    provoked = {step["close"] for step in steps() if "close" in step} | {1000}
    assert any("leave" in step for step in steps())
    assert {code.code for code in CloseCode} - provoked == {code.code for code in NOT_PROVOKED}


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": 1, "...": True}, {"b": 2}),
        ([1], [1, 2]),
        ("$int", "1"),
        ("$int", True),
        ("$string", 1),
        (1, True),
        (1, 1.0),
        ({"a": 1}, [1]),
        ([1], {"a": 1}),
    ],
)
async def test_difference_from_the_conversation_fails(pattern: Json, value: Json) -> None:
    async with serving() as server, AsyncExitStack() as stack:
        with pytest.raises(Difference):
            Player(server, {}, stack).match(pattern, value)
