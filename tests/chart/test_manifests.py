"""What stands in k8s/ and in the notes is what the chart makes today."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.cli.check import load_all
from tests.chart.cases import REDIS, gateway, ingress
from tests.chart.conftest import absent, notes
from tests.chart.pod_security import breaches, pods
from tests.chart.pod_view import lay
from tests.chart.schemas import faults, has_schemas
from tests.chart.test_settings import GIVEN
from tests.chart.tools import CHART, KUBERNETES, ROOT, WHOLE, Document, Helm

pytestmark = pytest.mark.chart

MANIFESTS = ROOT / "k8s" / "manifests"
PLAIN = [
    *(ROOT / "k8s" / "local" / f"{name}.yaml" for name in ("valkey", "prometheus", "grafana")),
    ROOT / "k8s" / "loadtest" / "job.yaml",
]
DEADLINE = 60.0


def _documents(file: Path) -> list[Document]:
    return [document for document in yaml.safe_load_all(file.read_text(encoding="utf-8")) if document]


def test_manifests_equal_the_rendered_chart(helm: Helm, tmp_path: Path) -> None:
    fresh = tmp_path / "tidewire.yaml"
    subprocess.run(
        [ROOT / "scripts" / "render_manifests.sh", fresh],
        check=True,
        timeout=DEADLINE,
        env={**os.environ, "PATH": f"{helm.program.parent}:{os.environ['PATH']}"},
    )
    told = "k8s/manifests/tidewire.yaml differs from the chart; run scripts/render_manifests.sh"
    assert fresh.read_text(encoding="utf-8") == (MANIFESTS / "tidewire.yaml").read_text(encoding="utf-8"), told


def test_manifests_hold_no_credentials_and_start_a_service(tmp_path: Path) -> None:
    documents = _documents(MANIFESTS / "tidewire.yaml")
    assert "Secret" not in {document["kind"] for document in documents}
    secrets = {"tidewire-auth": GIVEN["auth"], "tidewire-api": GIVEN["api"]}
    contract = {"tidewire-contract": {"contract.yaml": (CHART / "files/contract.yaml").read_text(encoding="utf-8")}}
    view = lay(documents, tmp_path, {**secrets, **contract})
    settings, _ = load_all(view.config, view.environ)
    assert settings.broker.url == "redis://redis:6379"


@pytest.mark.parametrize("file", [MANIFESTS / "tidewire.yaml", *PLAIN], ids=lambda file: file.name)
def test_plain_manifests_are_good(file: Path) -> None:
    if not has_schemas(KUBERNETES[0]):
        absent("there are no schemas of Kubernetes")
    documents = _documents(file)
    for kubernetes in (KUBERNETES[1], KUBERNETES[-1]):
        told = [fault for one in documents for fault in faults({**one, **_placed(one)}, kubernetes)]
        assert not told, kubernetes
    for name, spec in pods(documents):
        assert not list(breaches(spec)), name


def _placed(document: Document) -> dict[str, Any]:
    """Metadata as an applied object has it."""
    return {"metadata": {"namespace": "default", **document["metadata"]}}


def test_manifests_are_accepted_by_kustomize() -> None:
    assert {d["metadata"].get("namespace") for d in _kustomized(MANIFESTS)} == {"tidewire"}


def test_load_test_includes_its_script() -> None:
    [job] = [d for d in _kustomized(ROOT / "k8s" / "loadtest") if d["kind"] == "Job"]
    [script] = [d for d in _kustomized(ROOT / "k8s" / "loadtest") if d["kind"] == "ConfigMap"]
    [volume] = job["spec"]["template"]["spec"]["volumes"]
    assert volume["configMap"]["name"] == script["metadata"]["name"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == f"{container['volumeMounts'][0]['mountPath']}/{next(iter(script['data']))}"


def _kustomized(folder: Path) -> list[Document]:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl here")
    done = subprocess.run(
        ["kubectl", "kustomize", folder], check=True, capture_output=True, text=True, timeout=DEADLINE
    )
    return [document for document in yaml.safe_load_all(done.stdout) if document]


# --- notes ------------------------------------------------------------------------------------------------------------


def test_notes_of_default_values_list_production_needs(helm: Helm) -> None:
    said = notes(helm, {})
    for sentence in (
        "Set settings.broker.url to a Redis, Valkey or NATS, then replicas to 2 or more.",
        "--set-file contract.text=contract.yaml",
        "name Secrets of your own",
        "enable ingress or gateway, with TLS",
        "enable networkPolicy",
        "enable serviceMonitor or podMonitor",
        """kubectl -n chat get secret rt-tidewire -o go-template='{{index .data "api-key" | base64decode}}'""",
    ):
        assert sentence in said


def _budget(**fields: int | str) -> dict[str, Any]:
    return {"podDisruptionBudget": fields}


def _pods(number: int) -> dict[str, Any]:
    return {"replicas": number, "settings": REDIS}


def _scaled(least: int) -> dict[str, Any]:
    return {"settings": REDIS, "autoscaling": {"hpa": {"enabled": True, "minReplicas": least}}}


BLOCKED = [
    _budget(minAvailable=1),
    {**_budget(minAvailable=3), **_pods(3)},
    {**_budget(minAvailable="100%"), **_pods(3)},
    {**_budget(minAvailable="67%"), **_pods(3)},
    {**_budget(minAvailable=2), **_scaled(2), "replicas": 5},
    {**_budget(maxUnavailable=0), **_pods(3)},
    {**_budget(maxUnavailable="0%"), **_pods(3)},
]
"""No pod may be evicted."""
FREE = [
    {},
    {**_budget(minAvailable=2), **_pods(3)},
    {**_budget(minAvailable="66%"), **_pods(3)},
    {**_budget(minAvailable=2), **_scaled(3)},
    {**_budget(maxUnavailable="1%"), **_pods(3)},
    {**_budget(minAvailable=1), "replicas": 0},
    {"podDisruptionBudget": {"enabled": False, "maxUnavailable": 0}},
]


@pytest.mark.parametrize("values", FREE if WHOLE else FREE[:3])
def test_notes_do_not_warn_about_a_working_drain(helm: Helm, values: dict[str, Any]) -> None:
    assert "a node drain hangs" not in notes(helm, values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (ingress("alb"), "preStopSeconds is 15: set it to 120 or more"),
        (gateway("aws"), "preStopSeconds is 15: set it to 120 or more"),
        (gateway("aws"), "set infrastructure.parametersRef to rt-tidewire (LoadBalancerConfiguration)"),
        (ingress("traefik"), "transport.respondingTimeouts"),
        (ingress("haproxytech"), "timeout-tunnel in the controller's ConfigMap"),
        (ingress("nginx"), "ingress-nginx is retired"),
        (ingress("nginx", sticky=True), "so settings.rollout.rebalance is off"),
        (ingress("nginx"), "The service trusts X-Forwarded-For from 1 hop(s)"),
        (
            {"networkPolicy": {"enabled": True}, "podMonitor": {"enabled": True}},
            "The NetworkPolicy lets only this namespace connect to port 9090: for a Prometheus elsewhere, set "
            "networkPolicy.opsFrom.",
        ),
        ({"extraArgs": ["--verbose"]}, "has no such arguments: its pods do not start"),
        (ingress("gce"), "ends every WebSocket after 86400 s"),
        *(
            (
                {**front, "networkPolicy": {"enabled": True}},
                f"set networkPolicy.opsFrom. The load balancer's addresses are {addresses}.",
            )
            for front, addresses in (
                (ingress("gce"), "35.191.0.0/16 and 130.211.0.0/22"),
                (gateway("gke"), "35.191.0.0/16 and 130.211.0.0/22"),
                (ingress("agic"), "those of Application Gateway's subnet"),
                (ingress("alb"), "those of its subnets"),
                (gateway("aws"), "those of its subnets"),
            )
        ),
        (
            {**gateway("gke"), "networkPolicy": {"enabled": True, "publicFrom": [{"podSelector": {}}]}},
            "networkPolicy.publicFrom must contain 35.191.0.0/16 and 130.211.0.0/22.",
        ),
        *((values, "WARNING: a node drain hangs: podDisruptionBudget.") for values in BLOCKED),
        (
            {"settings": {"limits": {"connections": 30_000}}},
            "drains faster than settings.rollout.drain_rate (200 a second), because settings.deadlines.shutdown is too short for "
            "that rate: set it to 200.",
        ),
    ],
)
def test_notes_list_what_the_chart_cannot_do(helm: Helm, values: dict[str, Any], sentence: str) -> None:
    assert sentence in notes(helm, values)


def test_notes_do_not_repeat_what_is_done(helm: Helm) -> None:
    assert "WARNING" not in notes(helm, {**ingress("alb"), "preStopSeconds": 120})
    done = {
        **ingress("f5-nginx"),
        "replicas": 2,
        "settings": {"broker": {"url": "redis://r"}},
        "contract": {"existingConfigMap": "c"},
        "secrets": {"authSecret": {"existingSecret": "a"}, "apiKey": {"existingSecret": "b"}},
        "networkPolicy": {"enabled": True, "opsFrom": [{"namespaceSelector": {}}]},
        "serviceMonitor": {"enabled": True},
    }
    assert "helm test -n chat rt About the proxy:" in notes(helm, done)
