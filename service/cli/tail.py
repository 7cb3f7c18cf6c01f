"""`tidewire tail`: prints the events of a channel, and resumes after a lost connection."""

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
from service.cli.api import describe_refusal, failure_reason
from service.cli.options import Commands, add_config, add_url, client_settings, service_url
from service.cli.token import add_claims, sign, with_secret
from service.core.removal import REMOVED_TYPE
from service.errors import ErrorCode
from service.protocol.close import Action, CloseCode
from service.protocol.messages import SUBPROTOCOL
from service.telemetry.process import version

MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY = 0.5, 15.0
"""Seconds; doubled after each failure, and chosen at random up to that."""
HEARTBEAT_INTERVAL = 25.0
"""Seconds between two WebSocket pings."""

Message = dict[str, Any]
Show = Callable[[Message], None]
Token = Callable[[], str | None]
_CLOSES = {close.code: close for close in CloseCode}
_RETRYABLE = {error.code for error in ErrorCode if error.retryable}


class Stop(Exception):  # noqa: N818  # not an error: the service has said why
    """Reconnecting would fail in the same way."""


@dataclass
class Position:
    """The position that the channel has been read to."""

    epoch: str
    offset: int
    id: str | None

    @classmethod
    def parse(cls, text: str) -> Position:
        """Parses `EPOCH:OFFSET:ID`, the form of `str`."""
        parts = text.split(":", 2)
        if len(parts) != 3 or not parts[0] or not parts[1].isdecimal():
            raise argparse.ArgumentTypeError("a position is EPOCH:OFFSET:ID, as tail prints it when it ends")
        return cls(parts[0], int(parts[1]), parts[2] or None)

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.id or ''}"

    def as_since(self) -> Message:
        """Returns the position as the field `since` of `subscribe`."""
        since: Message = {"epoch": self.epoch, "offset": self.offset}
        return since if self.id is None else since | {"id": self.id}


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "tail",
        help="print the events of a channel",
        description="Prints the events of a channel until Ctrl-C, and resumes after a lost connection. It connects with --token, "
        "else with a token that it signs for --user, else anonymously.",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel to follow, such as room:1")
    parser.add_argument(
        "--since", type=Position.parse, metavar="POSITION", help="position to resume from (EPOCH:OFFSET:ID)"
    )
    parser.add_argument("--json", action="store_true", help="print whole events, one a line")
    parser.add_argument("--token", help="token; visible to other users of this machine, so prefer --user")
    add_claims(parser, required=False)
    add_url(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints events until Ctrl-C."""
    token, renews = _credentials(args)
    show = _as_json if args.json else print_line
    tail = Tail(service_url(args), args.channel, token, show, renews=renews, since=args.since)
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
    with _until_output_closed():
        await tail.run()


@contextmanager
def _until_output_closed() -> Iterator[None]:
    """Cancels the current task and raises OutputClosed when the reader closes standard output, if that is a pipe.

    Otherwise the command would notice only at the next event.
    """
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

    loop.add_reader(descriptor, closed)  # the write end of a pipe is readable only when the reader has gone
    try:
        yield
    except asyncio.CancelledError:
        if is_closed:
            raise output.OutputClosed from None
        raise
    finally:
        loop.remove_reader(descriptor)


def _credentials(args: argparse.Namespace) -> tuple[Token, bool]:
    """Returns a function that gives the token for each connection, and whether it signs a new one each time."""
    if args.token or not args.user:
        return lambda: args.token, False
    settings = with_secret(client_settings(args))
    return lambda: sign(settings, args.user, args.grant, args.ttl, args.tenant, args.info), True


class Tail:
    """Follows one channel. `position` advances only after `show` has returned."""

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
        self._url = f"{url.rstrip('/')}/ws?client=tidewire-tail/{version()}&features=removal"
        self._channel = channel
        self._token = token
        self._renews = renews
        self._show = show
        self._retry_after = 0.0
        self._requests = 0
        self._is_resubscribing = False
        self.position = since

    async def run(self) -> NoReturn:
        """Follows the channel until cancelled. Raises Stop when reconnecting would not help."""
        delay = MIN_RECONNECT_DELAY
        async with aiohttp.ClientSession() as session:
            while True:
                try:
                    async with aclosing(self._connect(session)) as messages:
                        async for message in messages:
                            delay = MIN_RECONNECT_DELAY
                            self._process(message)
                except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
                    _note(f"{self._url}: {failure_reason(error)}")
                await asyncio.sleep(self._retry_after + random.uniform(0, delay))  # noqa: S311  # spreads clients, guards nothing
                self._retry_after, delay = 0.0, min(delay * 2, MAX_RECONNECT_DELAY)

    async def _connect(self, session: aiohttp.ClientSession) -> AsyncGenerator[Message, None]:
        """Opens one connection, subscribes, and yields each message after answering it."""
        try:
            socket = await session.ws_connect(
                self._url, protocols=(SUBPROTOCOL,), heartbeat=HEARTBEAT_INTERVAL, max_msg_size=0
            )
        except aiohttp.WSServerHandshakeError as error:
            await self._explain_refusal(session, error.status)
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
        self._on_close(socket.close_code)

    async def _explain_refusal(self, session: aiohttp.ClientSession, status: int) -> None:
        """Gets the reason of a refused upgrade by a plain GET of the same address."""
        async with session.get(self._url, allow_redirects=False) as response:
            reason = describe_refusal(response.status, await response.text())
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
                await socket.send_json({"type": "refresh", "id": self._request_id(), "token": self._token()})
            case "reconnect":
                self._retry_after = float(message["after"])
            case "error" if message["code"] in _RETRYABLE:
                # A new connection repeats whatever was refused, in the right order.
                self._retry_after = float(message.get("details", {}).get("retry_after", 1.0))
                raise ConnectionError(f"{message['code']}: {message['message']}")
            case kind if "." in kind and self._is_gap(message) and not self._is_resubscribing:
                self._is_resubscribing = True
                await socket.send_json({"type": "unsubscribe", "id": self._request_id(), "channel": self._channel})

    def _subscribe(self) -> Message:
        request = {"type": "subscribe", "id": self._request_id(), "channel": self._channel}
        return request if self.position is None else request | {"since": self.position.as_since()}

    def _request_id(self) -> str:
        self._requests += 1
        return f"tail-{self._requests}"

    def _process(self, message: Message) -> None:
        match message["type"]:
            case "subscribed":
                self._on_subscribed(message)
            case "unsubscribed" if message["code"] != "requested":
                raise Stop(f"the subscription was ended: {message['code']}")
            case "error":
                self._on_error(message)
            case kind if "." in kind:
                self._on_event(message)

    def _on_subscribed(self, message: Message) -> None:
        if message.get("recovered") is False:
            _note("events are missing here: the stream has a new epoch, or no longer holds the position")
        for event in [*message["events"], *message["state"]]:
            self._show(event)
        self.position = Position(message["epoch"], message["offset"], message.get("last"))
        self._is_resubscribing = False

    def _on_event(self, event: Message) -> None:
        offset = event.get("offset")
        if offset is None or self.position is None:
            self._show(event)
        elif offset == self.position.offset + 1:
            self._show(event)
            self.position = Position(self.position.epoch, offset, event["id"])

    def _is_gap(self, event: Message) -> bool:
        return self.position is not None and event.get("offset", 0) > self.position.offset + 1

    def _on_error(self, message: Message) -> None:
        reason = f"{message['code']}: {message['message']}"
        expired = message["code"] == ErrorCode.TOKEN_EXPIRED.code and self._renews
        if not expired:
            raise Stop(reason)
        _note(reason)

    def _on_close(self, code: int | None) -> None:
        close = _CLOSES.get(code or CloseCode.ABNORMAL.code, CloseCode.ABNORMAL)
        text = f"closed with {code or close.code}: {close.meaning}"
        if close.action is Action.STOP or (close.action is Action.REFRESH and not self._renews):
            raise Stop(text)
        self._is_resubscribing = False
        _note(f"{text} Reconnecting …")


def _as_json(event: Message) -> None:
    output.result(json.dumps(event, ensure_ascii=False, separators=(",", ":")))


def print_line(event: Message) -> None:
    """Prints an event for a person to read: time, place in the stream, type, sender and data."""
    at = time.strftime("%H:%M:%S", time.localtime(event["at"] / 1000))
    place = f"#{event['offset']}" if "offset" in event else f"~{event['rev']}" if "rev" in event else "-"
    output.result(f"{at} {place} {event['type']} {event['from'] or '(backend)'} {_content(event)}")


def _content(event: Message) -> str:
    """Returns the data as JSON, or what was removed: a value by its key, durable events by offset and id."""
    if event.get("removed") is True:
        return f"removed {event['key']}"
    data = event["data"]
    if event["type"] == REMOVED_TYPE:
        removed = [f"#{one['offset']} {one['id']}" for one in (data, *data.get("more", ()))]
        return f"removed {', '.join(removed)}"
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _note(text: str) -> None:
    output.note(f"tidewire: {text}")
