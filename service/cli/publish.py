"""`tidewire publish`: publishes one event over the backend API."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp

from service.cli import output
from service.cli.development import stored_api_key
from service.cli.options import Commands, add_config, add_url, client_settings, service_url
from service.protocol.unique_keys import reject_duplicate_keys

TIMEOUT = 15.0
"""Seconds for the response."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "publish",
        help="publish one event",
        description="Publishes one event over the backend API. The key is --api-key, else api.key of the settings, else the "
        "development key of this folder.",
    )
    parser.add_argument("channel", metavar="CHANNEL", help="channel of the event, such as room:1")
    parser.add_argument("type", metavar="TYPE", help="type of the event, such as chat.message")
    parser.add_argument("data", type=_json, metavar="DATA", help="data of the event, as JSON")
    parser.add_argument("--id", help="id of the event; a repeated id is accepted once")
    parser.add_argument("--key", help="key of a latest event; must equal what the contract finds in DATA")
    parser.add_argument(
        "--api-key", metavar="KEY", help="API key; visible to other users of this machine, so prefer the settings"
    )
    add_url(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Publishes the event."""
    key = args.api_key or _configured_key(args)
    if key is None:
        output.note("tidewire: no API key: set TIDEWIRE_API__KEY, or start `tidewire serve --demo` in this folder")
        return 1
    event = {"type": args.type, "data": args.data, "id": args.id, "key": args.key}
    event = {name: value for name, value in event.items() if value is not None or name == "data"}
    return asyncio.run(
        _publish(f"{service_url(args)}/api/v1/channels/{quote(args.channel, safe='')}/events", key, event)
    )


def _configured_key(args: argparse.Namespace) -> str | None:
    key = client_settings(args).api.key
    return stored_api_key() if key is None else key.get_secret_value()


async def _publish(url: str, key: str, event: dict[str, Any]) -> int:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.post(
                url, json=event, headers={"Authorization": f"Bearer {key}"}, allow_redirects=False
            ) as response,
        ):
            status, text = response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        output.note(f"tidewire: {url}: {failure_reason(error)}")
        return 1
    if status == 200:
        output.result(text)
        return 0
    output.note(f"tidewire: {describe_refusal(status, text)}")
    return 1


def failure_reason(error: Exception) -> str:
    """Returns why a request failed, in a few words."""
    return getattr(error, "strerror", None) or str(error) or "no answer in time"


def describe_refusal(status: int, text: str) -> str:
    """Returns a refusal as text: of problem+json the code and the detail, with each fault on its own line."""
    try:
        problem = json.loads(text)
        code, detail = problem["code"], problem["detail"]
        details = problem.get("details", {})
        faults = [f"\n  {fault['path']}: {fault['message']}" for fault in details.get("errors", [])]
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"refused with HTTP status {status}: {text[:200]}"
    place = f" (at {details['path']})" if "path" in details and not faults else ""
    return f"{code}: {detail}{place}{''.join(faults)}"


def _json(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=reject_duplicate_keys)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is not JSON: {error}") from error
