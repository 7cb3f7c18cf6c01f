"""The `tidewire` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from service.cli import check, health, publish, serve, tail, token
from service.contract.document import Faults


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 if it was refused, or 2 if it was misspelt."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except Faults as faults:
        for fault in faults.faults:
            print(fault, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tidewire", description="Real-time events between backends and browsers.")
    parser.add_argument("--version", action="version", version=f"tidewire {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (serve, check, health, token, publish, tail):
        command.add(commands)
    return parser


def _version() -> str:
    try:
        return version("tidewire")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
