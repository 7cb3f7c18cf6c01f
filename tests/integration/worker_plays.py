"""Workers that misbehave under the real parent: `python -m tests.integration.worker_plays PLAY`. No service runs in them.

A parent forks, so it needs a process of its own.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import structlog

from service.cli.workers import Parent, WorkerTimeouts
from service.telemetry import log

TIMEOUTS = WorkerTimeouts(
    start=20.0, drain=20.0, heartbeat=20.0, stable_after=60.0, max_failures=3, initial_backoff=0.01, max_backoff=0.05
)
SHORT = {
    "never": replace(TIMEOUTS, start=1.0),
    "hangs": replace(TIMEOUTS, heartbeat=2.0),
    "stays": replace(TIMEOUTS, drain=1.0),
}
"""For those that try it; what a busy machine holds up for a moment is not to be taken for them."""
SHOW = b"."
BETWEEN = 0.05
"""Seconds between two signs of life."""

_log = structlog.get_logger("play")


def at_work(number: int, pulse: int, status: int | None = 0) -> int:
    """Does what a good worker does; ends with the status when told to, or not at all if that is None."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN if status is None else lambda *_: os._exit(status))
    signal.signal(signal.SIGALRM, lambda *_: os.write(pulse, SHOW) and None)
    signal.setitimer(signal.ITIMER_REAL, BETWEEN, BETWEEN)
    os.write(pulse, SHOW)
    _log.info("at work", pid=os.getpid())
    return rest()


def rest() -> int:
    """Does nothing until a signal kills it."""
    while True:
        signal.pause()


def dies(number: int, pulse: int) -> int:
    """The second one serves and dies, again and again; the first is well."""
    if number == 1:
        os.write(pulse, SHOW)
        os.kill(os.getpid(), signal.SIGKILL)
    return at_work(number, pulse)


def refuses(number: int, pulse: int) -> int:
    """Ends without having served."""
    return 3


def faulty(number: int, pulse: int) -> int:
    """Has a fault in its code."""
    raise RuntimeError("a fault for the test")


def hangs(number: int, pulse: int) -> int:
    """Serves and then shows no life, once for each name of a file that was not there; then it is well."""
    mark = Path(sys.argv[2])
    if number == 1 and not mark.exists():
        mark.touch()
        os.write(pulse, SHOW)
        return rest()
    return at_work(number, pulse)


def never(number: int, pulse: int) -> int:
    """Does not come to serve."""
    return rest()


def stays(number: int, pulse: int) -> int:
    """Does not end when it is told to."""
    return at_work(number, pulse, None)


def mixed(number: int, pulse: int) -> int:
    """The second one has something to complain of at its end."""
    return at_work(number, pulse, (0, 5)[number])


PLAYS = {play.__name__: play for play in (dies, refuses, faulty, hangs, never, stays, mixed)}

if __name__ == "__main__":
    log.configure("info", "json")
    sys.exit(Parent(2, PLAYS[sys.argv[1]], SHORT.get(sys.argv[1], TIMEOUTS)).run())
