"""Custom resources hold no key that their types have not: all of them as TypeScript, and through the compiler."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.chart.cases import CASES, SOME
from tests.chart.conftest import absent, rendered
from tests.chart.schemas import CLOSED, TYPED
from tests.chart.tools import WHOLE, Document, Helm

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


def faulty(documents: list[tuple[str, Document]], folder: Path) -> dict[str, str]:
    """What the compiler has against documents, each with a name: its words by name."""
    if shutil.which("node") is None or not COMPILER.exists():
        absent("there is no Node.js, or no types of custom resources are")
    lines: list[str] = []
    for name, document in documents:
        package, group, kind = TYPED[document["apiVersion"]], document["apiVersion"], document["kind"]
        typed = f'import("@kubernetes-models/{package}/{group}/{kind}").I{kind}'
        lines.append(f"/* {name} */ export const d{len(lines)}: {typed} = {json.dumps(document)};")
    source = folder / "documents.mts"
    source.write_text("\n".join(lines), encoding="utf-8")
    (folder / "node_modules").symlink_to(FOLDER / "node_modules")
    done = subprocess.run(
        ["node", COMPILER, *OPTIONS, source.name], capture_output=True, text=True, timeout=DEADLINE, cwd=folder
    )
    assert (done.returncode == 0) == (not done.stdout), done.stdout + done.stderr
    found = re.findall(rf"^{source.name}\((\d+),\d+\): (.*)", done.stdout, re.MULTILINE)
    assert bool(found) == bool(done.stdout), done.stdout
    return {documents[int(line) - 1][0]: told for line, told in found}


def _typed(helm: Helm) -> list[tuple[str, Document]]:
    chosen = [case for case in CASES if WHOLE or case in SOME]
    return [(case, one) for case in chosen for one in rendered(helm, case) if one["apiVersion"] in TYPED]


def test_custom_resources_have_no_key_that_their_types_have_not(helm: Helm, tmp_path: Path) -> None:
    good = _typed(helm)
    made: dict[str, set[str]] = {}
    for _, document in good:
        made.setdefault(document["apiVersion"], set()).add(document["kind"])
    assert made == CHOSEN
    # One of each kind has a key too many, so that a compiler that lets everything through is noticed.
    spoilt = {}
    for _, document in good:
        changed = copy.deepcopy(document)
        changed["spec"]["unknownKey"] = 1
        spoilt[f"spoilt {document['kind']}"] = changed
    found = faulty([*good, *spoilt.items()], tmp_path)
    assert set(found) == set(spoilt), found
    assert all("unknownKey" in told for told in found.values()), found
