"""Puts Python interpreters in the order in which to try them: one a line on stdin, then on stdout.

Some builds of CPython run the service half as fast again as others of the same version: profile-guided optimisation makes
the difference, and what a build says of its own flags does not tell whether it had it. So each is timed, at a short loop of
the kind of work that the service does. The first that is about as fast as the fastest of the version that comes first moves
to the top; all others keep their order. An interpreter that cannot be timed is passed over, one that comes twice kept once.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 3
"""Times that each interpreter is timed, in turn, so that a busy moment of the machine hits none alone."""
LOOPS = 20
ALIKE = 1.25
"""Builds that differ by less than this factor count as equally fast: noise must not choose. Optimised builds were seen to gain 1.35 to 1.5."""
PATIENCE = 20.0
"""Seconds after which an interpreter that does not answer is passed over."""


@dataclass
class Interpreter:
    """One that answered."""

    path: str
    real: str
    version: str
    seconds: float
    """Processor time of its fastest loop."""


class Point:
    """Something to make, fill and call."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def norm(self) -> int:
        """Its length, squared."""
        return self.x * self.x + self.y * self.y


def measure() -> float:
    """Seconds of processor time that the fastest of some short loops took."""
    fastest = float("inf")
    for _ in range(LOOPS):
        began = time.process_time()
        for number in range(8000):
            Point(number, 2).norm()
        fastest = min(fastest, time.process_time() - began)
    return fastest


def ask(path: str) -> Interpreter | None:
    """Has the interpreter time itself; None where it fails to."""
    try:
        answer = subprocess.run(
            [path, "-I", __file__, "--measure"], capture_output=True, text=True, timeout=PATIENCE, check=True
        ).stdout
        real, version, seconds = answer.splitlines()
        return Interpreter(path, real, version, float(seconds))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def found(paths: list[str]) -> list[Interpreter]:
    """Those that answer, each once, timed in several rounds."""
    interpreters: dict[str, Interpreter] = {}
    for path in paths:
        answer = ask(path)
        if answer is not None:
            interpreters.setdefault(answer.real, answer)
    if len(interpreters) > 1:
        for _ in range(ROUNDS - 1):
            for interpreter in interpreters.values():
                again = ask(interpreter.path)
                if again is not None:
                    interpreter.seconds = min(interpreter.seconds, again.seconds)
    return list(interpreters.values())


def ordered(interpreters: list[Interpreter]) -> list[Interpreter]:
    """The order in which to try them. The first one's version was the user's choice: no other is put before it."""
    if not interpreters:
        return []
    alike = [each for each in interpreters if each.version == interpreters[0].version]
    fastest = min(each.seconds for each in alike)
    best = next(each for each in alike if each.seconds <= fastest * ALIKE)
    return [best, *(each for each in interpreters if each is not best)]


if __name__ == "__main__":
    if sys.argv[1:] == ["--measure"]:
        print(Path(sys.executable).resolve(), f"{sys.version_info.major}.{sys.version_info.minor}", measure(), sep="\n")
    else:
        print(*(each.path for each in ordered(found(sys.stdin.read().splitlines()))), sep="\n")
