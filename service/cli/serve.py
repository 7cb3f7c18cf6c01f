"""`tidewire serve`: runs the service; with --demo, the demo too."""

from __future__ import annotations

import argparse
import os
import sys

from service.cli import check
from service.cli.options import Commands, add_config, config_path


def add(commands: Commands) -> None:
    """Declares the command."""
    parser = commands.add_parser(
        "serve", help="run the service", description="Runs the service until SIGTERM or Ctrl-C."
    )
    parser.add_argument("--demo", action="store_true", help="run the demo, with credentials made for development")
    add_config(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Does it. A start that `check` would refuse is refused."""
    environ = {**os.environ, "TIDEWIRE_DEMO": "true"} if given.demo else os.environ
    settings, contract = check.everything(config_path(given), environ)
    # Imported only now: the other commands start faster without a web server.
    if settings.demo:
        from service.cli import demo

        return demo.serve(settings, contract, sys.stderr)
    from service import app

    return app.serve(app.Service(settings, contract))
