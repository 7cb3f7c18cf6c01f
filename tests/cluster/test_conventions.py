"""What people expect of any chart, on a real control plane: names, quotas, parents, dashboards of several releases."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.tools import CHART, NAME, Document, Refused, Values
from tests.cluster.client import RefusedError, Release

pytestmark = pytest.mark.cluster

LONG = "a-very-long-name-of-a-company-and-its-chat-production"
QUICK: Values = {"minReadySeconds": 0}


def named(release: Release, name: str) -> Release:
    """Another release beside it."""
    return replace(release, name=name)


def deployments(release: Release) -> dict[str, str]:
    """The names of Deployments in its namespace, by the release that each belongs to."""
    found = release.cluster.items("deployment", release.namespace)
    return {each["metadata"]["labels"]["app.kubernetes.io/instance"]: each["metadata"]["name"] for each in found}


def test_releases_of_any_name_stand_in_one_namespace(release: Release) -> None:
    names = ["x", "x-tidewire", "tidewire", "tidewire-ops", "a.b.c", "a-b-c", "1st", "1234", LONG, f"{LONG[:-1]}m"]
    for name in names:
        named(release, name).install(QUICK)
    before = deployments(release)
    assert len(set(before.values())) == len(names)
    # The first is gone that had the name which the second wanted.
    named(release, "x").uninstall()
    for name in names[1:]:
        named(release, name).upgrade({**QUICK, "podAnnotations": {"a": "b"}})
        named(release, name).test()
    assert deployments(release) == {name: before[name] for name in names[1:]}
    assert before["x-tidewire"] != "x-tidewire"


def test_name_cut_by_an_older_chart_is_kept(release: Release, tmp_path: Path) -> None:
    long = named(release, LONG)
    long.with_chart(_cutting(tmp_path)).install(QUICK)
    assert deployments(release) == {LONG: LONG[:52]}
    long.upgrade({**QUICK, "podAnnotations": {"a": "b"}})
    assert deployments(release) == {LONG: LONG[:52]}


def test_pods_and_tests_fit_quota_and_limit_range(release: Release) -> None:
    hard = {"requests.cpu": "2", "limits.cpu": "4", "requests.memory": "4Gi", "limits.memory": "8Gi", "pods": "6"}
    ratio = {"type": "Container", "maxLimitRequestRatio": {"cpu": "4", "memory": "4"}}
    for kind, spec in (("ResourceQuota", {"hard": hard}), ("LimitRange", {"limits": [ratio]})):
        metadata = {"name": "limits", "namespace": release.namespace}
        release.cluster.apply({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec})
    release.install({**QUICK, "resources": {"limits": {"cpu": 1}}})
    release.test()


def test_parent_chart_installs_two_aliases(release: Release, tmp_path: Path) -> None:
    chart = tmp_path / "platform"
    (chart / "charts").mkdir(parents=True)
    (chart / "charts" / "tidewire").symlink_to(CHART)
    dependencies = [
        {"name": "tidewire", "version": ">=0.0.0-0", "alias": alias, "condition": f"{alias}.enabled"}
        for alias in ("rt", "eu", "us")
    ]
    whole = {"apiVersion": "v2", "name": "platform", "version": "0.1.0", "dependencies": dependencies}
    (chart / "Chart.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
    on = {"enabled": True, **QUICK}
    values = {"global": {"imageRegistry": "r.example.com"}, "rt": on, "eu": {"enabled": False}, "us": on}
    parent = release.with_chart(chart)
    parent.install(values)
    names = [each["metadata"]["name"] for each in release.cluster.items("deployment", release.namespace)]
    assert sorted(names) == ["rt-rt", "rt-us"]
    parent.upgrade({**values, "eu": on})
    parent.test()
    parent.uninstall()


def test_dashboards_of_two_namespaces_stand_in_one(release: Release) -> None:
    shared = f"{release.namespace}-m"
    values = {**QUICK, "dashboards": {"enabled": True, "namespace": shared}}
    with (
        release.cluster.namespace(shared),
        release.cluster.namespace(f"{release.namespace}-b") as other,
    ):
        second = replace(release, namespace=other)
        release.install(values)
        second.install(values)
        release.upgrade(values)
        found = release.cluster.items("configmap", shared, "grafana_dashboard=1")
        assert len(found) == 4
        second.uninstall()
        release.uninstall()


def test_everything_stands_in_another_namespace(release: Release) -> None:
    with release.cluster.namespace(f"{release.namespace}-b") as other:
        values: dict[str, Any] = {**QUICK, "namespaceOverride": other, "networkPolicy": {"enabled": True}}
        release.install(values)
        secret = _secret(release, other)
        release.upgrade({**values, "podAnnotations": {"a": "b"}})
        assert _secret(release, other) == secret
        release.test()
        for kind in ("deployment", "service", "secret", "networkpolicy", "pdb", "serviceaccount"):
            assert release.cluster.get(kind, NAME, other)
            with pytest.raises(RefusedError, match="not found"):
                release.cluster.get(kind, NAME, release.namespace)
        release.uninstall()


def test_every_convention_at_once_is_taken(release: Release) -> None:
    release.cluster.apply(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "of-tests"},
            "handler": "runc",
        }
    )
    values: dict[str, Any] = {
        **QUICK,
        "image": {"tag": 20261128},
        "imagePullSecrets": ["pull"],
        "podLabels": {"team": 5},
        "podAnnotations": {"port": 9090, "scrape": True},
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "runtimeClassName": "of-tests",
        "schedulerName": "default-scheduler",
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["redis.db"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": 2}]},
        "topologySpreadConstraints": [{"topologyKey": "kubernetes.io/hostname"}],
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "extraEnv": [{"name": "A", "value": 20261128}, {"name": "B", "value": True}],
        "resources": {"requests": {"cpu": 1, "memory": 536870912}},
        "service": {
            "type": "NodePort",
            "port": "8000",
            "labels": {"team": 5},
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "PreferDualStack",
        },
    }
    release.install(values)
    release.test()
    spec = release.cluster.get("deployment", NAME, release.namespace)["spec"]["template"]["spec"]
    assert spec["containers"][0]["image"] == "tidewire:20261128"
    assert spec["terminationGracePeriodSeconds"] == 175  # 5, 120, 15, and 35 for the last scrape
    assert release.cluster.get("service", NAME, release.namespace)["spec"]["ipFamilies"] == ["IPv4", "IPv6"]


def test_field_of_another_manager_conflicts_until_values_agree(release: Release) -> None:
    shared: Values = {**QUICK, "settings": {"broker": {"url": "redis://redis"}}}
    release.install({**shared, "replicas": 2})
    release.cluster.kubectl("scale", "deployment", NAME, "--replicas=4", "-n", release.namespace)
    if release.helm.major == 3:
        release.upgrade({**shared, "replicas": 2})
        return
    for _ in range(2):
        with pytest.raises(Refused, match=r"conflict.*\.spec\.replicas"):
            release.upgrade({**shared, "replicas": 3})
    release.upgrade({**shared, "replicas": 4})
    # Both own it now: equal values are no conflict, and others still are.
    release.upgrade({**shared, "replicas": 3}, "--force-conflicts")
    release.upgrade({**shared, "replicas": 2})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"clusterIP": "10.96.44.{}"}, {"clusterIP": "10.96.45.{}"}),
        ({}, {"ipFamilies": ["IPv6"], "ipFamilyPolicy": "SingleStack"}),
        (
            {"type": "LoadBalancer", "loadBalancerClass": "example.com/a"},
            {"type": "LoadBalancer", "loadBalancerClass": "example.com/b"},
        ),
    ],
    ids=["address", "family", "class"],
)
def test_immutable_service_field_is_refused_before_the_upgrade(release: Release, before: Values, after: Values) -> None:
    def service(fields: Values, text: str) -> Values:
        filled = {
            name: value.format(release.helm.major) if name == "clusterIP" else value for name, value in fields.items()
        }
        return {**QUICK, "service": filled, "contract": {"text": text}}

    release.install(service(before, "channels: {}"), wait=False)
    with pytest.raises(Refused, match="a Service cannot change it"):
        release.upgrade(service(after, "channels: {} # other"), wait=False)
    assert release.cluster.get("configmap", NAME, release.namespace)["data"]["contract.yaml"] == "channels: {}"
    release.upgrade(service(before, "channels: {} # other"), wait=False)


def _secret(release: Release, namespace: str) -> Document:
    found: Document = release.cluster.get("secret", NAME, namespace)["data"]
    return found


def _cutting(folder: Path) -> Path:
    """The chart as it was when it cut names off at 52 characters."""
    chart = shutil.copytree(CHART, folder / "tidewire")
    template = chart / "templates" / "_names.tpl"
    text = template.read_text(encoding="utf-8")
    valid = re.escape('{{- define "tidewire.isPlainName" -}}') + ".*?" + re.escape("{{- end -}}\n{{- end -}}\n")
    older, count = re.subn(valid, '{{- define "tidewire.isPlainName" -}}true{{- end -}}\n', text, flags=re.DOTALL)
    assert count == 1
    template.write_text(older, encoding="utf-8")
    return chart
