"""Compiles the load client and the limit server in `c/`; also `python -m benchmarks.build`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "c"
OUTPUT = Path(__file__).parents[1] / "build" / "bench"
PROGRAMS = {
    "load": (
        *("load", "workload", "connection", "http", "inflate", "loop", "shared"),
        *("book", "job", "frame", "accept", "histogram"),
    ),
    "limit": ("limit", "job", "frame", "accept"),
}
LIBRARIES = {"load": ("-lz", "-lm"), "limit": ("-lm",)}
FLAGS = ("-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Wshadow", "-Werror")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


class BuildError(Exception):
    """A program could not be compiled; the text has the reason."""


def build(*, sanitize: bool = False) -> Path:
    """Compiles programs older than their sources; returns the folder of `load` and `limit`.

    With `sanitize` the programs check memory and undefined behaviour, are slower, and have their own folder.
    Raises BuildError.
    """
    compiler = shutil.which("gcc")
    if compiler is None:
        raise BuildError("there is no gcc on the PATH: install gcc and zlib1g-dev")
    folder = OUTPUT / "sanitized" if sanitize else OUTPUT
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in (*SOURCES.glob("*.[ch]"), Path(__file__)))
    for name in PROGRAMS:
        program = folder / name
        if not program.exists() or program.stat().st_mtime < newest:
            _compile(compiler, name, program, SANITIZE if sanitize else ())
    return folder


def can_sanitize() -> bool:
    """Returns whether the compiler has the libraries of the sanitizers."""
    compiler = shutil.which("gcc")
    if compiler is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, *SANITIZE, "-x", "c", "-o", f"{folder}/program", "-"]
        done = subprocess.run(command, input=b"int main(void) { return 0; }", capture_output=True, check=False)
    return done.returncode == 0


def _compile(compiler: str, name: str, program: Path, extra: tuple[str, ...]) -> None:
    sources = [str(SOURCES / f"{part}.c") for part in PROGRAMS[name]]
    unfinished = program.with_name(f"{name}.{os.getpid()}")  # another process may build, or run it, at this moment
    command = [compiler, *FLAGS, *extra, "-o", str(unfinished), *sources, *LIBRARIES[name]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildError(f"{name} does not compile (it needs gcc and zlib1g-dev):\n{done.stderr}")
    unfinished.replace(program)


def main() -> int:
    """Compiles; returns 1 and prints the compiler's errors on failure."""
    try:
        print(build())
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
