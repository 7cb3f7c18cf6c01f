"""Autoscalers: an upgrade, whatever it turns on or off, never leaves fewer pods than run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.chart.tools import CHART, NAME, Refused, Values
from tests.cluster.client import RefusedError, Release, eventually, replicas

pytestmark = pytest.mark.cluster
MANY = 30
BASE: Values = {"settings": {"broker": {"url": "redis://redis:6379"}}, "minReadySeconds": 0}


def fixed(number: int) -> Values:
    """So many pods, without an autoscaler."""
    return {**BASE, "replicas": number}


def hpa(**bounds: int) -> Values:
    """With a HorizontalPodAutoscaler."""
    return {**BASE, "autoscaling": {"hpa": {"enabled": True, "minReplicas": 3, "maxReplicas": 40, **bounds}}}


def keda(**bounds: int) -> Values:
    """With a ScaledObject."""
    own = {
        "enabled": True,
        "prometheusAddress": "http://prometheus:9090",
        "minReplicas": 3,
        "maxReplicas": 40,
        **bounds,
    }
    return {**BASE, "autoscaling": {"keda": own}}


@pytest.mark.parametrize("scaled", [hpa(), keda()], ids=["hpa", "keda"])
def test_no_upgrade_ends_a_pod_when_an_autoscaler_is_turned_on(
    release: Release, keda_crds: None, scaled: Values
) -> None:
    release.install(fixed(MANY))
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        for _ in range(3):
            release.upgrade(scaled)
    assert set(replicas(states)) == {MANY}
    assert {state["status"]["replicas"] for state in states} == {MANY}


def test_upgrade_keeps_the_replicas_of_the_autoscaler(release: Release) -> None:
    release.install(hpa(minReplicas=2))
    release.upgrade(hpa(minReplicas=7))
    # By the autoscaler's way: the field is another manager's from now on.
    release.cluster.kubectl("scale", "deployment", NAME, "--replicas=9", "-n", release.namespace)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade(hpa(minReplicas=5))
        release.upgrade(hpa(minReplicas=12))
        eventually(lambda: _replicas(release) == 12, "the autoscaler keeps its new minimum")
    assert replicas(states) == sorted(replicas(states))
    assert min(replicas(states)) == 9


def test_upgrade_from_a_manifest_without_replicas_keeps_pods(release: Release, tmp_path: Path) -> None:
    older = _without_replicas(tmp_path)
    release.with_chart(older).install(hpa())
    release.cluster.kubectl("scale", "deployment", NAME, f"--replicas={MANY}", "-n", release.namespace)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade(hpa())
        release.upgrade(hpa(minReplicas=4))
    assert set(replicas(states)) == {MANY}


def test_max_replicas_below_running_pods_is_refused(release: Release) -> None:
    release.install(fixed(12))
    with pytest.raises(Refused, match=r"maxReplicas \(10\) is below the 12 pods that run"):
        release.upgrade(hpa(maxReplicas=10))
    assert _replicas(release) == 12
    release.upgrade(hpa(maxReplicas=12))
    release.upgrade(hpa(maxReplicas=10))  # while an autoscaler is at work it is meant
    eventually(lambda: _replicas(release) == 10, "the autoscaler keeps its new maximum")


def test_turning_an_autoscaler_off_with_fewer_pods_is_refused(release: Release) -> None:
    release.install(hpa(minReplicas=6))
    with pytest.raises(Refused, match=r"set replicas to 6"):
        release.upgrade(fixed(1))
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade(fixed(6))
        release.upgrade(fixed(6))
    assert set(replicas(states)) == {6}
    release.upgrade(fixed(2))
    assert _replicas(release) == 2


def test_server_dry_run_shows_live_replicas(release: Release) -> None:
    release.install(fixed(5))
    assert "replicas: 5\n" in release.helm.run(
        "upgrade",
        release.name,
        str(release.chart),
        "--namespace",
        release.namespace,
        "--dry-run=server",
        values=hpa(),
    )


def test_rollback_restores_the_old_replicas(release: Release) -> None:
    _scaled_since_its_first_revision(release, 9)
    if release.helm.major == 3:
        release.rollback(1)
    else:
        with pytest.raises(Refused, match=r"conflict.*\.spec\.replicas"):
            release.rollback(1)
        assert _replicas(release) == 9
        release.rollback(1, "--force-conflicts")
    assert _replicas(release) == 3


def test_upgrade_with_old_values_keeps_live_replicas(release: Release) -> None:
    _scaled_since_its_first_revision(release, 9)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade(release.values(revision=1))
    assert set(replicas(states)) == {9}
    assert "example.com/bad" not in states[-1]["spec"]["template"]["metadata"]["annotations"]


def test_keda_takes_over_from_the_autoscaler_in_one_upgrade_and_back(release: Release, keda_webhook: None) -> None:
    release.install(hpa())
    release.cluster.kubectl("scale", "deployment", NAME, "--replicas=9", "-n", release.namespace)
    with release.cluster.watch("deployment", NAME, release.namespace) as states:
        release.upgrade(keda())
        assert [each["metadata"]["name"] for each in release.cluster.items("scaledobject", release.namespace)] == [NAME]
        assert not release.cluster.items("hpa", release.namespace)
        release.upgrade(hpa())
        assert not release.cluster.items("scaledobject", release.namespace)
        assert [each["metadata"]["name"] for each in release.cluster.items("hpa", release.namespace)] == [NAME]
    assert set(replicas(states)) == {9}


def test_autoscaler_of_an_older_chart_is_handed_over_in_two_upgrades(release: Release, keda_webhook: None) -> None:
    release.install(hpa())
    release.cluster.kubectl("annotate", "hpa", NAME, "validations.keda.sh/hpa-ownership-", "-n", release.namespace)
    with pytest.raises(Refused, match=r"upgrade once more with autoscaling\.hpa\.enabled"):
        release.upgrade(keda())
    # KEDA itself would have refused it, with the HPA left behind and the release failed.
    own = {
        "scaleTargetRef": {"name": NAME},
        "minReplicaCount": 1,
        "triggers": [{"type": "cpu", "metadata": {"value": "70"}}],
    }
    scaled = {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "spec": own}
    with pytest.raises(RefusedError, match="already managed by the hpa"):
        release.cluster.apply({**scaled, "metadata": {"name": "second", "namespace": release.namespace}})
    release.upgrade(hpa())
    release.upgrade(keda())


@pytest.mark.parametrize("change", [{"fullnameOverride": "chat"}, {"nameOverride": "chat"}], ids=["full", "part"])
def test_renamed_release_keeps_its_replicas(release: Release, change: Values) -> None:
    release.install(hpa())
    release.cluster.kubectl("scale", "deployment", NAME, "--replicas=9", "-n", release.namespace)
    release.upgrade({**hpa(), **change})
    [deployment] = release.cluster.items("deployment", release.namespace)
    assert deployment["metadata"]["name"] != NAME
    assert deployment["spec"]["replicas"] == 9


def test_release_without_autoscaler_needs_no_right_to_read_it(release: Release, tmp_path: Path) -> None:
    own = _with_rights(release, tmp_path)
    own.install(fixed(4))
    own.upgrade(fixed(2))
    assert _replicas(release) == 2


def _with_rights(release: Release, folder: Path) -> Release:
    """The same release, by an account that may make everything but autoscalers in its namespace."""
    namespace, kinds = release.namespace, {"": ["configmaps", "pods", "secrets", "serviceaccounts", "services"]}
    kinds |= {"apps": ["deployments", "replicasets"], "policy": ["poddisruptionbudgets"]}
    metadata = {"name": "deployer", "namespace": namespace}
    rbac = "rbac.authorization.k8s.io"
    release.cluster.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [{"apiGroups": [group], "resources": names, "verbs": ["*"]} for group, names in kinds.items()],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "deployer"},
            "subjects": [{"kind": "ServiceAccount", "name": "deployer", "namespace": namespace}],
        },
    )
    config = yaml.safe_load(release.cluster.kubeconfig.read_text(encoding="utf-8"))
    token = release.cluster.kubectl("create", "token", "deployer", "-n", namespace).strip()
    config["users"][0]["user"] = {"token": token}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config), encoding="utf-8")
    return replace(release, helm=replace(release.helm, kubeconfig=kubeconfig))


def _scaled_since_its_first_revision(release: Release, number: int) -> None:
    """A release with an autoscaler, which has chosen a number since, and a second revision."""
    release.install(hpa())
    release.cluster.kubectl("scale", "deployment", NAME, f"--replicas={number}", "-n", release.namespace)
    release.upgrade({**hpa(), "podAnnotations": {"example.com/bad": "yes"}})


def _without_replicas(folder: Path) -> Path:
    """The chart as it was before it rendered a number beside an autoscaler."""
    chart = shutil.copytree(CHART, folder / "tidewire")
    template = chart / "templates" / "deployment.yaml"
    text = template.read_text()
    line = '  replicas: {{ include "tidewire.replicas" . }}\n'
    assert line in text
    template.write_text(text.replace(line, ""))
    return chart


def _replicas(release: Release) -> int:
    found: int = release.cluster.get("deployment", NAME, release.namespace)["spec"]["replicas"]
    return found
