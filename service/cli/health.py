"""`tidewire health`: asks the service on this machine whether it is healthy. For images, which have no curl."""

from __future__ import annotations

import argparse
import http.client

from service.cli import output
from service.cli.options import Commands, add_config, client_settings, local_address

TIMEOUT = 4.0
"""Seconds for each response. The health check of the image allows 5 (Dockerfile); a test compares them."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "health",
        help="ask the service on this machine whether it is healthy",
        description="Requests /healthz of each worker of the service that these settings start on this machine. Exits with 0 "
        "if all are healthy, else with 1 and the reason.",
    )
    parser.add_argument("--ready", action="store_true", help="request /readyz: whether it takes new connections")
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Asks every worker; returns 0 if all are healthy."""
    settings = client_settings(args)
    path = "/readyz" if args.ready else "/healthz"
    host = local_address(settings.ops_host)
    faults = [_fault(host, settings.ops_port + number, path) for number in range(settings.workers)]
    for fault in filter(None, faults):
        output.note(f"tidewire: {fault}")
    return 1 if any(faults) else 0


def _fault(host: str, port: int, path: str) -> str | None:
    """Returns what is wrong, in a sentence; None if the worker is healthy."""
    connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        body = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return f"no answer for {path} at {host} port {port}: {error}"
    finally:
        connection.close()
    return None if response.status == 200 else f"{path} at {host} port {port} answered {response.status}: {body}"
