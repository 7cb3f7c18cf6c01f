#!/usr/bin/env python3
"""Checks and prepares a release, for the release workflow.

scripts/release.py check v0.2.0    checks that all parts have the version, and that the changelog has its section
scripts/release.py notes v0.2.0    prints the section of the changelog
scripts/release.py chart v0.2.0 IMAGE DIGEST FOLDER
                                   copies the chart to FOLDER, with that image as its default

bump-my-version writes versions; it does not refuse a tag whose parts disagree, nor read the changelog or set an image's digest.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_HEADING = re.compile(r"^## \[?(?P<version>[^\]\s]+)\]?(?: - (?P<when>.*))?$", re.MULTILINE)


class NotReleasableError(Exception):
    """The message lists every fault, one a line."""


def versions(root: Path = ROOT) -> Iterator[tuple[str, str]]:
    """Yields every place that names the version, and the version there."""
    service = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    yield "pyproject.toml", service["version"]
    client = tomllib.loads((root / "clients/python/pyproject.toml").read_text())["project"]["version"]
    yield "clients/python/pyproject.toml", client
    [pin] = [name for name in service["dependencies"] if name.startswith("tidewire==")]
    yield "pyproject.toml, dependency tidewire", pin.removeprefix("tidewire==")
    yield "clients/js/package.json", json.loads((root / "clients/js/package.json").read_text())["version"]
    chart = (root / "helm/tidewire/Chart.yaml").read_text()
    for field in ("version", "appVersion"):
        found = re.search(rf'^{field}: "?([^"\n]+)"?$', chart, re.MULTILINE)
        yield f"helm/tidewire/Chart.yaml, {field}", found[1] if found else "nothing"


def notes(version: str, changelog: str) -> str:
    """Returns the section of the changelog for a version; it must have a date. Raises NotReleasableError."""
    for found in _HEADING.finditer(changelog):
        if found["version"] == version:
            if not re.fullmatch(r"\d{4}-\d\d-\d\d", found["when"] or ""):
                raise NotReleasableError(
                    f"CHANGELOG.md: {version} is dated {found['when']!r}; it needs the day: YYYY-MM-DD"
                )
            following = _HEADING.search(changelog, found.end())
            return changelog[found.end() : following.start() if following else None].strip() + "\n"
    raise NotReleasableError(f"CHANGELOG.md: has no section '## {version} - YYYY-MM-DD'")


def check(tag: str, root: Path = ROOT) -> str:
    """Returns the version of a tag. Raises NotReleasableError unless all parts have that version."""
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        raise NotReleasableError(f"the tag is {tag!r}; it has to be v and a version, such as v0.2.0")
    version = tag.removeprefix("v")
    faults = [f"{place} says {named}, the tag {version}" for place, named in versions(root) if named != version]
    try:
        notes(version, (root / "CHANGELOG.md").read_text())
    except NotReleasableError as fault:
        faults.append(str(fault))
    if faults:
        raise NotReleasableError("\n".join(faults))
    return version


def chart(image: str, digest: str, target: Path, root: Path = ROOT) -> None:
    """Copies the chart, with the image as its default. Raises NotReleasableError."""
    shutil.copytree(root / "helm/tidewire", target)
    values = (target / "values.yaml").read_text()
    for name, value in (("repository", image), ("digest", digest)):
        pattern = rf"^(image:\n(?:  .*\n)*?  {name}:) .*$"
        values, found = re.subn(pattern, rf"\g<1> {value}", values, flags=re.MULTILINE)
        if found != 1:
            raise NotReleasableError(f"helm/tidewire/values.yaml: image.{name} is not where it was")
    (target / "values.yaml").write_text(values)


def main(command: str, tag: str, *rest: str) -> None:
    """Runs a command."""
    version = check(tag)
    if command == "check":
        print(version)
    elif command == "notes":
        print(notes(version, (ROOT / "CHANGELOG.md").read_text()), end="")
    else:
        image, digest, target = rest
        chart(image, digest, Path(target))


if __name__ == "__main__":
    if [len(sys.argv), *sys.argv[1:2]] not in ([3, "check"], [3, "notes"], [6, "chart"]):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except NotReleasableError as fault:
        sys.exit(str(fault))
