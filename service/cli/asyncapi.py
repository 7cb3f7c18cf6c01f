"""`tidewire asyncapi`: prints a contract as an AsyncAPI document."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from service.cli import output
from service.cli.check import load_all
from service.cli.options import Commands, add_config, config_path
from service.contract.export.asyncapi import Server, describe
from service.contract.load import load


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "asyncapi",
        help="print the contract as an AsyncAPI document",
        description="Prints a contract as an AsyncAPI 3.0 document in JSON, as GET /api/v1/asyncapi.json does.",
    )
    parser.add_argument(
        "contract", nargs="?", type=Path, metavar="CONTRACT", help="contract file (default: from the settings)"
    )
    parser.add_argument(
        "--server", type=_server, metavar="URL", help="where clients connect, such as wss://example.com/ws"
    )
    add_config(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the document. Raises Faults, which `main` prints, one a line."""
    contract = load(args.contract) if args.contract else load_all(config_path(args), os.environ)[1]
    output.result(json.dumps(describe(contract, args.server), indent=2, ensure_ascii=False))
    return 0


def _server(text: str) -> Server:
    try:
        return Server.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
