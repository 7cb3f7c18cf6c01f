"""`tidewire tail`: prints a channel's events as they come, over cuts too."""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import aiohttp

from service.cli import output
from service.cli.options import Commands, add_config, add_url, client_settings, service_url
from service.cli.publish import refusal, why
from service.cli.token import add_claims, sign, with_secret
from service.errors import ErrorCode
from service.protocol.close import Action, CloseCode
from service.protocol.messages import SUBPROTOCOL

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0
HEARTBEAT = 25.0

Message = dict[str, Any]
Show = Callable[[Message], None]
Token = Callable[[], str | None]
_CLOSES = {close.code: close for close in CloseCode}
_RETRYABLE = {error.code for error in ErrorCode if error.retryable}


class Stop(Exception):  # noqa: N818  # not an error: the service has told why it is of no use to go on
    """Coming back would end the same way."""


@dataclass
class Position:
    """Where the channel has been read to."""

    epoch: str
    offset: int
    id: str | None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Reads `EPOCH:OFFSET:ID`, as `str` writes it."""
        parts = text.split(":", 2)
        if len(parts) != 3 or not parts[0] or not parts[1].isdecimal():
            raise argparse.ArgumentTypeError("a position is EPOCH:OFFSET:ID, as tail prints it when it ends")
        return cls(parts[0], int(parts[1]), parts[2] or None)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.id or ''}"

    def as_since(self) -> Message:
        """As `subscribe` takes it."""
        since: Message = {"epoch": self.epoch, "offset": self.offset}
        return since if self.id is None else since | {"id": self.id}


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "tail",
        help="print a channel's events as they come",
        description="Prints a channel's events until Ctrl-C, and resumes after a cut. It connects with --token, or with one it "
        "signs for --user, or as nobody.",
    )
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument(
        "--since", type=Position.parse, metavar="POSITION", help="where to go on from (EPOCH:OFFSET:ID)"
    )
    parser.add_argument("--json", action="store_true", help="print whole events, one a line")
    parser.add_argument("--token", help="visible to other users of this machine; prefer --user")
    add_claims(parser, required=False)
    add_url(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it."""
    token, renews = _credentials(given)
    show = _as_json if given.json else _as_line
    tail = Tail(service_url(given), given.channel, token, show, renews=renews, since=given.since)
    try:
        asyncio.run(_follow(tail))
    except KeyboardInterrupt:
        if tail.position is not None:
            _note(f"resume with --since '{tail.position}'")
        return 0
    except Stop as stop:
        _note(str(stop))
    return 1


async def _follow(tail: Tail) -> NoReturn:
    with _until_closed():
        await tail.run()


@contextmanager
def _until_closed() -> Iterator[None]:
    """Cancels the current task, and raises OutputClosed, as soon as nobody reads standard output, if that is a pipe: who waits
    for the next event before it notices may wait for long."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    descriptor = output.pipe()
    if descriptor is None or task is None:
        yield
        return
    is_closed = False

    def closed() -> None:
        nonlocal is_closed
        is_closed = True
        loop.remove_reader(descriptor)
        task.cancel()

    loop.add_reader(descriptor, closed)  # of an end to write to only its error is told
    try:
        yield
    except asyncio.CancelledError:
        if is_closed:
            raise output.OutputClosed from None
        raise
    finally:
        loop.remove_reader(descriptor)


def _credentials(given: argparse.Namespace) -> tuple[Token, bool]:
    """What gives a token for each connection, and whether it is a fresh one each time."""
    if given.token or not given.user:
        return lambda: given.token, False
    settings = with_secret(client_settings(given))
    return lambda: sign(settings, given.user, given.grant, given.ttl, given.tenant, given.info), True


class Tail:
    """Follows one channel. `position` moves only after `show` has run."""

    def __init__(
        self,
        url: str,
        channel: str,
        token: Token,
        show: Show,
        *,
        renews: bool = False,
        since: Position | None = None,
    ) -> None:
        self._url = f"{url.rstrip('/')}/ws"
        self._channel = channel
        self._token = token
        self._renews = renews
        self._show = show
        self._after = 0.0
        self._asked = 0
        self._rejoining = False
        self.position = since

    async def run(self) -> NoReturn:
        """Follows until cancelled.

        Raises Stop when the service says that coming back is of no use.
        """
        pause = FIRST_PAUSE
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with aclosing(self._connect(session)) as messages:
                        async for message in messages:
                            pause = FIRST_PAUSE
                            self._take(message)
                except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                    _note(f"{self._url}: {why(error)}")
                await asyncio.sleep(self._after + random.uniform(0, pause))  # noqa: S311  # spreads clients, guards nothing
                self._after, pause = 0.0, min(pause * 2, LONGEST_PAUSE)

    async def _connect(self, session: aiohttp.ClientSession) -> AsyncGenerator[Message, None]:
        """One connection: says hello, subscribes, gives what concerns the channel."""
        try:
            socket = await session.ws_connect(self._url, protocols=(SUBPROTOCOL,), heartbeat=HEARTBEAT, max_msg_size=0)
        except aiohttp.WSServerHandshakeError as error:
            await self._ask_why(session, error.status)
            return
        async with socket:
            token = self._token()
            await socket.send_json({"type": "hello"} if token is None else {"type": "hello", "token": token})
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.TEXT:
                    content = json.loads(frame.data)
                    for message in content if isinstance(content, list) else [content]:
                        await self._answer(socket, message)
                        yield message
        self._closed(socket.close_code)

    async def _ask_why(self, session: aiohttp.ClientSession, status: int) -> None:
        """A refused upgrade tells its reason to a plain GET of the same address."""
        async with session.get(self._url, allow_redirects=False) as response:
            reason = refusal(response.status, await response.text())
        if status < 500 and status not in (408, 429):
            raise Stop(reason)
        _note(reason)

    async def _answer(self, socket: aiohttp.ClientWebSocketResponse, message: Message) -> None:
        match message["type"]:
            case "welcome":
                await socket.send_json([{"type": "ready"}, self._subscribe()])
            case "unsubscribed" if message["code"] == "requested":
                await socket.send_json(self._subscribe())
            case "expiring" if self._renews:
                await socket.send_json({"type": "refresh", "id": self._id(), "token": self._token()})
            case "reconnect":
                self._after = float(message["after"])
            case "error" if message["code"] in _RETRYABLE:
                # Whatever was refused, a new connection asks for it again, in the right order.
                self._after = float(message.get("details", {}).get("retry_after", 1.0))
                raise ConnectionError(f"{message['code']}: {message['message']}")
            case kind if "." in kind and self._is_gap(message) and not self._rejoining:
                self._rejoining = True
                await socket.send_json({"type": "unsubscribe", "id": self._id(), "channel": self._channel})

    def _subscribe(self) -> Message:
        request = {"type": "subscribe", "id": self._id(), "channel": self._channel}
        return request if self.position is None else request | {"since": self.position.as_since()}

    def _id(self) -> str:
        self._asked += 1
        return f"tail-{self._asked}"

    def _take(self, message: Message) -> None:
        match message["type"]:
            case "subscribed":
                self._joined(message)
            case "unsubscribed" if message["code"] != "requested":
                raise Stop(f"the subscription was ended: {message['code']}")
            case "error":
                self._refused(message)
            case kind if "." in kind:
                self._event(message)

    def _joined(self, message: Message) -> None:
        if message.get("recovered") is False:
            _note("events are missing here: the stream has started anew, or no longer reaches back to the position")
        for event in [*message["events"], *message["state"]]:
            self._show(event)
        self.position = Position(message["epoch"], message["offset"], message.get("last"))
        self._rejoining = False

    def _event(self, event: Message) -> None:
        offset = event.get("offset")
        if offset is None or self.position is None:
            self._show(event)
        elif offset == self.position.offset + 1:
            self._show(event)
            self.position = Position(self.position.epoch, offset, event["id"])

    def _is_gap(self, event: Message) -> bool:
        return self.position is not None and event.get("offset", 0) > self.position.offset + 1

    def _refused(self, message: Message) -> None:
        reason = f"{message['code']}: {message['message']}"
        expired = message["code"] == ErrorCode.TOKEN_EXPIRED.code and self._renews
        if not expired:
            raise Stop(reason)
        _note(reason)

    def _closed(self, code: int | None) -> None:
        close = _CLOSES.get(code or CloseCode.ABNORMAL.code, CloseCode.ABNORMAL)
        told = f"closed with {code or close.code}: {close.meaning}"
        if close.action is Action.STOP or (close.action is Action.REFRESH and not self._renews):
            raise Stop(told)
        self._rejoining = False
        _note(f"{told} Coming back …")


def _as_json(event: Message) -> None:
    output.result(json.dumps(event, ensure_ascii=False, separators=(",", ":")))


def _as_line(event: Message) -> None:
    at = time.strftime("%H:%M:%S", time.localtime(event["at"] / 1000))
    place = f"#{event['offset']}" if "offset" in event else f"~{event['rev']}" if "rev" in event else "-"
    data = json.dumps(event["data"], ensure_ascii=False, separators=(",", ":"))
    output.result(f"{at} {place} {event['type']} {event['from'] or '(backend)'} {data}")


def _note(text: str) -> None:
    output.note(f"tidewire: {text}")
