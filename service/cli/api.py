"""Calls of the backend API, for commands that need an API key."""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp

from service.cli import output
from service.cli.development import stored_api_key
from service.cli.options import add_config, add_url, client_settings, service_url

TIMEOUT = 15.0
"""Seconds for the response."""
KEY_SOURCES = "The key is --api-key, else api.key of the settings, else the development key of this folder."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --api-key, --url and --config."""
    parser.add_argument(
        "--api-key", metavar="KEY", help="API key; visible to other users of this machine, so prefer the settings"
    )
    add_url(parser)
    add_config(parser)


def find_key(args: argparse.Namespace) -> str | None:
    """Returns the API key; without one, prints how to set it and returns None. Raises SettingsFaults."""
    if args.api_key:
        return str(args.api_key)
    configured = client_settings(args).api.key
    key = stored_api_key() if configured is None else configured.get_secret_value()
    if key is None:
        output.note("tidewire: no API key: set TIDEWIRE_API__KEY, or start `tidewire serve --demo` in this folder")
    return key


async def call(method: str, url: str, key: str, body: Any = None) -> str | None:
    """Sends a request, and returns the text of a 200. Otherwise prints the reason and returns None."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.request(
                method, url, json=body, headers={"Authorization": f"Bearer {key}"}, allow_redirects=False
            ) as response,
        ):
            status, text = response.status, await response.text()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        output.note(f"tidewire: {url}: {failure_reason(error)}")
        return None
    if status == 200:
        return text
    output.note(f"tidewire: {describe_refusal(status, text)}")
    return None


def run_call(args: argparse.Namespace, method: str, path: str, body: Any = None) -> int:
    """Sends one request to a path below `/api/v1/`, and prints the response. Returns the exit status: 1 if it is refused."""
    key = find_key(args)
    text = None if key is None else asyncio.run(call(method, f"{service_url(args)}/api/v1/{path}", key, body))
    if text is None:
        return 1
    output.result(text)
    return 0


def path_segment(text: str) -> str:
    """Encodes a name as one segment of a path."""
    return quote(text, safe="")


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
