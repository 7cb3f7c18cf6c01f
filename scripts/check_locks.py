#!/usr/bin/env python3
"""Checks every lock of the repository: each requirement has a version and hashes, and none has a download address.

A lock with the address of a server works only where that server is reachable. uv and npm omit addresses only on request.
lockfile-lint checks which server a lock names, not that it names none. `pip --require-hashes` fails only at
the install.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_PINNED = re.compile(r"[a-z0-9._-]+(\[[a-z0-9,._-]+\])?==[^\s;*]+(\s*;[^\\]+?)?(\s+--hash=sha256:[0-9a-f]{64})+")


def main() -> None:
    """Checks every lock that git tracks."""
    listed = subprocess.run(
        ["git", "ls-files", "--", "*.lock", "*package-lock.json"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    faults = [
        f"{name}: {fault}"
        for name in listed.stdout.splitlines()
        for fault in (python_faults if name.endswith(".lock") else node_faults)((ROOT / name).read_text())
    ]
    if faults:
        sys.exit("\n".join(faults))


def python_faults(lock: str) -> Iterator[str]:
    """Yields the faults of a requirements file. `make lock` writes those of pyproject.toml."""
    for line in re.sub(r"\\\n", " ", lock).splitlines():
        requirement = line.partition(" #")[0].strip()
        if requirement and not requirement.startswith("#") and not _PINNED.fullmatch(requirement):
            yield f"{requirement[:60]!r} is not NAME==VERSION with hashes"


def node_faults(lock: str) -> Iterator[str]:
    """Yields the faults of an npm lock. `npm install --package-lock-only --omit-lockfile-registry-resolved` writes it."""
    for place, package in json.loads(lock)["packages"].items():
        if place and "integrity" not in package:
            yield f"{place} has no hash"
        if re.match(r"[a-z+]+:", package.get("resolved", "")):
            yield f"{place} names a download address"


if __name__ == "__main__":
    main()
