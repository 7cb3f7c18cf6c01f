"""`tidewire publish`: publishes one event over the backend API."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp

from service.cli import output
from service.cli.development import kept_api_key
from service.cli.options import Commands, add_config, add_url, client_settings, service_url
from service.protocol.unique_keys import reject_duplicate_keys

TIMEOUT = 15.0


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "publish",
        help="publish one event",
        description="Publishes one event over the backend API. The key: --api-key, else api.key of the settings, else this "
        "folder's development key.",
    )
    parser.add_argument("channel", metavar="CHANNEL")
    parser.add_argument("type", metavar="TYPE")
    parser.add_argument("data", type=_json, metavar="DATA", help="JSON")
    parser.add_argument("--id", help="makes a repetition harmless")
    parser.add_argument("--key", help="of a latest event; it must be what the contract finds in DATA")
    parser.add_argument("--api-key", metavar="KEY", help="visible to other users of this machine; prefer the settings")
    add_url(parser)
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it."""
    key = given.api_key or _configured_key(given)
    if key is None:
        output.note("tidewire: no API key: set TIDEWIRE_API__KEY, or start `tidewire serve --demo` in this folder")
        return 1
    event = {"type": given.type, "data": given.data, "id": given.id, "key": given.key}
    event = {name: value for name, value in event.items() if value is not None or name == "data"}
    return asyncio.run(
        _publish(f"{service_url(given)}/api/v1/channels/{quote(given.channel, safe='')}/events", key, event)
    )


def _configured_key(given: argparse.Namespace) -> str | None:
    key = client_settings(given).api.key
    return kept_api_key() if key is None else key.get_secret_value()


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
        output.note(f"tidewire: {url}: {why(error)}")
        return 1
    if status == 200:
        output.result(text)
        return 0
    output.note(f"tidewire: {refusal(status, text)}")
    return 1


def why(error: Exception) -> str:
    """Why there is no answer, in few words."""
    return getattr(error, "strerror", None) or str(error) or "no answer in time"


def refusal(status: int, text: str) -> str:
    """A refusal as a person reads it: problem+json where it is that, with each of its faults on a line of its own."""
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
