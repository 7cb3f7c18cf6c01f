"""Helm, as the tests of the chart call it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "tidewire"
TOOLS = ROOT / ".venv" / "chart"
WHOLE = os.environ.get("CHART_MATRIX") == "whole"
"""Whether every case runs with every Helm and every Kubernetes, and not a choice of them."""
KUBERNETES = tuple(f"1.{minor}" for minor in range(29, 38))
DEADLINE = 60.0
RELEASE, NAMESPACE = "rt", "chat"
NAME = f"{RELEASE}-tidewire"

Document = dict[str, Any]
Values = Mapping[str, Any]


class Refused(Exception):  # noqa: N818  # not an error of the tests: often just what they want
    """Helm did not render. Says what it said."""


class _Strict(yaml.CSafeLoader):
    """Refuses what YAML itself refuses and PyYAML lets through: a key that stands twice."""


def _mapping(loader: yaml.CSafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    names = [loader.construct_object(key, deep=True) for key, _ in node.value]
    if doubles := {name for name in names if names.count(name) > 1}:
        raise yaml.YAMLError(f"{sorted(doubles)} twice in one mapping, {node.start_mark}")
    return loader.construct_mapping(node, deep=True)


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(text: str) -> list[Document]:
    """The documents of a text. Raises yaml.YAMLError, also for a key that stands twice."""
    return [document for document in yaml.load_all(text, Loader=_Strict) if document]  # a safe one


@dataclass(frozen=True)
class Helm:
    """One version of it."""

    major: int
    program: Path
    kubeconfig: Path = Path(os.devnull)
    """Of the cluster that it speaks to; by itself none."""

    def template(self, values: Values, *, kubernetes: str = KUBERNETES[-1]) -> list[Document]:
        """The documents that the chart makes of values. Raises Refused with Helm's words."""
        text = self.run(
            "template",
            RELEASE,
            str(CHART),
            "--namespace",
            NAMESPACE,
            "--kube-version",
            f"{kubernetes}.0",
            values=values,
        )
        # It is this project's own output.
        documents = yaml.load_all(text, Loader=_Strict)  # a SafeLoader
        return [document for document in documents if document]

    def run(self, *arguments: str, values: Values | None = None, within: float = DEADLINE) -> str:
        """What Helm prints within some seconds. Raises Refused with what it says if it fails."""
        given = ["--values", "-"] if values is not None else []
        done = subprocess.run(
            [self.program, *arguments, *given],
            input=yaml.safe_dump(dict(values)) if values is not None else "",
            capture_output=True,
            text=True,
            timeout=within,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        if done.returncode:
            raise Refused(done.stderr + done.stdout)
        return done.stdout


@cache
def helms() -> dict[int, Helm]:
    """Every Helm there is, by its major version: those that `make test-chart` installs, else one on PATH."""
    found: dict[int, Helm] = {}
    for name in (TOOLS / "helm3", TOOLS / "helm4", shutil.which("helm")):
        if name is not None and (major := _major(Path(name))):
            found.setdefault(major, Helm(major, Path(name)))
    return found


def _major(program: Path) -> int | None:
    """Its version; None if it cannot be run, as on another kind of processor."""
    try:
        said = subprocess.run([program, "version", "--short"], capture_output=True, text=True, timeout=DEADLINE)
    except OSError:
        return None
    match = re.match(r"v(\d+)\.", said.stdout)
    return int(match[1]) if match else None


def of_kind(documents: list[Document], kind: str, suffix: str = "") -> Document:
    """The one document of that kind and name. Raises ValueError if there are none or several."""
    [found] = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == NAME + suffix]
    return found


def kinds(documents: list[Document]) -> set[str]:
    """The kinds of documents."""
    return {document["kind"] for document in documents}
