"""The `tidewire` command."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from service.signals import STOP_SIGNALS, stop_signals

COMMANDS = (
    "serve", "check", "asyncapi", "diff", "health", "token", "publish", "presence", "remove", "purge", "erase", "tail",
    "webhooks", "listen", "types",
)  # fmt: skip
"""Each is a module of `service.cli`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0; 1 after a failure; 2 for wrong arguments."""
    _open_standard_descriptors()
    words = sys.argv[1:] if arguments is None else arguments
    if "serve" not in words[:1]:
        return _run(words)
    with _exit_on_signals():
        status = _run(words)
    if arguments is None:  # Python takes a while to exit: a signal meanwhile is no failure
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    return status


def _open_standard_descriptors() -> None:
    """Opens `/dev/null` for each of the descriptors 0, 1 and 2 that is closed. Otherwise a client's socket could get
    that number and receive what is printed, and libuv would abort."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
            setattr(sys, name, open(descriptor, "r" if descriptor == 0 else "w", closefd=False))  # noqa: SIM115


@contextmanager
def _exit_on_signals() -> Iterator[None]:
    """Makes stop signals end this process at once with status 0, until the service has its own handlers. Nothing is
    open yet. Without a handler, the kernel ignores these signals for process 1 of a container, which is then killed
    later."""
    before = {number: signal.signal(number, lambda number, frame: os._exit(0)) for number in stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(words: Sequence[str]) -> int:
    # Imported only now: loading takes a second or two, in which a signal may arrive.
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
            output.flush()
    except output.OutputClosed:
        return output.CLOSED
    except output.OutputFailed as error:
        output.note(f"tidewire: cannot write to standard output: {error}")
        return 1
    finally:
        output.flush_notes()


def _command(words: Sequence[str]) -> int:
    from service.cli import output

    parser = output.Parser(prog="tidewire", description="Real-time events between backends and browsers.")
    parser.add_argument("--version", action="version", version=f"tidewire {_version()}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    # Only the command that was named: a health check needs no web server.
    for name in set(words[:1]).intersection(COMMANDS) or COMMANDS:
        importlib.import_module(f"service.cli.{name}").register(commands)
    args = parser.parse_args(words)
    return int(args.run(args))


def _version() -> str:
    try:
        return version("tidewire-server")
    except PackageNotFoundError:  # a checkout that was never installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
