"""Custom resources hold no key that their types have not: all of them as TypeScript, and through the compiler."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.chart.cases import CASES
from tests.chart.conftest import INSTALL, rendered
from tests.chart.schemas import CLOSED, TYPED
from tests.chart.tools import Document, Helm

pytestmark = pytest.mark.chart

FOLDER = CLOSED.parent
COMPILER = FOLDER / "node_modules" / "typescript" / "bin" / "tsc"
OPTIONS = ("--noEmit", "--strict", "--module", "nodenext", "--target", "es2022", "--skipLibCheck")
DEADLINE = 120.0
CHOSEN = {
    "gateway.networking.k8s.io/v1": {"HTTPRoute", "Gateway"},
    "cloud.google.com/v1": {"BackendConfig"},
    "networking.gke.io/v1": {"GCPBackendPolicy", "HealthCheckPolicy"},
    "networking.istio.io/v1": {"DestinationRule"},
    "keda.sh/v1alpha1": {"ScaledObject"},
    "monitoring.coreos.com/v1": {"ServiceMonitor", "PodMonitor", "PrometheusRule"},
}
"""What the cases make; the test fails if they stop making one of them."""


def compiled(documents: list[tuple[str, Document]], folder: Path) -> list[str]:
    """What the compiler has against documents, each with a name: a line for each fault."""
    if shutil.which("node") is None or not COMPILER.exists():
        pytest.skip(f"Node.js or the types of custom resources are not here; {INSTALL}")
    imports: dict[str, None] = {}
    lines = []
    for number, (name, document) in enumerate(documents):
        group, kind = document["apiVersion"], document["kind"]
        alias = f"{kind}_{TYPED[group].replace('-', '_')}"
        imports[f'import type {{ I{kind} as {alias} }} from "@kubernetes-models/{TYPED[group]}/{group}/{kind}";'] = None
        lines.append(f"/* {name} */ export const d{number}: {alias} = {json.dumps(document)};")
    source = folder / "documents.mts"
    source.write_text("\n".join([*imports, *lines]), encoding="utf-8")
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    done = subprocess.run(
        ["node", COMPILER, *OPTIONS, str(source)], capture_output=True, text=True, timeout=DEADLINE, cwd=folder
    )
    assert (done.returncode == 0) == (not done.stdout), done.stderr
    return done.stdout.splitlines()


def _typed(helm: Helm) -> list[tuple[str, Document]]:
    return [(case, one) for case in CASES for one in rendered(helm, case) if one["apiVersion"] in TYPED]


def test_every_custom_resource_compiles_against_its_types(helm: Helm, tmp_path: Path) -> None:
    documents = _typed(helm)
    made: dict[str, set[str]] = {}
    for _, document in documents:
        made.setdefault(document["apiVersion"], set()).add(document["kind"])
    assert made == CHOSEN
    assert compiled(documents, tmp_path) == []


def test_the_compiler_finds_faults_in_each_kind(helm: Helm, tmp_path: Path) -> None:
    by_kind: dict[str, Document] = {document["kind"]: document for _, document in _typed(helm)}
    spoilt = []
    for kind, document in by_kind.items():
        changed: dict[str, Any] = copy.deepcopy(document)
        changed["spec"]["unknownKey"] = 1
        spoilt.append((kind, changed))
    told = "\n".join(compiled(spoilt, tmp_path))
    for number, kind in enumerate(by_kind):
        assert (
            f"'unknownKey' does not exist in type 'I{kind}Spec'" in told
            or f"documents.mts({number + 1 + _imports(spoilt)}," in told
        )


def _imports(documents: list[tuple[str, Document]]) -> int:
    return len({(document["apiVersion"], document["kind"]) for _, document in documents})
