"""CRDs of a controller at a version, out of the Go modules that crds.yaml pins.

    for crd in load("envoy-gateway", "v1.8.0"):
        ...

The go command fetches a module once and keeps it in its cache; what it brings must have the pinned sum.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.programs import go

PINS = Path(__file__).with_name("crds.yaml")
DEADLINE = 300.0

Crd = dict[str, Any]


class Unusable(Exception):  # noqa: N818  # not an error of the tests, but of what they are given
    """A module cannot be had, or is not the pinned one. Says which and why."""


@dataclass(frozen=True)
class Source:
    """Where the CRDs of a controller are."""

    module: str
    files: tuple[str, ...]
    kinds: tuple[str, ...]
    sums: Mapping[str, str]
    """Version, as v1.8.0 → the sum of the module's files."""


@cache
def sources() -> dict[str, Source]:
    """Every controller in crds.yaml, by the name that it has there."""
    found = yaml.safe_load(PINS.read_text(encoding="utf-8"))
    return {
        name: Source(one["module"], tuple(one["files"]), tuple(one["kinds"]), one["sums"])
        for name, one in found.items()
    }


def short(version: str) -> str:
    """1.8 of v1.8.0, as in the chart's files/versions.yaml and in values."""
    return ".".join(version.removeprefix("v").split(".")[:2])


@cache
def load(name: str, version: str) -> tuple[Crd, ...]:
    """The CRDs of a controller. Raises Unusable if they cannot be had; not to be changed."""
    source = sources()[name]
    archive = _download(f"{source.module}@{version}")
    if (found := _sum(archive)) != source.sums[version]:
        raise Unusable(f"{source.module}@{version} has the sum {found}, and {PINS.name} has {source.sums[version]}")
    crds: list[Crd] = []
    with zipfile.ZipFile(archive) as files:
        root = f"{source.module}@{version}/"
        for pattern in source.files:
            names = [file for file in files.namelist() if fnmatchcase(file, root + pattern)]
            if len(names) != 1:
                raise Unusable(f"{source.module}@{version}: {pattern} stands for {names}, and must for one file")
            documents = yaml.load_all(files.read(names[0]), Loader=yaml.CSafeLoader)  # a safe one
            crds += [one for one in documents if one and one["kind"] == "CustomResourceDefinition"]
    by_kind = {crd["spec"]["names"]["kind"]: crd for crd in crds}
    if missing := set(source.kinds) - set(by_kind):
        raise Unusable(f"{source.module}@{version} has no CRD of {', '.join(sorted(missing))}")
    return tuple(by_kind[kind] for kind in source.kinds)


def _download(module: str) -> Path:
    """Where the go command has put the module's archive. Raises Unusable or MissingProgramError."""
    # The newest CRDs may name a newer Go than there is. It is not needed: nothing is compiled.
    environment = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "GOWORK": "off"}
    with tempfile.TemporaryDirectory() as elsewhere:  # away from any go.mod
        done = subprocess.run(
            [go(), "mod", "download", "-json", module],
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            cwd=elsewhere,
            env=environment,
        )
    told = json.loads(done.stdout) if done.stdout.strip() else {}
    if "Zip" not in told:
        raise Unusable(f"{module}: {told.get('Error') or done.stderr.strip()}")
    return Path(told["Zip"])


def _sum(archive: Path) -> str:
    """Go's `h1:` of a module: of the SHA-256 and the name of each file, in the order of names."""
    whole = hashlib.sha256()
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            whole.update(f"{hashlib.sha256(files.read(name)).hexdigest()}  {name}\n".encode())
    return f"h1:{base64.b64encode(whole.digest()).decode()}"
