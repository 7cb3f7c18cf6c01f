"""Orders Python interpreters by preference: one path a line on stdin, then on stdout.

The fastest interpreter that has the version of the first one comes first; the others keep their order. An interpreter that does
not answer is left out.

No tool does this: uv and pyenv choose by version, and a build does not tell whether it was optimised by profile. Builds of one
version differ by up to half in speed, and so would all measurements of the service.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

ROUNDS = 5
"""Runs of each interpreter. They alternate, so that a busy moment of the machine slows all of them."""
SIMILAR = 1.15
"""Builds that differ by less than this factor count as equally fast."""
TIMEOUT = 30.0
"""Seconds after which an interpreter that does not answer is left out."""
TIMED = """
import os, sys, time
class Point:
    def __init__(self, x, y):
        self.x = x
        self.y = y
    def norm(self):
        return self.x * self.x + self.y * self.y
def loop():
    began = time.process_time()
    for number in range(4000):
        Point(number, 2).norm()
    return time.process_time() - began
print(os.path.realpath(sys.executable), "%d.%d" % sys.version_info[:2], min(loop() for _ in range(40)), sep="\\n")
"""
"""Prints who the interpreter is, and the shortest processor time of a loop of attribute reads and calls."""


def answer(path: str) -> tuple[str, str, float]:
    """Runs an interpreter. Returns its real path, its version and its time. Raises OSError, ValueError or SubprocessError."""
    done = subprocess.run([path, "-I", "-c", TIMED], capture_output=True, text=True, check=True, timeout=TIMEOUT)
    real, version, seconds = done.stdout.splitlines()
    return real, version, float(seconds)


def ordered(paths: list[str]) -> list[str]:
    """Returns the paths that answer, each interpreter once, the preferred one first."""
    found: dict[str, tuple[str, str]] = {}
    times: dict[str, float] = {}
    for path in paths:
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            real, version, seconds = answer(path)
            found.setdefault(real, (path, version))
            times[real] = min(seconds, times.get(real, seconds))
    if not found:
        return []
    wanted = next(iter(found.values()))[1]
    rivals = [real for real, (_, version) in found.items() if version == wanted]
    for real in rivals * (ROUNDS - 1) if len(rivals) > 1 else ():
        times[real] = min(times[real], answer(found[real][0])[2])
    fastest = min(times[real] for real in rivals)
    first = found[next(real for real in rivals if times[real] <= fastest * SIMILAR)][0]
    return [first, *(path for path, _ in found.values() if path != first)]


if __name__ == "__main__":
    for each in ordered(sys.stdin.read().splitlines()):
        print(each)
