"""The `tidewire` command."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from service.signals import STOPPING, stopping

COMMANDS = ("serve", "check", "health", "token", "publish", "tail")
"""Each is a module of `service.cli`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, or 1 if it was refused, or 2 if it was misspelt."""
    _open_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    if "serve" not in words[:1]:
        return _run(words)
    with _ended_by_signals():
        status = _run(words)
    if arguments is None:  # the process ends with this, which takes Python a while: one more signal is no failure
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
    return status


def _open_standard_descriptors() -> None:
    """Opens `/dev/null` as each of descriptors 0, 1 and 2 that is closed. A socket would get the number otherwise, and what is
    printed would go to a client; libuv aborts where it meets one."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Until the service has handlers of its own, the signals that stop it end this process at once, with status 0: nothing is
    open yet. Without a handler the kernel would keep them from process 1 of a container, which would be killed later."""
    before = {number: signal.signal(number, lambda number, frame: os._exit(0)) for number in stopping()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(words: Sequence[str]) -> int:
    # Imported only now: loading the code takes a second or two, in which the signal may come.
    from service.cli import output
    from service.contract.document import Faults

    try:
        try:
            return _command(words)
        except Faults as faults:
            for fault in faults.faults:
                output.note(str(fault))
            return 1
        except KeyboardInterrupt:
            return 130
        finally:
            output.settle()
    except output.OutputClosed:
        return output.CLOSED
    except output.OutputFailed as error:
        output.note(f"tidewire: cannot write to standard output: {error}")
        return 1
    finally:
        output.settle_notes()


def _command(words: Sequence[str]) -> int:
    from service.cli import output

    parser = output.Parser(prog="tidewire", description="Real-time events between backends and browsers.")
    parser.add_argument("--version", action="version", version=f"tidewire {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # And only the one that is meant: a health check, say, needs no web server.
    for name in set(words[:1]).intersection(COMMANDS) or COMMANDS:
        importlib.import_module(f"service.cli.{name}").add(commands)
    given = parser.parse_args(words)
    return int(given.run(given))


def _version() -> str:
    try:
        return version("tidewire-server")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
