"""Puts Python interpreters in the order in which to try them: one a line on stdin, then on stdout.

Some builds of CPython are half as fast again as others of the same version: profile-guided optimisation makes the difference,
and what a build says of its own flags does not tell whether it had it. So they are timed, at a short loop of the kind of work
that the service does. The first that is about as fast as the fastest of the version that comes first moves to the top; all
others keep their order. An interpreter that does not answer is passed over, one that comes twice is kept once.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

ROUNDS = 199
"""Loops of 2 ms for each interpreter. They take turns: what slows the machine down for longer slows all of them down."""
ALIKE = 1.15
"""Builds that differ by less than this factor count as equally fast. On a busy machine two runs of one build differed by up
to 1.06, and the optimised one gained 1.45 at least."""
PATIENCE = 30.0
"""Seconds after which an interpreter that does not answer is passed over."""


class Point:
    """Something to make, fill and call."""

    def __init__(self, x: int, y: int) -> None:
        self.x = x
        self.y = y

    def norm(self) -> int:
        """Its length, squared."""
        return self.x * self.x + self.y * self.y


def loop() -> float:
    """Seconds of processor time that one loop takes."""
    began = time.process_time()
    for number in range(4000):
        Point(number, 2).norm()
    return time.process_time() - began


def answer() -> None:
    """What an interpreter that is timed does: it says who it is, then times a loop for each line that comes."""
    print(Path(sys.executable).resolve(), f"{sys.version_info.major}.{sys.version_info.minor}", sep="\n", flush=True)
    for _ in sys.stdin:
        print(loop(), flush=True)


class Interpreter:
    """One that is asked. Raises OSError or ValueError where it does not answer as it should."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.times: list[float] = []
        self._process = subprocess.Popen(
            [path, "-I", __file__, "--answer"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
        )  # fmt: skip
        self._end = Timer(PATIENCE, self._process.kill)
        self._end.start()
        try:
            self.real, self.version = self._line(), self._line()
            self.time()
        except (OSError, ValueError):
            self.leave()
            raise
        self.times.clear()  # the first one warms it up

    def time(self) -> None:
        """Adds one to the times."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self.times.append(float(self._line()))

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def leave(self) -> None:
        """Ends it."""
        self._end.cancel()
        self._process.kill()
        with contextlib.suppress(OSError):  # there may be a line that it has not taken
            self._process.communicate()


def found(paths: list[str]) -> list[Interpreter]:
    """Those that answer, each once."""
    interpreters: dict[str, Interpreter] = {}
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            interpreter = Interpreter(path)
            if interpreters.setdefault(interpreter.real, interpreter) is not interpreter:
                interpreter.leave()
    return list(interpreters.values())


def best(interpreters: list[Interpreter]) -> Interpreter:
    """The one to use first. The version of the first one was the user's choice: no other is put before it."""
    first = interpreters[0]
    alike = [each for each in interpreters if each.version == first.version]
    if len(alike) == 1:
        return first
    for _ in range(ROUNDS):
        for each in alike:
            each.time()
    slowness = [statistics.median(a / b for a, b in zip(each.times, first.times, strict=True)) for each in alike]
    return next(each for each, slow in zip(alike, slowness, strict=True) if slow <= min(slowness) * ALIKE)


def main() -> None:
    """Reads the paths and writes them in order."""
    interpreters = found(sys.stdin.read().splitlines())
    try:
        top = best(interpreters) if interpreters else None
        print(*sorted((each.path for each in interpreters), key=lambda path: top is None or path != top.path), sep="\n")
    finally:
        for each in interpreters:
            each.leave()


if __name__ == "__main__":
    answer() if sys.argv[1:] == ["--answer"] else main()
