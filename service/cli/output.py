"""Output of commands: results go to standard output, notes to standard error.

The reader of results may close the pipe (`tidewire tail room:1 | head -1`). The command then ends silently, with the status of a
program that SIGPIPE ended. Notes that nobody reads are lost, without further effect.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, TextIO

CLOSED: Final = 128 + signal.SIGPIPE
"""Exit status when the reader has closed standard output."""


class OutputClosed(Exception):  # noqa: N818  # not an error: the reader has what it wanted
    """The reader has closed standard output. Not an OSError, which would look like a broken connection."""


class OutputFailed(Exception):  # noqa: N818  # as above
    """Standard output cannot be written. The message says why."""


def result(text: str) -> None:
    """Prints a line to standard output and flushes it. Raises OutputClosed or OutputFailed."""
    with _output():
        print(text, flush=True)


def note(text: str) -> None:
    """Prints a line to standard error; ignores failures."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


class Parser(argparse.ArgumentParser):
    """An argument parser that prints help as a result, and errors as notes."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            with _output():
                super()._print_message(message, file)
        else:
            with suppress(OSError, ValueError):
                super()._print_message(message, file)


def flush() -> None:
    """Flushes standard output before the process ends. If Python cannot flush it at exit, it changes the exit status.

    Raises OutputClosed or OutputFailed.
    """
    with _output():
        if sys.stdout is not None:
            sys.stdout.flush()


def flush_notes() -> None:
    """Flushes standard error before the process ends, or drops what is left."""
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
    """Returns the descriptor of standard output if it is a pipe."""
    try:
        descriptor = sys.stdout.fileno()
        return descriptor if stat.S_ISFIFO(os.fstat(descriptor).st_mode) else None
    except (AttributeError, OSError, ValueError):
        return None


@contextmanager
def until_closed() -> Iterator[None]:
    """Cancels the current task and raises OutputClosed when the reader closes standard output, if that is a pipe.

    Otherwise the command would notice only at the next event.
    """
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    descriptor = pipe()
    if descriptor is None or task is None:
        yield
        return
    is_closed = False

    def closed() -> None:
        nonlocal is_closed
        is_closed = True
        loop.remove_reader(descriptor)
        task.cancel()

    loop.add_reader(descriptor, closed)  # the write end of a pipe is readable only when the reader has gone
    try:
        yield
    except asyncio.CancelledError:
        if is_closed:
            raise OutputClosed from None
        raise
    finally:
        loop.remove_reader(descriptor)


def _discard(stream: TextIO) -> None:
    """Redirects what is left in the stream to `/dev/null`."""
    with suppress(AttributeError, OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
