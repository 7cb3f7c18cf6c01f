"""`tidewire webhooks`: what endpoints of webhooks wait for and did not accept, over the backend API."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from tidewire import Tidewire
from tidewire.results import WebhookDeadLetter, WebhookList

from service.cli import api, output
from service.cli.options import Commands, past

PAGE = 200
"""Dead letters in one request."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "webhooks",
        help="list, replay and drop what webhooks could not deliver",
        description=f"Looks after the endpoints of webhooks, over the backend API. {api.KEY_SOURCES}",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_list(actions)
    _add_dead_letters(actions)
    _add_replay(actions)
    _add_drop(actions)


def _add_list(actions: Commands) -> None:
    parser = actions.add_parser(
        "list",
        help="show what each queue waits for",
        description="Shows the queues of each endpoint: how many records wait, for how long, which node delivers them, and why "
        "the last delivery failed.",
    )
    _finish(parser, _list)


def _add_dead_letters(actions: Commands) -> None:
    parser = actions.add_parser(
        "dead-letters",
        help="show the entries that an endpoint did not accept",
        description="Shows the entries that an endpoint did not accept, oldest first: when it gave up, the entry's id, type, "
        "channel or user, and the reason.",
    )
    _add_endpoint(parser)
    parser.add_argument("--json", action="store_true", help="print whole dead letters, one a line")
    _finish(parser, _dead_letters)


def _add_replay(actions: Commands) -> None:
    parser = actions.add_parser(
        "replay",
        help="tell an endpoint entries again",
        description="Tells an endpoint entries again, with the same ids. Dead letters that are told again are none any more.",
    )
    _add_endpoint(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    _add_ids(which, "entry to tell again, a dead letter or one that is kept; may be repeated")
    which.add_argument(
        "--since", type=past, metavar="TIME", help="all entries of the last TIME that are kept, such as 10m"
    )
    which.add_argument("--dead-letters", action="store_true", help="all dead letters")
    _finish(parser, _replay)


def _add_drop(actions: Commands) -> None:
    parser = actions.add_parser(
        "drop", help="drop dead letters", description="Drops dead letters of an endpoint, for ever."
    )
    _add_endpoint(parser)
    which = parser.add_mutually_exclusive_group(required=True)
    _add_ids(which, "dead letter to drop; may be repeated")
    which.add_argument("--dead-letters", action="store_true", help="all dead letters")
    _finish(parser, _drop)


def _add_endpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("endpoint", metavar="ENDPOINT", help="name of the endpoint, as in webhooks.endpoints")


def _add_ids(group: Any, text: str) -> None:  # argparse's class of a group is private
    group.add_argument("--id", action="append", dest="ids", metavar="ID", help=text)


def _finish(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def _list(args: argparse.Namespace) -> int:
    return api.run_call(args, lambda client: client.webhooks(), _show_list)


def _dead_letters(args: argparse.Namespace) -> int:
    show = _show_json if args.json else _show_lines
    return api.run_call(args, lambda client: show(_all_dead_letters(client, args.endpoint)), lambda _: None)


def _replay(args: argparse.Namespace) -> int:
    def call(client: Tidewire) -> int:
        since = None if args.since is None else max(0, client.webhooks().at - int(args.since * 1000))
        return client.replay_webhooks(args.endpoint, ids=args.ids, since=since, dead_letters=args.dead_letters)

    return api.run_call(args, call, lambda count: output.result(f"replayed {count}"))


def _drop(args: argparse.Namespace) -> int:
    def call(client: Tidewire) -> int:
        return client.drop_webhooks(args.endpoint, ids=args.ids, dead_letters=args.dead_letters)

    return api.run_call(args, call, lambda count: output.result(f"dropped {count}"))


def _all_dead_letters(client: Tidewire, endpoint: str) -> Iterator[WebhookDeadLetter]:
    after: int | None = None
    while True:
        page = client.webhook_dead_letters(endpoint, after=after, limit=PAGE)
        yield from page.dead_letters
        if (after := page.next) is None:
            return


def _show_list(found: WebhookList) -> None:
    rows = [("ENDPOINT", "QUEUE", "WAITING", "OLDEST", "NODE", "LAST FAILURE")]
    for endpoint in found.endpoints:
        for one in endpoint.queues:
            oldest = "-" if one.oldest_at is None else f"{max(0, found.at - one.oldest_at) // 1000}s"
            failure = (one.failure or "-") if endpoint.sends else "not sent: no url"
            rows.append((endpoint.endpoint, str(one.queue), str(one.waiting), oldest, one.owner or "-", failure))
    for line in _columns(rows):
        output.result(line)
    if not found.endpoints:
        output.note(f"tidewire: webhooks.endpoints has none of the tenant {found.tenant}")


def _columns(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()


def _show_lines(letters: Iterator[WebhookDeadLetter]) -> None:
    for letter in letters:
        entry, at = letter.entry, time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.at / 1000))
        output.result(
            f"{at}  {entry['id']}  {entry['type']}  {entry.get('channel') or entry.get('user')}  {letter.reason}"
        )


def _show_json(letters: Iterator[WebhookDeadLetter]) -> None:
    for letter in letters:
        output.result(json.dumps(msgspec.to_builtins(letter), ensure_ascii=False, separators=(",", ":")))
