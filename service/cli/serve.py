"""`tidewire serve`: runs the service; --demo adds the demo, --workers several processes."""

from __future__ import annotations

import argparse
import dataclasses
import os

from service.cli import check
from service.cli.options import Commands, add_config, config_path
from service.contract.document import Fault, Faults

WORKERS = "TIDEWIRE_WORKERS"


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "serve",
        help="run the service",
        description="Runs the service until SIGTERM or Ctrl-C, then drains its connections.",
    )
    parser.add_argument("--demo", action="store_true", help="run the demo, with development credentials")
    parser.add_argument(
        "--workers", metavar="N", help="processes that share the port; needs Linux and a broker other than memory://"
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Runs the service. Raises Faults for what `check` would report."""
    environ = dict(os.environ)
    if args.demo:
        environ["TIDEWIRE_DEMO"] = "true"
    if args.workers is not None:
        environ[WORKERS] = args.workers
    try:
        settings, contract = check.load_all(config_path(args), environ)
    except Faults as faults:
        raise _with_option_names(args, faults) from None
    # Imported only now: other commands start faster without a web server.
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


def _with_option_names(args: argparse.Namespace, faults: Faults) -> Faults:
    """Names the option --workers in faults of the variable that it was passed as."""
    if args.workers is None:
        return faults
    return Faults(
        dataclasses.replace(fault, file="--workers") if fault.file == WORKERS else fault for fault in faults.faults
    )
