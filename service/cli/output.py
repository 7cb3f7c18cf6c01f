"""What a command prints: results to standard output, notes to standard error.

Whoever reads results may have enough (`tidewire tail room:1 | head -1`): the command then ends without a word, with the status
that a shell shows for a program that SIGPIPE ended. Notes are lost where nobody reads them, and nothing else happens.
"""

from __future__ import annotations

import argparse
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

CLOSED: Final = 128 + signal.SIGPIPE
"""Exit status where nobody reads standard output any more."""


class OutputClosed(Exception):  # noqa: N818  # not an error: the reader has all that it wanted
    """Nobody reads standard output any more. Not an OSError: it must not be taken for a connection that broke."""


class OutputFailed(Exception):  # noqa: N818  # as above
    """Standard output cannot be written; the message says why."""


def result(text: str) -> None:
    """Prints a line to standard output, at once. Raises OutputClosed and OutputFailed."""
    with _output():
        print(text, flush=True)


def note(text: str) -> None:
    """Prints a line to standard error, if that can be done."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser whose help is a result, and whose complaints are notes."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            with _output():
                super()._print_message(message, file)
        else:
            with suppress(OSError, ValueError):
                super()._print_message(message, file)


def settle() -> None:
    """Writes what others have printed, such as help. To be called at the end, as is `settle_notes`: Python would complain of what
    is left, and change the exit status. Raises OutputClosed and OutputFailed."""
    with _output():
        if sys.stdout is not None:
            sys.stdout.flush()


def settle_notes() -> None:
    """Writes the notes that are left, or drops them."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _discard(sys.stderr)


@contextmanager
def _output() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _discard(sys.stdout)
        raise OutputClosed from None
    except OSError as error:
        _discard(sys.stdout)
        raise OutputFailed(error.strerror or str(error)) from None


def pipe() -> int | None:
    """Standard output's descriptor, if it is a pipe."""
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (AttributeError, OSError, ValueError):
        return None


def _discard(stream: TextIO) -> None:
    """Has what is left in the stream go nowhere."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
