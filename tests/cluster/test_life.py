"""A release from its installation to its end, with every preset and every switch on."""

from __future__ import annotations

import pytest

from tests.chart.cases import CASES
from tests.chart.tools import Document, Values, helms
from tests.cluster.client import Cluster, Release
from tests.cluster.kinds import BUILT_IN, definitions

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def kinds(cluster: Cluster) -> list[str]:
    """Every kind of namespaced object that the chart makes, as kubectl names it; the cluster knows them all."""
    made = [document for values in CASES.values() for document in helms()[4].template(values)]
    defined = definitions(made)
    cluster.define(*defined)
    custom = [definition["metadata"]["name"] for definition in defined]
    return [*custom, *sorted({document["kind"] for document in made if document["apiVersion"] in BUILT_IN})]


@pytest.fixture(scope="module")
def priority(cluster: Cluster) -> None:
    """The priority class that one of the cases names."""
    cluster.apply(
        {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "realtime"}, "value": 1000}
    )


@pytest.mark.parametrize("case", CASES)
def test_release_from_install_to_uninstall(release: Release, kinds: list[str], priority: None, case: str) -> None:
    values: Values = {"minReadySeconds": 0, **CASES[case]}
    account = {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {"name": "mine", "namespace": release.namespace},
    }
    release.cluster.apply(account)
    before = _objects(release, kinds)

    release.install(values)
    _agrees(release)
    [deployment] = release.cluster.items("deployment", release.namespace)
    release.upgrade(values)
    [same] = release.cluster.items("deployment", release.namespace)
    assert same["metadata"]["generation"] == deployment["metadata"]["generation"], "nothing changed, and pods would"
    release.upgrade({**values, "podAnnotations": {"example.com/revision": "2"}})
    _agrees(release)
    [changed] = release.cluster.items("deployment", release.namespace)
    assert changed["spec"]["template"] != deployment["spec"]["template"]
    if values.get("tests", {}).get("enabled", True):
        assert "Succeeded" in release.test()
    release.rollback(1)
    _agrees(release)
    [back] = release.cluster.items("deployment", release.namespace)
    assert back["spec"]["template"] == deployment["spec"]["template"]
    release.uninstall()
    assert _objects(release, kinds) == before


def _agrees(release: Release) -> None:
    """All that the manifest holds is there, and every wanted pod is available."""
    for document in release.manifest():
        namespace = document["metadata"].get("namespace", release.namespace)
        found = release.cluster.get(_named(document), document["metadata"]["name"], namespace)
        if document["kind"] == "Deployment":
            assert found["status"].get("availableReplicas", 0) == found["spec"]["replicas"]


def _named(document: Document) -> str:
    """A kind with its group, as kubectl takes it."""
    group, _, version = document["apiVersion"].rpartition("/")
    return f"{document['kind']}.{version}.{group}" if group else document["kind"]


def _objects(release: Release, kinds: list[str]) -> set[tuple[str, str]]:
    """Kind and name of what is there, without what Helm and controllers keep there and credentials that outlive a release."""
    found = release.cluster.items(",".join(kinds), release.namespace)
    return {
        (each["kind"], each["metadata"]["name"])
        for each in found
        if "ownerReferences" not in each["metadata"]
        and each.get("type") != "helm.sh/release.v1"
        and each["metadata"].get("annotations", {}).get("helm.sh/resource-policy") != "keep"
    }
