"""The service of an earlier revision, from the history."""

from __future__ import annotations

import io
import subprocess
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
OLD = "173116123396a79289a73f467993462cef4d1d6e"
"""The last revision without announced features."""
OLD_CLIENT = Path(__file__).parent / "clients" / OLD[:7] / "js"
NEW_CLIENT = CHECKOUT / "clients" / "js" / "src"


class MissingRevisionError(Exception):
    """The history does not have the revision."""


def extract_service(revision: str, folder: Path) -> None:
    """Writes the package `service` of a revision into a folder. Raises MissingRevisionError."""
    packed = subprocess.run(
        ["git", "archive", "--format=zip", revision, "service"],  # the developer's git
        cwd=CHECKOUT,
        capture_output=True,
        check=False,
    )
    if packed.returncode:
        raise MissingRevisionError(packed.stderr.decode().strip())
    with zipfile.ZipFile(io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder)
