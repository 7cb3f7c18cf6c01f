"""What the objects promise: time to drain, probes, presets, who is let in, what scales."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.chart.cases import CASES, REDIS, every_secret, gateway, ingress
from tests.chart.conftest import rendered
from tests.chart.tools import NAME, WHOLE, Document, Helm, kinds, of_kind

pytestmark = pytest.mark.chart


def _pod(documents: list[Document]) -> dict[str, Any]:
    spec: dict[str, Any] = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    return spec


def _annotations(document: Document) -> dict[str, str]:
    found: dict[str, str] = document["metadata"].get("annotations", {})
    return found


# --- the pod ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "grace"),
    [
        ({}, 185),
        ({"preStopSeconds": 120}, 290),
        ({"settings": {"deadlines": {"shutdown": 20.5}}}, 86),
        ({"settings": {"deadlines": {"last_scrape": 0}}}, 150),
        ({"settings": {"deadlines": {"last_scrape": 9.5}}}, 160),
        ({"serviceMonitor": {"enabled": True, "interval": "30s"}}, 185),
        ({"serviceMonitor": {"enabled": True, "interval": "1m30s"}}, 245),
        ({"podMonitor": {"enabled": True, "interval": "60s"}}, 215),
        ({"preStopSeconds": 0, "settings": {"deadlines": {"shutdown": None}}}, 70),  # the service's own 20 s
        ({"terminationGracePeriodSeconds": 150}, 150),
        ({"terminationGracePeriodSeconds": 600}, 600),
    ],
)
def test_grace_period_covers_the_drain(helm: Helm, values: dict[str, Any], grace: int) -> None:
    assert _pod(helm.template(values))["terminationGracePeriodSeconds"] == grace


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, None),
        ({"serviceMonitor": {"enabled": True}}, None),
        ({"serviceMonitor": {"enabled": True, "interval": "1m"}}, 65),
        ({"serviceMonitor": {"enabled": True, "interval": "1m"}, "settings": {"deadlines": {"last_scrape": 0}}}, 0),
    ],
    ids=["no monitor", "every 15 s", "every minute", "as set"],
)
def test_pod_waits_for_its_last_scrape_longer_than_the_interval(
    helm: Helm, values: dict[str, Any], seconds: float | None
) -> None:
    config = of_kind(helm.template(values), "ConfigMap")["data"]["settings.yaml"]
    assert yaml.safe_load(config)["deadlines"].get("last_scrape") == seconds


def test_pod_waits_for_proxies_before_it_stops(helm: Helm) -> None:
    hooks = [_pod(rendered(helm, "defaults", version))["containers"][0]["lifecycle"] for version in ("1.29", "1.30")]
    assert hooks[0] == {"preStop": {"exec": {"command": ["python3", "-c", "import time; time.sleep(15)"]}}}
    assert hooks[1] == {"preStop": {"sleep": {"seconds": 15}}}


def test_only_the_process_itself_is_a_reason_for_a_restart(helm: Helm) -> None:
    container = _pod(rendered(helm, "defaults"))["containers"][0]
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "ops"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "ops"}
    assert {"name": "ops", "containerPort": 9090, "protocol": "TCP"} in container["ports"]


@pytest.mark.parametrize("unready_after", [30, 120])
def test_startup_probe_outlasts_the_wait_for_the_broker(helm: Helm, unready_after: int) -> None:
    values = {"settings": {"broker": {"url": "redis://r", "unready_after": unready_after}}}
    probe = _pod(helm.template(values))["containers"][0]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= unready_after + 60


def test_only_settings_and_contract_changes_roll_out(helm: Helm) -> None:
    def marks(**values: Any) -> dict[str, str]:
        metadata = of_kind(helm.template(values), "Deployment")["spec"]["template"]["metadata"]
        found: dict[str, str] = metadata["annotations"]
        return found

    first = marks()
    assert marks() == first
    assert marks(podDisruptionBudget={"enabled": False}) == first
    assert marks(settings={"limits": {"batch": 50}}) != first
    assert marks(contract={"text": "channels: {}"}) != first


def test_pod_labels_have_no_chart_version(helm: Helm) -> None:
    labels = of_kind(rendered(helm, "defaults"), "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert "helm.sh/chart" not in labels


def test_services_lead_to_nodes_and_not_to_the_pods_of_tests(helm: Helm) -> None:
    documents = rendered(helm, "defaults")
    for suffix in ("", "-ops"):
        selector = of_kind(documents, "Service", suffix)["spec"]["selector"]
        assert selector.items() <= of_kind(documents, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
        assert not selector.items() <= of_kind(documents, "Pod", "-test-health")["metadata"]["labels"].items()


def test_credentials_of_ones_own_leave_no_secret_to_the_chart(helm: Helm) -> None:
    assert "Secret" not in kinds(helm.template(every_secret()))
    only_tokens = helm.template({"secrets": {"authSecret": {"existingSecret": "mine"}}})
    assert set(of_kind(only_tokens, "Secret")["data"]) == {"api-key"}


def test_test_pods_have_the_placement_of_pods(helm: Helm) -> None:
    required = {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "Exists"}]}]
        }
    }
    apart = {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}
    values = {
        "global": {"imageRegistry": "r.example.com:5000", "imagePullSecrets": [{"name": "all"}, "own"]},
        "image": {"registry": "ghcr.io", "repository": "docker.io/org/tidewire", "tag": 20261128},
        "imagePullSecrets": ["own"],
        "automountServiceAccountToken": True,
        "priorityClassName": "high",
        "runtimeClassName": "gvisor",
        "schedulerName": "volcano",
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["redis.db"]}],
        "dnsPolicy": "None",
        "dnsConfig": {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": 2}]},
        "nodeSelector": {"gpu": False, "pool": 7},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"nodeAffinity": required, "podAntiAffinity": apart},
        "podLabels": {"team": 5},
        "podAnnotations": {"sidecar.istio.io/inject": False},
        "tests": {"resources": {"limits": {"cpu": 1}}},
    }
    documents = helm.template(values)
    template = of_kind(documents, "Deployment")["spec"]["template"]
    test = of_kind(documents, "Pod", "-test-health")
    for pod in (template, test):
        spec = pod["spec"]
        assert spec["containers"][0]["image"] == "r.example.com:5000/org/tidewire:20261128"
        assert spec["imagePullSecrets"] == [{"name": "all"}, {"name": "own"}]
        assert spec["automountServiceAccountToken"] is True
        assert spec["priorityClassName"] == "high"
        assert spec["runtimeClassName"] == "gvisor"
        assert spec["schedulerName"] == "volcano"
        assert spec["hostAliases"] == values["hostAliases"]
        assert spec["dnsPolicy"] == "None"
        assert spec["dnsConfig"] == {"nameservers": ["10.0.0.10"], "options": [{"name": "ndots", "value": "2"}]}
        assert spec["nodeSelector"] == {"gpu": "false", "pool": "7"}
        assert spec["tolerations"] == [{"operator": "Exists"}]
        assert spec["affinity"]["nodeAffinity"] == required
        assert pod["metadata"]["labels"]["team"] == "5"
        assert pod["metadata"]["annotations"]["sidecar.istio.io/inject"] == "false"
    assert template["spec"]["affinity"]["podAntiAffinity"] == apart
    # A test keeps no distance: on as many nodes as pods it would find no place.
    assert "podAntiAffinity" not in test["spec"]["affinity"]
    assert test["metadata"]["labels"]["app.kubernetes.io/component"] == "test"
    assert test["spec"]["containers"][0]["resources"] == {
        "requests": {"cpu": "100m", "memory": "64Mi"},
        "limits": {"cpu": "1", "memory": "256Mi"},
    }


@pytest.mark.parametrize(
    ("image", "shared", "wanted"),
    [
        ({"registry": "ghcr.io"}, "", "ghcr.io/tidewire:0.1.0"),
        ({"registry": "ghcr.io/org/", "repository": "localhost/tidewire"}, "", "ghcr.io/org/tidewire:0.1.0"),
        ({"repository": "org/tidewire"}, "r.example.com", "r.example.com/org/tidewire:0.1.0"),
        ({"repository": "r.test:5000/org/tidewire", "tag": "1.10"}, None, "r.test:5000/org/tidewire:1.10"),
    ],
)
def test_image_registry_follows_precedence(helm: Helm, image: dict[str, str], shared: str | None, wanted: str) -> None:
    documents = helm.template({"image": image, "global": {"imageRegistry": shared}})
    assert _pod(documents)["containers"][0]["image"] == wanted


def test_hooks_arguments_and_constraints_follow_the_values(helm: Helm) -> None:
    command = {"exec": {"command": ["sleep", "20"]}}
    own = {"topologyKey": "rack", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
    documents = helm.template(
        {
            "lifecycle": {"postStart": {"exec": {"command": ["true"]}}, "preStop": command},
            "preStopSeconds": 20,
            "extraArgs": ["--log", 5],
            "topologySpreadConstraints": [{"topologyKey": "zone"}, own],
            "extraEnv": [{"name": "NUMBER", "value": 20261128}, {"name": "SWITCH", "value": True}],
            "resources": {"requests": {"cpu": 1, "memory": 536870912}},
        }
    )
    pod = _pod(documents)
    [container] = pod["containers"]
    assert container["lifecycle"]["preStop"] == command
    assert set(container["lifecycle"]) == {"preStop", "postStart"}
    assert pod["terminationGracePeriodSeconds"] >= 20 + 120 + 15
    assert container["args"] == ["--log", "5"]
    first, second = pod["topologySpreadConstraints"]
    selector = of_kind(documents, "Deployment")["spec"]["selector"]
    assert first["labelSelector"] == selector
    assert (first["maxSkew"], first["whenUnsatisfiable"]) == (1, "ScheduleAnyway")
    assert second == own
    assert {"name": "NUMBER", "value": "20261128"} in container["env"]
    assert {"name": "SWITCH", "value": "true"} in container["env"]
    assert container["resources"]["requests"] == {"cpu": "1", "memory": "536870912"}


def test_custom_sleep_counts_in_the_grace_period(helm: Helm) -> None:
    pod = _pod(helm.template({"lifecycle": {"preStop": {"sleep": {"seconds": 300}}}}))
    assert pod["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 300}}}
    assert pod["terminationGracePeriodSeconds"] >= 300 + 120 + 15


def test_service_fields_follow_the_values(helm: Helm) -> None:
    families = {"ipFamilies": ["IPv6", "IPv4"], "ipFamilyPolicy": "RequireDualStack"}
    documents = helm.template(
        {
            "service": {
                "type": "LoadBalancer",
                "port": "8080",
                "nodePort": "30080",
                "clusterIP": "fd00::7",
                "loadBalancerIP": "203.0.113.7",
                "loadBalancerSourceRanges": ["203.0.113.0/24"],
                "labels": {"team": 5},
                **families,
            }
        }
    )
    service = of_kind(documents, "Service")
    assert service["metadata"]["labels"]["team"] == "5"
    assert (
        service["spec"].items()
        >= {
            "clusterIP": "fd00::7",
            "loadBalancerIP": "203.0.113.7",
            "loadBalancerSourceRanges": ["203.0.113.0/24"],
            **families,
        }.items()
    )
    assert service["spec"]["ports"][0].items() >= {"port": 8080, "nodePort": 30080}.items()
    assert of_kind(documents, "Service", "-ops")["spec"].items() >= families.items()


def test_everything_moves_to_the_namespace_that_is_named(helm: Helm) -> None:
    values = {
        "namespaceOverride": "realtime",
        "settings": REDIS,
        "autoscaling": {"keda": {"enabled": True, "prometheusAddress": "http://p"}},
        "dashboards": {"enabled": True},
        "podMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "networkPolicy": {"enabled": True},
        "ingress": {"enabled": True},
    }
    documents = helm.template(values)
    assert {document["metadata"]["namespace"] for document in documents} == {"realtime"}
    for document in documents:
        assert "chat" not in yaml.safe_dump({**document, "metadata": {}, "data": {}}).replace("chat.message", ""), (
            document
        )


# --- proxies ----------------------------------------------------------------------------------------------------------


INGRESS_SAYS = {
    "nginx": {
        "nginx.ingress.kubernetes.io/proxy-read-timeout": "3600",
        "nginx.ingress.kubernetes.io/proxy-send-timeout": "3600",
        "nginx.ingress.kubernetes.io/proxy-buffering": "off",
    },
    "f5-nginx": {
        "nginx.org/websocket-services": NAME,
        "nginx.org/proxy-read-timeout": "3600s",
        "nginx.org/proxy-send-timeout": "3600s",
        "nginx.org/proxy-buffering": "False",
    },
    "traefik": {},
    "haproxytech": {},
    "jcmoraisjr": {
        "haproxy-ingress.github.io/timeout-tunnel": "3600s",
        "haproxy-ingress.github.io/timeout-server": "3600s",
    },
    "alb": {
        "alb.ingress.kubernetes.io/target-type": "ip",
        "alb.ingress.kubernetes.io/load-balancer-attributes": "idle_timeout.timeout_seconds=3600",
        "alb.ingress.kubernetes.io/target-group-attributes": "deregistration_delay.timeout_seconds=180",
        "alb.ingress.kubernetes.io/healthcheck-path": "/readyz",
        "alb.ingress.kubernetes.io/healthcheck-port": "9090",
    },
    "agic": {
        "appgw.ingress.kubernetes.io/request-timeout": "3600",
        "appgw.ingress.kubernetes.io/connection-draining": "true",
        "appgw.ingress.kubernetes.io/connection-draining-timeout": "180",
        "appgw.ingress.kubernetes.io/health-probe-path": "/readyz",
        "appgw.ingress.kubernetes.io/health-probe-port": "9090",
    },
    "gce": {},
}
STICKY_SAYS = {
    "nginx": {
        "nginx.ingress.kubernetes.io/affinity": "cookie",
        "nginx.ingress.kubernetes.io/affinity-mode": "persistent",
        "nginx.ingress.kubernetes.io/session-cookie-name": "tidewire-pod",
        "nginx.ingress.kubernetes.io/session-cookie-max-age": "3600",
    },
    "f5-nginx": {"nginx.org/sticky-cookie-services": f"serviceName={NAME} tidewire-pod expires=3600s path=/"},
    "jcmoraisjr": {
        "haproxy-ingress.github.io/affinity": "cookie",
        "haproxy-ingress.github.io/session-cookie-name": "tidewire-pod",
    },
    "alb": {
        "alb.ingress.kubernetes.io/target-group-attributes": "deregistration_delay.timeout_seconds=180,"
        "stickiness.enabled=true,stickiness.type=lb_cookie,stickiness.lb_cookie.duration_seconds=3600",
    },
    "agic": {"appgw.ingress.kubernetes.io/cookie-based-affinity": "true"},
}
SERVICE_SAYS = {
    "haproxytech": {"haproxy.org/load-balance": "leastconn"},
    "gce": {
        "cloud.google.com/neg": '{"ingress":true}',
        "cloud.google.com/backend-config": f'{{"default":"{NAME}"}}',
    },
}
SERVICE_STICKY_SAYS = {
    "traefik": {
        "traefik.ingress.kubernetes.io/service.sticky.cookie": "true",
        "traefik.ingress.kubernetes.io/service.sticky.cookie.name": "tidewire-pod",
        "traefik.ingress.kubernetes.io/service.sticky.cookie.httponly": "true",
    },
    "haproxytech": {"haproxy.org/cookie-persistence": "tidewire-pod"},
}


@pytest.mark.parametrize(
    "sticky", [False, True] if WHOLE else [True], ids=lambda sticky: "sticky" if sticky else "plain"
)
@pytest.mark.parametrize("preset", INGRESS_SAYS)
def test_ingress_annotations_follow_the_controller(helm: Helm, preset: str, sticky: bool) -> None:
    documents = rendered(helm, f"ingress {preset}{' sticky' if sticky else ''}")
    wanted = INGRESS_SAYS[preset] | (STICKY_SAYS.get(preset, {}) if sticky else {})
    assert _annotations(of_kind(documents, "Ingress")) == wanted
    wanted = SERVICE_SAYS.get(preset, {}) | (SERVICE_STICKY_SAYS.get(preset, {}) if sticky else {})
    assert _annotations(of_kind(documents, "Service")) == wanted


def test_every_preset_can_be_sticky_somewhere() -> None:
    said = STICKY_SAYS.keys() | SERVICE_STICKY_SAYS.keys() | {"gce"}  # BackendConfig, below
    assert said == INGRESS_SAYS.keys()


def test_ingress_routes_only_public_paths(helm: Helm) -> None:
    rules = of_kind(rendered(helm, "ingress nginx"), "Ingress")["spec"]["rules"]
    assert [rule["host"] for rule in rules] == ["rt.example.com", "rt.example.org"]
    for rule in rules:
        assert [path["path"] for path in rule["http"]["paths"]] == [
            "/ws",
            "/stream",
            "/sse",
            "/poll",
            "/emit",
            "/call",
            "/history",
            "/tickets",
        ]
    routes = of_kind(rendered(helm, "gateway istio"), "HTTPRoute")["spec"]["rules"]
    assert [match["path"]["value"] for match in routes[0]["matches"]] == [
        "/ws",
        "/stream",
        "/sse",
        "/poll",
        "/emit",
        "/call",
        "/history",
        "/tickets",
    ]


def test_annotations_of_ones_own_win(helm: Helm) -> None:
    values = ingress("nginx")
    mine = {"nginx.ingress.kubernetes.io/proxy-read-timeout": "7200"}
    found = helm.template({**values, "ingress": {**values["ingress"], "annotations": mine}})
    assert _annotations(of_kind(found, "Ingress"))["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "7200"


def test_contour_gets_a_proxy_for_each_host(helm: Helm) -> None:
    documents = rendered(helm, "ingress contour sticky")
    assert "Ingress" not in kinds(documents)
    first, second = of_kind(documents, "HTTPProxy"), of_kind(documents, "HTTPProxy", "-1")
    assert first["spec"]["virtualhost"] == {"fqdn": "rt.example.com", "tls": {"secretName": "rt-tls"}}
    assert second["spec"]["virtualhost"] == {"fqdn": "rt.example.org"}
    for route in first["spec"]["routes"]:
        assert route["enableWebsockets"] is True
        assert route["timeoutPolicy"] == {"response": "infinity", "idle": "infinity"}
        assert route["loadBalancerPolicy"] == {"strategy": "Cookie"}


def test_google_gets_a_day_a_connection(helm: Helm) -> None:
    spec = of_kind(rendered(helm, "ingress gce sticky"), "BackendConfig")["spec"]
    assert spec["timeoutSec"] == 86400
    assert spec["sessionAffinity"] == {"affinityType": "GENERATED_COOKIE", "affinityCookieTtlSec": 3600}
    policy = of_kind(rendered(helm, "gateway gke sticky"), "GCPBackendPolicy")["spec"]["default"]
    assert policy["timeoutSec"] == 86400
    assert policy["sessionAffinity"] == {"type": "GENERATED_COOKIE", "cookieTtlSec": 3600}


@pytest.mark.parametrize("implementation", ["istio", "envoy-gateway", "cilium"])
def test_route_timeouts_are_set_where_supported(helm: Helm, implementation: str) -> None:
    documents = rendered(helm, f"gateway {implementation}")
    assert of_kind(documents, "HTTPRoute")["spec"]["rules"][0]["timeouts"] == {"request": "0s"}
    assert of_kind(documents, "Service")["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/ws"


@pytest.mark.parametrize("implementation", ["plain", "traefik", "ngf", "gke", "aws"])
def test_route_timeouts_are_absent_where_rejected_or_ignored(helm: Helm, implementation: str) -> None:
    documents = rendered(helm, f"gateway {implementation}")
    assert "timeouts" not in of_kind(documents, "HTTPRoute")["spec"]["rules"][0]
    assert "appProtocol" not in of_kind(documents, "Service")["spec"]["ports"][0]


def test_gateway_policies_have_idle_times_and_cookies(helm: Helm) -> None:
    envoy = of_kind(rendered(helm, "gateway envoy-gateway sticky"), "BackendTrafficPolicy")["spec"]
    assert envoy["timeout"] == {"http": {"requestTimeout": "0s", "streamIdleTimeout": "3600s"}}
    assert envoy["loadBalancer"]["consistentHash"]["cookie"] == {"name": "tidewire-pod", "ttl": "3600s"}
    nginx = of_kind(rendered(helm, "gateway ngf"), "ProxySettingsPolicy")["spec"]
    assert nginx["timeout"] == {"read": "3600s", "send": "3600s"}
    istio = of_kind(rendered(helm, "gateway istio sticky"), "DestinationRule")["spec"]["trafficPolicy"]
    assert istio["loadBalancer"]["consistentHash"]["httpCookie"] == {"name": "tidewire-pod", "ttl": "3600s"}
    made = rendered(helm, "gateway created")
    parameters = of_kind(made, "Gateway")["spec"]["infrastructure"]["parametersRef"]
    assert of_kind(made, parameters["kind"])["spec"]["loadBalancerAttributes"] == [
        {"key": "idle_timeout.timeout_seconds", "value": "3600"}
    ]
    assert of_kind(made, "HTTPRoute")["spec"]["parentRefs"] == [{"name": NAME}]
    sticky = rendered(helm, "gateway aws sticky")
    [chosen] = of_kind(sticky, "HTTPRoute")["spec"]["rules"][0]["filters"]
    assert of_kind(sticky, chosen["extensionRef"]["kind"])["metadata"]["name"] == chosen["extensionRef"]["name"]


def test_listener_port_may_be_text(helm: Helm) -> None:
    listeners = [{"name": "a", "port": "8080", "protocol": "HTTP"}]
    create = {"enabled": True, "className": "a", "listeners": listeners}
    made = of_kind(helm.template({"gateway": {"enabled": True, "create": create}}), "Gateway")
    assert made["spec"]["listeners"] == [{"name": "a", "port": 8080, "protocol": "HTTP"}]


def test_session_persistence_goes_in_as_it_is(helm: Helm) -> None:
    rule = of_kind(rendered(helm, "gateway session persistence"), "HTTPRoute")["spec"]["rules"][0]
    assert rule["sessionPersistence"] == {"sessionName": "pod", "type": "Cookie"}
    assert "sessionPersistence" not in of_kind(rendered(helm, "gateway istio"), "HTTPRoute")["spec"]["rules"][0]


def test_proxy_hops_default_to_one(helm: Helm) -> None:
    for values, hops in (
        ({}, None),
        (ingress("nginx"), 1),
        (gateway("istio"), 1),
        ({**ingress("nginx"), "settings": {"proxy": {"hops": 2}}}, 2),
    ):
        settings = yaml.safe_load(of_kind(helm.template(values), "ConfigMap")["data"]["settings.yaml"])
        assert settings.get("proxy", {}).get("hops") == hops


# --- scaling ----------------------------------------------------------------------------------------------------------


UP_QUICKLY = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 60},
        {"type": "Pods", "value": 4, "periodSeconds": 60},
    ],
}
DOWN_SLOWLY = {
    "stabilizationWindowSeconds": 1800,
    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 300}],
}


def test_hpa_scales_by_cpu_and_connections(helm: Helm) -> None:
    documents = rendered(helm, "hpa")
    spec = of_kind(documents, "HorizontalPodAutoscaler")["spec"]
    assert spec["behavior"] == {"scaleUp": UP_QUICKLY, "scaleDown": DOWN_SLOWLY}
    cpu, connections = spec["metrics"]
    assert cpu["resource"]["target"] == {"type": "Utilization", "averageUtilization": 70}
    assert connections["pods"]["metric"] == {"name": "tidewire_connections"}
    assert connections["pods"]["target"] == {"type": "AverageValue", "averageValue": "10500"}


def test_keda_never_scales_in_on_missing_data(helm: Helm) -> None:
    documents = rendered(helm, "keda")
    spec = of_kind(documents, "ScaledObject")["spec"]
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 2, "behavior": "currentReplicasIfHigher"}
    prometheus = spec["triggers"][0]
    assert prometheus["metricType"] == "AverageValue"
    assert prometheus["metadata"]["ignoreNullValues"] == "false"
    assert prometheus["metadata"]["threshold"] == "10500"
    assert (
        prometheus["metadata"]["query"]
        == f'sum(tidewire_connections{{namespace="chat",pod=~"{NAME}-[a-z0-9]+-[a-z0-9]+"}})'
    )
    assert spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"] == DOWN_SLOWLY


@pytest.mark.parametrize("case", ["hpa", "keda"])
@pytest.mark.parametrize(("live", "replicas"), [(0, 2), (1, 2), (7, 7)])
def test_render_without_a_cluster_uses_live_replicas(helm: Helm, case: str, live: int, replicas: int) -> None:
    values = CASES[case]
    documents = helm.template({**values, "autoscaling": {**values["autoscaling"], "liveReplicas": live}})
    assert of_kind(documents, "Deployment")["spec"]["replicas"] == replicas


def test_connections_to_scale_by_follow_the_services_bound(helm: Helm) -> None:
    values = {
        "autoscaling": {"hpa": {"enabled": True, "connections": {"enabled": True}}, "connectionsUtilization": 50},
        "settings": {**REDIS, "limits": {"connections": 1_000_001}},
    }
    metric = of_kind(helm.template(values), "HorizontalPodAutoscaler")["spec"]["metrics"][1]
    assert metric["pods"]["target"]["averageValue"] == "500000"


# --- who is let in, who scrapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "ports"),
    [
        ("memory://", []),
        ("redis://redis.db", [6379]),
        ("redis://redis.db:7000/2", [7000]),
        ("redis+sentinel://s1,s2/main", [26379, 6379]),
        ("rediss+sentinel://s1:27000,s2:27001/main", [27000, 27001, 6379]),
        ("rediss+sentinel://s1:27000,s2/main", [27000, 26379, 6379]),
        ("redis+cluster://r1:7000,r2:7001", [7000, 7001]),
        ("redis+cluster://r1:7000,r2", [7000, 6379]),
        ("redis://[fd00:10::5]:7000/2", [7000]),
        ("redis://[fd00:10::5]", [6379]),
        ("nats://n1,n2", [4222]),
        ("tls://n1:4333", [4333]),
    ],
)
def test_pods_reach_their_broker(helm: Helm, url: str, ports: list[int]) -> None:
    documents = helm.template({"networkPolicy": {"enabled": True}, "settings": {"broker": {"url": url}}})
    egress = of_kind(documents, "NetworkPolicy")["spec"]["egress"]
    found = [port["port"] for rule in egress for port in rule["ports"] if port["port"] not in (53, 443)]
    assert sorted(found) == sorted(ports)


def test_pods_reach_the_keys_of_their_issuers(helm: Helm) -> None:
    def issuer(address: str) -> dict[str, str]:
        return {"issuer": address, "audience": "a", "algorithm": "RS256", "jwks_url": address}

    addresses = (
        "https://a.test/keys:1",
        "https://b.test:8443/keys",
        "https://[2001:db8::1]:9443/keys",
        "https://c.test:8443",
    )
    settings = {"auth": {"issuers": [issuer(address) for address in addresses]}}
    documents = helm.template({"networkPolicy": {"enabled": True}, "settings": settings})
    last = of_kind(documents, "NetworkPolicy")["spec"]["egress"][-1]
    assert last == {"ports": [{"port": port, "protocol": "TCP"} for port in (443, 8443, 9443)]}


def test_pods_reach_the_hooks_of_their_backend(helm: Helm) -> None:
    addresses = ("https://a.test/x", "http://b.test", "http://c.shop.svc:3000/hooks:1", "https://[2001:db8::1]:9443")
    file = "/etc/tidewire/hooks/a"
    endpoints = [
        {"name": f"e{n}", "url": address, "tenants": ["default"], "secrets_file": file}
        for n, address in enumerate(addresses)
    ]
    values = {
        "networkPolicy": {"enabled": True},
        "settings": {"hooks": {"endpoints": endpoints}},
        "secrets": {"hooks": {"existingSecret": "hooks"}},
    }
    documents = helm.template(values)
    last = of_kind(documents, "NetworkPolicy")["spec"]["egress"][-1]
    assert last == {"ports": [{"port": port, "protocol": "TCP"} for port in (443, 80, 3000, 9443)]}
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "hooks", "mountPath": "/etc/tidewire/hooks", "readOnly": True} in pod["containers"][0][
        "volumeMounts"
    ]
    assert {"name": "hooks", "secret": {"secretName": "hooks", "defaultMode": 0o440}} in pod["volumes"]


def test_pods_reach_the_receivers_of_webhooks(helm: Helm) -> None:
    documents = rendered(helm, "webhooks")
    last = of_kind(documents, "NetworkPolicy")["spec"]["egress"][-1]
    assert last == {"ports": [{"port": port, "protocol": "TCP"} for port in (443, 3000)]}
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    mount = {"name": "webhooks", "mountPath": "/etc/tidewire/webhooks", "readOnly": True}
    assert mount in pod["containers"][0]["volumeMounts"]
    assert {"name": "webhooks", "secret": {"secretName": "webhooks", "defaultMode": 0o440}} in pod["volumes"]


def test_only_those_named_reach_the_ops_port(helm: Helm) -> None:
    policy = of_kind(rendered(helm, "network policy, memory"), "NetworkPolicy")["spec"]
    public, ops = policy["ingress"]
    assert public == {"ports": [{"port": "http", "protocol": "TCP"}]}
    assert ops == {"ports": [{"port": "ops", "protocol": "TCP"}], "from": [{"podSelector": {}}]}
    named = of_kind(rendered(helm, "network policy"), "NetworkPolicy")["spec"]
    # The pods of `helm test` need no naming.
    tests = of_kind(rendered(helm, "network policy"), "Pod", "-test-health")["metadata"]["labels"]
    for rule in named["ingress"][:2]:
        first, second = rule["from"]
        assert "namespaceSelector" in first
        assert second["podSelector"]["matchLabels"].items() <= tests.items()
    assert named["egress"][1]["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}]


def test_prometheus_finds_the_ops_service_and_only_that(helm: Helm) -> None:
    documents = rendered(helm, "service monitor")
    monitor = of_kind(documents, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [d for d in documents if d["kind"] == "Service" and wanted <= d["metadata"]["labels"].items()]
    assert [service["metadata"]["name"] for service in services] == [f"{NAME}-ops"]
    assert monitor["spec"]["endpoints"][0]["port"] == services[0]["spec"]["ports"][0]["name"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
