"""Calls of the backend API, for commands that need an API key. The Python client sends them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import msgspec
from tidewire import Tidewire, TidewireError

from service.cli import output
from service.cli.development import stored_api_key
from service.cli.options import add_config, add_url, client_settings, service_url

DEADLINE = 15.0
"""Seconds for a call, with its retries."""
RETRIES = 2
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


def run_call(
    args: argparse.Namespace, call: Callable[[Tidewire], Any], show: Callable[[Any], None] | None = None
) -> int:
    """Makes a call, and shows its result, as JSON unless `show` does. Returns the exit status: 1 if it is refused."""
    key = find_key(args)
    if key is None:
        return 1
    try:
        with Tidewire(service_url(args), api_key=key, deadline=DEADLINE, retries=RETRIES) as client:
            result = call(client)
    except TidewireError as error:
        output.note(f"tidewire: {describe_error(error)}")
        if "cursor" in error.details:
            output.note(f"tidewire: continue with --cursor '{error.details['cursor']}'")
        return 1
    (show or _as_json)(result)
    return 0


def _as_json(result: Any) -> None:
    fields = msgspec.to_builtins(result)
    output.result(json.dumps({name: value for name, value in fields.items() if value is not None}))


def describe_error(error: TidewireError) -> str:
    """Returns an error as text: the code and the message, with each fault of the data on its own line."""
    details = error.details
    errors = details.get("errors")
    faults = (
        [f"\n  {fault.get('path')}: {fault.get('message')}" for fault in errors] if isinstance(errors, list) else []
    )
    place = f" (at {details['path']})" if "path" in details and not faults else ""
    return f"{error}{place}{''.join(faults)}"
