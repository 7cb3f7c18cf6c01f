"""`tidewire health`: does the service on this machine live? For a container's health check, where there is no curl."""

from __future__ import annotations

import argparse
import http.client

from service.cli import output
from service.cli.options import Commands, add_config, client_settings, reached

TIMEOUT = 4.0
"""Seconds for each answer; the image's health check allows 5."""


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "health",
        help="ask the service on this machine whether it lives",
        description="Asks /healthz of the service that these settings start on this machine, of each of its workers. Exits "
        "with 0 if all answer well, else with 1 and a sentence.",
    )
    parser.add_argument("--ready", action="store_true", help="ask /readyz: should it get new connections?")
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it."""
    settings = client_settings(given)
    path = "/readyz" if given.ready else "/healthz"
    host = reached(settings.ops_host)
    faults = [_fault(host, settings.ops_port + number, path) for number in range(settings.workers)]
    for fault in filter(None, faults):
        output.note(f"tidewire: {fault}")
    return 1 if any(faults) else 0


def _fault(host: str, port: int, path: str) -> str | None:
    """What is wrong there, in a sentence; None if nothing is."""
    line = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        line.request("GET", path)
        answer = line.getresponse()
        said = answer.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"nobody answers for {path} at {host} port {port}: {error}"
    finally:
        line.close()
    return None if answer.status == 200 else f"{path} at {host} port {port} answered {answer.status}: {said}"
