"""The `tidewire` command."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

COMMANDS = ("serve", "check", "health", "token", "publish", "tail")
"""Each is a module of `service.cli`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 if it was refused, or 2 if it was misspelt."""
    words = sys.argv[1:] if arguments is None else arguments
    if "serve" not in words[:1]:
        return _run(words)
    with _ended_by_sigterm():
        status = _run(words)
    if arguments is None:  # the process ends with this, which takes Python a while: one more signal is no failure
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
    return status


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Until the service has handlers of its own SIGTERM ends this process at once, with status 0: nothing is open yet. Without a
    handler the kernel would keep the signal from process 1 of a container, which would be killed later."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(words: Sequence[str]) -> int:
    # Imported only now: loading the code takes a second or two, in which the signal may come.
    from service.contract.document import Faults

    parser = argparse.ArgumentParser(prog="tidewire", description="Real-time events between backends and browsers.")
    parser.add_argument("--version", action="version", version=f"tidewire {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # And only the one that is meant: a health check, say, needs no web server.
    for name in set(words[:1]).intersection(COMMANDS) or COMMANDS:
        importlib.import_module(f"service.cli.{name}").add(commands)
    try:
        given = parser.parse_args(words)
        return int(given.run(given))
    except Faults as faults:
        for fault in faults.faults:
            print(fault, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _version() -> str:
    try:
        return version("tidewire")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
