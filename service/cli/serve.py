"""`tidewire serve`: runs the service; with --demo, the demo too; with --workers, in several processes."""

from __future__ import annotations

import argparse
import dataclasses
import os

from service.cli import check
from service.cli.options import Commands, add_config, config_path
from service.contract.document import Fault, Faults

WORKERS = "TIDEWIRE_WORKERS"


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "serve", help="run the service", description="Runs the service until SIGTERM or Ctrl-C."
    )
    parser.add_argument("--demo", action="store_true", help="run the demo, with credentials made for development")
    parser.add_argument(
        "--workers", metavar="N", help="processes that serve the port, on Linux and with a broker that they share"
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it. A start that `check` would refuse is refused."""
    environ = dict(os.environ)
    if given.demo:
        environ["TIDEWIRE_DEMO"] = "true"
    if given.workers is not None:
        environ[WORKERS] = given.workers
    try:
        settings, contract = check.everything(config_path(given), environ)
    except Faults as found:
        raise _as_given(given, found) from None
    # Imported only now: the other commands start faster without a web server.
    if settings.demo:
        if settings.workers > 1:
            raise Faults([Fault("workers", None, "the demo runs in one process; leave it at 1")])
        from service.cli import demo

        return demo.serve(settings, contract)
    if settings.workers > 1:
        from service.cli import workers

        return workers.serve(settings, contract)
    from service import app, process

    return process.serve(app.Service(settings, contract))


def _as_given(given: argparse.Namespace, found: Faults) -> Faults:
    """The faults by the names that were given: an option is passed on as the variable that it wins over."""
    if given.workers is None:
        return found
    return Faults(
        dataclasses.replace(fault, file="--workers") if fault.file == WORKERS else fault for fault in found.faults
    )
