"""Rollouts and node drains: pods are replaced, and there are never fewer than wanted."""

from __future__ import annotations

import pytest

from tests.chart.tools import NAME, ROOT, Document, Values
from tests.cluster.client import Cluster, RefusedError, Release, available, eventually

pytestmark = pytest.mark.cluster
THREE: Values = {"replicas": 3, "settings": {"broker": {"url": "redis://redis:6379"}}, "minReadySeconds": 1}
BROKEN: Values = {**THREE, "image": {"tag": "broken"}}
"""With an image that cannot be pulled."""
REVISION = "example.com/revision"
CHANGED: Values = {"podAnnotations": {REVISION: "2"}}


def test_rollout_keeps_all_pods_and_adds_one(release: Release) -> None:
    release.install(THREE)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade({**THREE, **CHANGED})
    assert min(available(states)) == 3
    assert max(state["status"]["replicas"] for state in states) == 4
    eventually(lambda: _revisions(release) == ["2"] * 3, "all pods are new")


def test_rollout_of_a_broken_image_keeps_the_old_pods(release: Release) -> None:
    release.install(THREE)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade({**BROKEN, **CHANGED}, wait=False)
        eventually(lambda: _waiting(release) == 1, "the new pod cannot start")
        release.rollback(1)
    assert min(available(states)) == 3
    eventually(lambda: _revisions(release) == [""] * 3, "the new pod is gone")


def test_node_drain_moves_one_pod_at_a_time(release: Release) -> None:
    release.install(_marked(release, THREE))
    [pod, *_] = _pods(release)
    node = pod["spec"]["nodeName"]
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        _drain(release, node)
        eventually(lambda: available([_deployment(release)]) == [3], "the pods of the node have been replaced")
    assert min(available(states)) >= 2


def test_node_drain_does_not_wait_for_unready_pods(release: Release) -> None:
    release.install(_marked(release, BROKEN), wait=False)
    eventually(lambda: _waiting(release) == 3, "no pod can start")
    [pod, *_] = _pods(release)
    _drain(release, pod["spec"]["nodeName"])
    assert pod["metadata"]["name"] not in [each["metadata"]["name"] for each in _pods(release)]


def test_plain_manifests_are_applied_again_and_deleted(cluster: Cluster) -> None:
    folder = str(ROOT / "k8s" / "manifests")
    with cluster.namespace("tidewire"):  # which they name
        for _ in range(2):
            cluster.kubectl("apply", "-k", folder)
        eventually(lambda: available([cluster.get("deployment", "tidewire", "tidewire")]) != [0], "pods are available")
        cluster.kubectl("delete", "-k", folder)
        with pytest.raises(RefusedError, match="NotFound"):
            cluster.get("deployment", "tidewire", "tidewire")


def _marked(release: Release, values: Values) -> Values:
    """Values whose pods carry a label that no other test's have."""
    return {**values, "podLabels": {"test": release.namespace}}


def _drain(release: Release, node: str) -> None:
    """`kubectl drain`, of this test's pods. The node takes pods again afterwards."""
    kubectl = release.cluster.kubectl
    try:
        kubectl("drain", node, "--delete-emptydir-data", f"--pod-selector=test={release.namespace}", "--timeout=60s")
    finally:
        kubectl("uncordon", node)


def _deployment(release: Release) -> Document:
    return release.cluster.get("deployment", NAME, release.namespace)


def _pods(release: Release) -> list[Document]:
    """Those that nobody deletes."""
    found = release.cluster.items("pod", release.namespace)
    return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]


def _revisions(release: Release) -> list[str]:
    return [pod["metadata"]["annotations"].get(REVISION, "") for pod in _pods(release)]


def _waiting(release: Release) -> int:
    """Number of pods whose container cannot start."""
    statuses = [status for pod in _pods(release) for status in pod["status"].get("containerStatuses", ())]
    return sum("waiting" in status["state"] for status in statuses)
