"""The CustomResourceDefinitions of everything that the chart makes, of its newest version where there is one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from tests.chart.tools import Document
from tests.cluster.crds import load, sources

BUILT_IN = {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}
"""What the API server has by itself, of what the chart makes."""
_INSTEAD = {"gateway-api"}
"""Whose experimental channel holds the same kinds with more fields."""
_VERSIONS = {"gateway-api-experimental": "v1.6.3"}
"""Where it is not the newest: 1.7 changed the shape of `sessionPersistence`, which values give as it is."""


def definitions(documents: Iterable[Document]) -> list[Document]:
    """Those of the kinds of these documents. Where none is published as a package, one that takes any field."""
    wanted: dict[tuple[str, str], set[str]] = defaultdict(set)
    for document in documents:
        if (version := document["apiVersion"]) not in BUILT_IN:
            group, _, number = version.partition("/")
            wanted[group, document["kind"]].add(number)
    found = {
        (crd["spec"]["group"], crd["spec"]["names"]["kind"]): crd
        for name in sources()
        if name not in _INSTEAD
        for crd in load(name, _VERSIONS.get(name) or _newest(name))
    }
    return [found.get(kind) or _open(*kind, sorted(versions)) for kind, versions in wanted.items()]


def _newest(name: str) -> str:
    return max(sources()[name].sums, key=lambda version: [int(part) for part in version.removeprefix("v").split(".")])


def _open(group: str, kind: str, versions: list[str]) -> Document:
    singular = kind.lower()
    plural = f"{singular[:-1]}ies" if singular.endswith("y") else f"{singular}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": singular},
            "versions": [
                {"name": version, "served": True, "storage": version == versions[0], "schema": schema}
                for version in versions
            ],
        },
    }
