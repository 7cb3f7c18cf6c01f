"""An older controller gets what it has and no more, and what follows from that is checked and said."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES, GATEWAYS, INGRESS_PRESETS, REDIS, gateway, ingress
from tests.chart.conftest import notes, rendered
from tests.chart.tools import CHART, Helm, Refused, Values, kinds, of_kind

pytestmark = pytest.mark.chart


def _of(implementation: str, version: Any, **more: Any) -> Values:
    return {"gateway": {**gateway(implementation)["gateway"], "implementationVersion": version}, **more}


def _keda(version: Any) -> Values:
    return {
        "autoscaling": {"keda": {**CASES["keda 2.16"]["autoscaling"]["keda"], "version": version}},
        "settings": REDIS,
    }


def test_each_preset_has_a_line_in_the_table_of_versions() -> None:
    told: Mapping[str, Mapping[str, Any]] = yaml.safe_load(
        (CHART / "files" / "versions.yaml").read_text(encoding="utf-8")
    )
    assert set(told["ingress"]) == set(INGRESS_PRESETS) - {""}
    assert set(told["gateway"]) == set(GATEWAYS) - {""}


# --- what is left out -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "http"),
    [
        ("1.7", {"requestTimeout": "0s"}),
        ("v1.7.5", {"requestTimeout": "0s"}),
        ("1.8", {"requestTimeout": "0s", "streamIdleTimeout": "3600s"}),
        ("1.10", {"requestTimeout": "0s", "streamIdleTimeout": "3600s"}),
    ],
)
def test_envoy_gateway_gets_idle_time_from_1_8_on(helm: Helm, version: str, http: Values) -> None:
    policy = of_kind(helm.template(_of("envoy-gateway", version)), "BackendTrafficPolicy")
    assert policy["spec"]["timeout"]["http"] == http


def test_ngf_gets_policy_from_2_4_and_its_timeout_from_2_6_on(helm: Helm) -> None:
    assert "ProxySettingsPolicy" not in kinds(rendered(helm, "gateway ngf 2.3"))
    policy = of_kind(rendered(helm, "gateway ngf 2.5"), "ProxySettingsPolicy")["spec"]
    assert policy["buffering"] == {"disable": True}
    assert "timeout" not in policy
    assert of_kind(helm.template(_of("ngf", "2.6")), "ProxySettingsPolicy")["spec"]["timeout"]


@pytest.mark.parametrize(
    ("version", "chosen", "api_version"),
    [
        ("2.17.1", "", "gateway.k8s.aws/v1beta1"),
        ("3.4", "", "gateway.k8s.aws/v1beta1"),
        ("3.5", "", "gateway.k8s.aws/v1"),
        ("", "", "gateway.k8s.aws/v1"),
        ("3.4", "gateway.k8s.aws/v1", "gateway.k8s.aws/v1"),
    ],
)
def test_aws_gets_v1_from_3_5_on(helm: Helm, version: str, chosen: str, api_version: str) -> None:
    values = _of("aws", version, stickySessions={"enabled": True})
    documents = helm.template({**values, "gateway": {**values["gateway"], "aws": {"apiVersion": chosen}}})
    own = {d["apiVersion"] for d in documents if d["apiVersion"].startswith("gateway.k8s.aws/")}
    assert own == {api_version}


def test_keda_gets_no_fallback_before_2_17(helm: Helm) -> None:
    assert "fallback" not in of_kind(rendered(helm, "keda 2.16"), "ScaledObject")["spec"]
    newer = of_kind(helm.template(_keda("2.17.0")), "ScaledObject")["spec"]
    assert newer["fallback"]["behavior"] == "currentReplicasIfHigher"


def test_f5_gets_the_sticky_annotation_of_plus_before_5_4(helm: Helm) -> None:
    names = {
        version: {
            name
            for name in of_kind(helm.template(values), "Ingress")["metadata"]["annotations"]
            if name.endswith("/sticky-cookie-services")
        }
        for version in ("5.3", "5.4")
        for values in [
            {
                "ingress": {**ingress("f5-nginx")["ingress"], "presetVersion": version},
                "stickySessions": {"enabled": True},
            }
        ]
    }
    assert names == {"5.3": {"nginx.com/sticky-cookie-services"}, "5.4": {"nginx.org/sticky-cookie-services"}}


# --- what is in force then --------------------------------------------------------------------------------------------


def _with_pings(heartbeat: float, idle: int = 3600) -> Values:
    return {"idleTimeout": idle, "settings": {"deadlines": {"heartbeat": heartbeat}}}


def test_pings_are_checked_against_the_idle_time_in_force(helm: Helm) -> None:
    # idleTimeout is not set where the controller takes none: 60 s of nginx stand.
    with pytest.raises(Refused, match=r"at gateway.implementation ngf \(60 s\)"):
        helm.template(_of("ngf", "2.5", **_with_pings(30)))
    helm.template(_of("ngf", "2.6", **_with_pings(30)))
    # Envoy Gateway turns the idle time off for a route whose request timeout is 0s.
    with pytest.raises(Refused, match=r"at gateway.implementation envoy-gateway \(50 s\)"):
        helm.template(_of("envoy-gateway", "1.8", **_with_pings(30, idle=50)))
    helm.template(_of("envoy-gateway", "1.7", **_with_pings(30, idle=50)))
    # With any other it is an hour or more.
    values = _of("envoy-gateway", "1.7", **_with_pings(1800))
    with pytest.raises(Refused, match=r"at gateway.implementation envoy-gateway \(3600 s\)"):
        helm.template({**values, "gateway": {**values["gateway"], "timeouts": {"request": "30s"}}})


@pytest.mark.parametrize(
    ("case", "missing", "newer"),
    [
        ("gateway envoy-gateway 1.7", "Envoy Gateway 1.7 has no idle timeout", _of("envoy-gateway", "1.8")),
        ("gateway ngf 2.5", "NGINX Gateway Fabric 2.5 has no idle timeout", _of("ngf", "2.6")),
        ("keda 2.16", "KEDA 2.16 has no fallback", _keda("2.17")),
        ("ingress f5-nginx 5.3 sticky", "need NGINX Plus with F5 NGINX Ingress Controller 5.3", ingress("f5-nginx")),
    ],
)
def test_notes_say_what_is_missing(helm: Helm, case: str, missing: str, newer: Values) -> None:
    assert missing in notes(helm, CASES[case])
    assert "About versions" not in notes(helm, newer)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (_of("envoy-gateway", 1.1), "gateway.implementationVersion (1.1) is a number, and YAML reads 1.10 as 1.1"),
        (_keda(2.2), "autoscaling.keda.version (2.2) is a number"),
        (
            _of("envoy-gateway", "1.1"),
            "gateway.implementationVersion (1.1): the chart's objects need Envoy Gateway 1.2",
        ),
        (_of("aws", "v2.13.4"), "the chart's objects need AWS Load Balancer Controller 2.14 or newer"),
        (
            _of("", "1.1"),
            "gateway.implementationVersion (1.1) is the version of gateway.implementation, which is empty",
        ),
        ({"ingress": {"enabled": True, "presetVersion": "5.3"}}, "ingress.presetVersion (5.3) is the version of the"),
        ({"ingress": {**ingress("agic")["ingress"], "presetVersion": "1.3"}}, "Ingress Controller 1.4 or newer"),
        (_of("envoy-gateway", "newest"), "gateway.implementationVersion (newest) is not a version: write it as"),
        (_of("aws", "3"), "gateway.implementationVersion (3) is not a version"),
        (_of("aws", "3.05"), "gateway.implementationVersion (3.05) is not a version"),
    ],
    ids=json.dumps,
)
def test_version_that_says_nothing_or_is_too_old_is_refused(helm: Helm, values: Values, sentence: str) -> None:
    with pytest.raises(Refused) as caught:
        helm.template(values)
    assert sentence in " ".join(str(caught.value).split())


def test_version_that_is_null_is_none(helm: Helm) -> None:
    nothing = _of("envoy-gateway", None, ingress={"presetVersion": None}, autoscaling={"keda": {"version": None}})
    policy = of_kind(helm.template(nothing), "BackendTrafficPolicy")
    assert policy["spec"]["timeout"]["http"]["streamIdleTimeout"] == "3600s"


@pytest.mark.parametrize("version", ["1.35.2-gke.1842000", "1.30", "v1.31.0"])
def test_versions_are_taken_as_the_cluster_names_them(helm: Helm, version: str) -> None:
    assert "GCPBackendPolicy" in kinds(helm.template(_of("gke", version)))
