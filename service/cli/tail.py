"""`tidewire tail`: prints the events of a channel, and resumes after a lost connection. The Python client follows it."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import msgspec
from tidewire import AsyncChannel, AsyncTidewire, Event, EventsMissedError, Position, TidewireError

from service.cli import output
from service.cli.api import describe_error
from service.cli.options import Commands, add_config, add_url, client_settings, service_url
from service.cli.token import add_claims, sign, with_secret
from service.core.removal import REMOVED_TYPE

Show: TypeAlias = Callable[[Event], None]
Token: TypeAlias = "str | Callable[[], str] | None"  # noqa: S105  # a type, no secret


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "tail",
        help="print the events of a channel",
        description="Prints the events of a channel until Ctrl-C, and resumes after a lost connection. It connects with --token, "
        "else with a token that it signs for --user, else anonymously.",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel to follow, such as room:1")
    parser.add_argument("--since", type=_position, metavar="POSITION", help="position to resume from (EPOCH:OFFSET:ID)")
    parser.add_argument("--json", action="store_true", help="print whole events, one a line")
    parser.add_argument("--token", help="token; visible to other users of this machine, so prefer --user")
    add_claims(parser, required=False)
    add_url(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints events until Ctrl-C."""
    show = _as_json if args.json else print_line
    tail = Tail(service_url(args), args.channel, _credentials(args), show, since=args.since)
    try:
        with _notes_of_the_client():
            asyncio.run(_follow(tail))
    except KeyboardInterrupt:
        if tail.position is not None:
            _note(f"resume with --since '{tail.position}'")
        return 0
    except TidewireError as error:
        _note(describe_error(error))
    return 1


async def _follow(tail: Tail) -> None:
    with output.until_closed():
        await tail.run()


@contextmanager
def _notes_of_the_client() -> Iterator[None]:
    """Prints what the client logs, such as a lost connection, as notes."""

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            _note(record.getMessage())

    log, handler = logging.getLogger("tidewire"), Notes(logging.WARNING)
    propagates, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagates


def _credentials(args: argparse.Namespace) -> Token:
    """Returns the token, or a function that signs a new one for each connection; None for an anonymous connection."""
    if args.token or not args.user:
        return str(args.token) if args.token else None
    settings = with_secret(client_settings(args))
    return lambda: sign(settings, args.user, args.grant, args.ttl, args.tenant, args.info)


class Tail:
    """Follows one channel. `position` advances only after `show` has returned."""

    def __init__(self, url: str, channel: str, token: Token, show: Show, *, since: Position | None = None) -> None:
        self._url = url
        self._name = channel
        self._token = token
        self._show = show
        self._since = since
        self._channel: AsyncChannel | None = None

    @property
    def position(self) -> Position | None:
        """The position that the channel has been read to."""
        return self._since if self._channel is None else self._channel.position

    async def run(self) -> None:
        """Follows the channel until cancelled. Raises TidewireError when reconnecting would not help."""
        async with AsyncTidewire(self._url, token=self._token) as client:
            self._channel = client.channel(self._name, since=self._since, presence=True, on_missed=_on_missed)
            async for event in self._channel:
                self._show(event)


def _on_missed(error: EventsMissedError) -> None:
    _note("events are missing here: the stream has a new epoch, or no longer holds the position")


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a position is EPOCH:OFFSET:ID, as tail prints it when it ends") from None


def _as_json(event: Event) -> None:
    fields = {"type": event.type, "channel": event.channel, "id": event.id, "at": event.at, "from": event.sender}
    if not event.removed:
        fields["data"] = event.data
    fields |= msgspec.to_builtins(event)
    output.result(json.dumps(fields, ensure_ascii=False, separators=(",", ":")))


def print_line(event: Event) -> None:
    """Prints an event for a person to read: time, place in the stream, type, sender and data."""
    at = time.strftime("%H:%M:%S", time.localtime(event.at / 1000))
    place = f"#{event.offset}" if event.offset is not None else f"~{event.rev}" if event.rev is not None else "-"
    output.result(f"{at} {place} {event.type} {event.sender or '(backend)'} {_content(event)}")


def _content(event: Event) -> str:
    """Returns the data as JSON, or what was removed: a value by its key, durable events by offset and id."""
    if event.removed:
        return f"{'ended' if event.expired else 'removed'} {event.key}"
    data: Any = event.data
    if event.type == REMOVED_TYPE:
        removed = [f"#{one['offset']} {one['id']}" for one in (data, *data.get("more", ()))]
        return f"removed {', '.join(removed)}"
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def _note(text: str) -> None:
    output.note(f"tidewire: {text}")
