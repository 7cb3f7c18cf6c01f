"""Fixtures: one control plane for all tests, a namespace for each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from tests.chart.tools import Helm, helms
from tests.cluster.client import Cluster, Release
from tests.cluster.control_plane import ControlPlane
from tests.cluster.keda import KedaWebhook, definitions

_NUMBERS = count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """The control plane, with three nodes."""
    plane = ControlPlane()
    asyncio.run(plane.start())
    try:
        yield plane
    finally:
        plane.end()


@pytest.fixture(scope="session")
def cluster(plane: ControlPlane) -> Cluster:
    """What speaks to it."""
    return Cluster(plane.kubeconfig)


@pytest.fixture(params=[3, 4], ids=["helm3", "helm4"])
def helm(request: pytest.FixtureRequest, cluster: Cluster) -> Helm:
    """Helm 3, then Helm 4, of that cluster."""
    return replace(helms()[request.param], kubeconfig=cluster.kubeconfig)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, whose pods have to keep to the restricted Pod Security Standard."""
    test = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())[:50].strip("-")
    with cluster.namespace(f"{test}-{next(_NUMBERS)}", **{"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        yield name


@pytest.fixture
def release(cluster: Cluster, helm: Helm, namespace: str) -> Release:
    """A release `rt`, not installed yet."""
    return Release(cluster, helm, namespace)


@pytest.fixture(scope="session")
def keda_crds(cluster: Cluster) -> None:
    """ScaledObjects and KEDA's other kinds."""
    cluster.define(*definitions())


@pytest.fixture(scope="session")
def keda_webhook(plane: ControlPlane, cluster: Cluster, keda_crds: None) -> Iterator[None]:
    """KEDA's admission webhook judges ScaledObjects."""
    webhook = KedaWebhook(plane.api)
    asyncio.run(webhook.start())
    try:
        cluster.apply(webhook.configuration())
        yield
        cluster.kubectl("delete", "validatingwebhookconfiguration", "keda-admission")
    finally:
        webhook.end()
