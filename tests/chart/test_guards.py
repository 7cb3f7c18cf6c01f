"""Values that cannot work are refused before anything is made, with a sentence that says what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.chart.cases import REDIS, gateway, ingress
from tests.chart.conftest import rendered
from tests.chart.tools import CHART, WHOLE, Helm, Refused, Values, helms, of_kind

ENDPOINT = {"name": "a", "url": "https://a.test", "tenants": ["default"]}

pytestmark = pytest.mark.chart


def _with_timeouts(implementation: str) -> Values:
    route = gateway(implementation)["gateway"]
    return {"gateway": {**route, "timeouts": {"request": "0s"}}}


GUARDS: dict[str, tuple[Values, str]] = {
    "two pods, one memory": (
        {"replicas": 2},
        "2 pods need a broker that they share, and memory:// belongs to one pod: set settings.broker.url to redis://",
    ),
    "an autoscaler, one memory": (
        {"autoscaling": {"hpa": {"enabled": True}}},
        "10 pods need a broker that they share",
    ),
    "two autoscalers": (
        {
            "autoscaling": {"hpa": {"enabled": True}, "keda": {"enabled": True, "prometheusAddress": "http://p"}},
            "settings": REDIS,
        },
        "would both scale the same pods: enable one",
    ),
    "fewer than least": (
        {"autoscaling": {"hpa": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}, "settings": REDIS},
        "autoscaling.hpa: minReplicas (5) is above maxReplicas (4)",
    ),
    "KEDA with nobody to ask": (
        {"autoscaling": {"keda": {"enabled": True}}, "settings": REDIS},
        "set autoscaling.keda.prometheusAddress",
    ),
    "KEDA with half an address": (
        {"autoscaling": {"keda": {"enabled": True, "prometheusAddress": "prometheus:9090"}}, "settings": REDIS},
        "autoscaling.keda.prometheusAddress (prometheus:9090) is not a URL: begin it with http:// or https://",
    ),
    "a tag in the repository": (
        {"image": {"repository": "registry.test:5000/tidewire:1.0"}},
        "image.repository (registry.test:5000/tidewire:1.0) holds a tag or digest: put that into image.tag or image.digest",
    ),
    "a digest in the repository": (
        {"image": {"repository": "registry.test/tidewire@sha256:0"}},
        "holds a tag or digest: put that into image.tag or image.digest",
    ),
    "a grace that kills": (
        {"terminationGracePeriodSeconds": 149},
        "terminationGracePeriodSeconds (149) would kill a pod before its drain ends: set it to 150 or more, the sum of "
        "preStopSeconds (15), settings.deadlines.shutdown (120) and 15, or to 0",
    ),
    "an age that is a storm": (
        {"settings": {"rollout": {"max_age": 60}}},
        "settings.rollout.max_age (60 s) would move more connections a second from a full pod (settings.limits.connections: "
        "15000) than a drain does (settings.rollout.drain_rate: 200): set it to 100 or more, or to 0",
    ),
    "a drain that the others refuse": (
        {"settings": {"rollout": {"drain_rate": 300, "accept_rate": {"per_second": 250, "burst": 250}}}},
        "settings.rollout.drain_rate (300) is above settings.rollout.accept_rate.per_second (250): one of two pods would",
    ),
    "a ping that races nginx": (
        {**ingress("nginx"), "idleTimeout": 60, "settings": {"deadlines": {"heartbeat": 30}}},
        "settings.deadlines.heartbeat (30 s) is not below half of the idle timeout at ingress.preset nginx (60 s)",
    ),
    "a ping that races Traefik's own": (
        {**ingress("traefik"), "settings": {"deadlines": {"heartbeat": 90}}},
        "at ingress.preset traefik (180 s)",
    ),
    "a ping that races Envoy's own": (
        {**gateway("istio"), "settings": {"deadlines": {"heartbeat": 150.5}}},
        "at gateway.implementation istio (300 s)",
    ),
    "a ping that races a further hop": (
        {"idleTimeouts": {"cloudflare": 100, "office": 50}},
        "at idleTimeouts.office (50 s)",
    ),
    "timeouts that GKE rejects": (
        _with_timeouts("gke"),
        "GKE rejects a route with timeouts: leave them empty, the preset sets timeoutSec in a GCPBackendPolicy",
    ),
    "timeouts that Traefik ignores": (
        _with_timeouts("traefik"),
        "traefik silently ignores the timeouts of a route",
    ),
    "timeouts that NGF ignores": (
        _with_timeouts("ngf"),
        "ngf silently ignores the timeouts of a route",
    ),
    "cookies that lead back": (
        {**ingress("nginx", sticky=True), "settings": {"rollout": {"rebalance": True}}},
        "sticky sessions would route clients back to the pod that asks them to leave",
    ),
    "a cookie that Cilium has not": (gateway("cilium", sticky=True), 'no policy for gateway.implementation "cilium"'),
    "a cookie of nobody's": (
        ingress("", sticky=True),
        "they are configured differently for each controller: set ingress.preset",
    ),
    "a condition that is text": ({"enabled": "false"}, 'enabled is the text "false"'),
    "a route to nowhere": ({"gateway": {"enabled": True}}, "the route has no Gateway: set gateway.parentRefs"),
    "a Gateway without a class": (
        {"gateway": {"enabled": True, "create": {"enabled": True}}},
        "set gateway.create.className",
    ),
    "a Gateway without a route": (
        {"gateway": {"create": {"enabled": True, "className": "x"}}},
        "gateway.create.enabled has no effect while gateway.enabled is false",
    ),
    "Contour without hosts": ({"ingress": {"enabled": True, "preset": "contour"}}, "ingress.hosts is empty"),
    "a secret in a ConfigMap": (
        {"settings": {"auth": {"secret": "0123456789abcdef0123456789abcdef"}}},
        "settings.auth.secret would be readable in a ConfigMap: put it into a Secret, and set "
        "secrets.authSecret.existingSecret to the Secret's name",
    ),
    "secrets of addresses in a ConfigMap": (
        {"settings": {"auth": {"page_secrets": ["x"]}}},
        "settings.auth.page_secrets would be readable in a ConfigMap: put it into a Secret, and set the variable "
        "TIDEWIRE_AUTH__PAGE_SECRETS from it in extraEnv",
    ),
    "keys in a ConfigMap": (
        {"settings": {"api": {"keys": [{"name": "a", "tenant": "b", "key": "c"}]}}},
        "set secrets.apiKeys.existingSecret to the Secret's name",
    ),
    "a password in a ConfigMap": (
        {"settings": {"broker": {"password": "x"}}},
        "set secrets.brokerPassword.existingSecret to the Secret's name",
    ),
    "a password in the broker's address": (
        {"settings": {"broker": {"url": "redis://:hunter2@redis.db:6379"}}},
        "settings.broker.url holds a user or password, which would be readable in a ConfigMap: set the user in "
        "settings.broker.user, put the password into a Secret, and set secrets.brokerPassword.existingSecret to the Secret's "
        "name",
    ),
    "an authority for a broker without TLS": (
        {"settings": REDIS, "secrets": {"brokerCa": {"existingSecret": "a"}}},
        "secrets.brokerCa and secrets.brokerClient need TLS, which settings.broker.url does not use: begin it with rediss "
        "(Redis, Valkey) or tls (NATS), or leave the secrets out",
    ),
    "a certificate for a broker without TLS": (
        {"settings": {"broker": {"url": "nats://n1"}}, "secrets": {"brokerClient": {"existingSecret": "a"}}},
        "begin it with rediss (Redis, Valkey) or tls (NATS), or leave the secrets out",
    ),
    "an address without a scheme": (
        {"settings": {"broker": {"url": "redis.db:6379"}}},
        "settings.broker.url is not a broker URL: begin it with memory://, redis://, redis+sentinel://, redis+cluster:// "
        "(rediss instead of redis for TLS), nats:// or tls://",
    ),
    "a scheme that nobody speaks": (
        {"settings": {"broker": {"url": "rediss+sentinels://a/m"}}},
        "settings.broker.url is not a broker URL",
    ),
    "an issuer's secret in a ConfigMap": (
        {"settings": {"auth": {"issuers": [{"issuer": "i", "audience": "a", "algorithm": "HS256", "secret": "x"}]}}},
        "set secrets.authIssuers.existingSecret to the Secret's name",
    ),
    "issuers twice": (
        {
            "secrets": {"authIssuers": {"existingSecret": "x"}},
            "settings": {
                "auth": {
                    "issuers": [{"issuer": "i", "audience": "a", "algorithm": "RS256", "jwks_url": "https://x.test/j"}]
                }
            },
        },
        "the first would replace the second: set only one of them",
    ),
    "a file that is not there": (
        {"settings": {"broker": {"ca": "/ca.crt"}}},
        "name the Secret in secrets.brokerCa",
    ),
    "workers in a pod": ({"settings": {"workers": 2}}, "settings.workers is set by the chart: a pod runs one node"),
    "another port": ({"settings": {"port": 80}}, "settings.port is set by the chart: pods always listen on 8080"),
    "the demo": ({"settings": {"demo": True}}, "settings.demo is set by the chart"),
    "a contract by the way": ({"settings": {"contract": "c.yaml"}}, "settings.contract is set by the chart"),
    "nobody gets in": ({"secrets": {"generate": False}}, "no client could authenticate: set secrets.generate"),
    "two contracts": (
        {"contract": {"text": "channels: {}", "existingConfigMap": "x"}},
        "contract.text and contract.existingConfigMap are both set",
    ),
    "files of no contract": ({"contract": {"files": {"a.json": "{}"}}}, "contract.files needs contract.text"),
    "files elsewhere": (
        {"contract": {"text": "channels: {}", "files": {"../a.json": "{}"}}},
        "../a.json is not below the contract's folder",
    ),
    "two JWKS": (
        {"secrets": {"jwks": {"existingSecret": "a", "existingConfigMap": "b"}}},
        "secrets.jwks names a Secret and a ConfigMap",
    ),
    "secrets of hooks": (
        {"settings": {"hooks": {"endpoints": [{**ENDPOINT, "secrets": ["whsec_" + "a" * 44]}]}}},
        "settings.hooks.endpoints holds secrets, which would be readable in a ConfigMap",
    ),
    "secrets of webhooks": (
        {"settings": {"webhooks": {"endpoints": [{**ENDPOINT, "secrets": ["whsec_" + "a" * 44]}]}}},
        "settings.webhooks.endpoints holds secrets, which would be readable in a ConfigMap",
    ),
    "two authorities": (
        {"secrets": {"brokerCa": {"existingSecret": "a", "existingConfigMap": "b"}}},
        "secrets.brokerCa names a Secret and a ConfigMap",
    ),
    "two budgets": (
        {"podDisruptionBudget": {"maxUnavailable": 1, "minAvailable": 1}},
        "maxUnavailable and minAvailable exclude each other",
    ),
    "a rollout that stands still": (
        {"strategy": {"maxUnavailable": "0%", "maxSurge": 0}},
        "no pod could ever be replaced",
    ),
    "scraped twice": (
        {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
        "would scrape every pod twice: enable one",
    ),
    "an alert that is none": (
        {"prometheusRule": {"enabled": True, "alerts": {"TidewirePodSkw": {"for": "1h"}}}},
        "the chart has no alert TidewirePodSkw; it has TidewireAbnormalCloses, ",
    ),
}


FORMATS: dict[str, tuple[Values, str]] = {
    "a label": ({"podLabels": {"team": "chat room"}}, 'podLabels: team: "chat room" is not a label value'),
    "a key": (
        {"service": {"annotations": {"a b": "c"}}},
        'service.annotations: "a b" is not a key of a label or annotation',
    ),
    "a Secret's name": (
        {"secrets": {"apiKey": {"existingSecret": "API_KEY"}}},
        'secrets.apiKey.existingSecret: "API_KEY" is not a valid object name',
    ),
    "a Secret's key": (
        {"secrets": {"apiKey": {"existingSecret": "a", "key": "a/b"}}},
        'secrets.apiKey.key: "a/b" is not a key of a Secret or ConfigMap',
    ),
    "a pull secret without a name": ({"imagePullSecrets": [{"nam": "a"}]}, "an entry has no name"),
    "a tag that YAML has read": ({"image": {"tag": 1.1}}, "image.tag: YAML reads it as the number 1.1"),
    "a registry with a scheme": (
        {"global": {"imageRegistry": "https://r.example.com"}},
        'global.imageRegistry: "https://r.example.com" is not a registry',
    ),
    "a host": ({"ingress": {"enabled": True, "hosts": ["https://a.test"]}}, '"https://a.test" is not a host name'),
    "a node port": (
        {"service": {"type": "NodePort", "nodePort": 80}},
        "(30000-32767): if your cluster has another range",
    ),
    "an address": ({"service": {"clusterIP": "10.0.0"}}, 'service.clusterIP: "10.0.0" is not an IP address'),
    "ranges of no balancer": (
        {"service": {"loadBalancerSourceRanges": ["10.0.0.0/8"]}},
        "has no effect: service.type is ClusterIP",
    ),
    "a quantity": ({"resources": {"limits": {"memory": "1GB"}}}, 'resources.limits.memory: "1GB" is not a quantity'),
    "a request above its limit": (
        {"tests": {"resources": {"requests": {"memory": "1Gi"}}}},
        'tests.resources.requests.memory: "1Gi" is above tests.resources.limits.memory (256Mi)',
    ),
    "a budget": ({"podDisruptionBudget": {"maxUnavailable": "110%"}}, "a percentage from 0% to 100%"),
    "a toleration": (
        {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
        "its operator Exists takes none",
    ),
    "two variables": (
        {"extraEnv": [{"name": "A", "value": "{{ .Release.Name }}"}, {"name": "A", "value": 1}]},
        'extraEnv: "A" is listed twice, or set by the chart',
    ),
    "a variable that YAML has read": ({"extraEnv": [{"name": True, "value": 1}]}, "so put them in quotes"),
    "a mount of no volume": (
        {"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]},
        'extraVolumeMounts: name: "a" is not a volume of the pod',
    ),
    "two containers": (
        {"extraContainers": [{"name": "tidewire", "image": "a"}]},
        '"tidewire" is the name of two containers, or of the chart\'s own',
    ),
    "an argument of the chart's": (
        {"extraArgs": ["--workers=4"]},
        "extraArgs: the chart sets --workers: a pod runs one node",
    ),
    "a window": (
        {"autoscaling": {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 7200}}}},
        'stabilizationWindowSeconds: "7200" is not between 0 and 3600',
    ),
    "a duration": ({"podMonitor": {"interval": "1 m"}}, 'podMonitor.interval: "1 m" is not a Prometheus duration'),
    "a scrape that is longer than its interval": (
        {"serviceMonitor": {"interval": "5s"}},
        "serviceMonitor.scrapeTimeout (10s) is above serviceMonitor.interval (5s)",
    ),
    "two listeners of one name": (
        {
            "gateway": {
                "enabled": True,
                "create": {
                    "enabled": True,
                    "className": "a",
                    "listeners": [{"name": "a", "port": port, "protocol": "HTTP"} for port in (80, "81")],
                },
            }
        },
        '"a" is the name of two listeners',
    ),
    "two listeners of one place": (
        {
            "gateway": {
                "enabled": True,
                "create": {
                    "enabled": True,
                    "className": "a",
                    "listeners": [{"name": name, "port": 80, "protocol": "HTTP"} for name in ("a", "b")],
                },
            }
        },
        "is the port, protocol and hostname of two listeners",
    ),
    "a listener without its certificate": (
        {
            "gateway": {
                "enabled": True,
                "create": {
                    "enabled": True,
                    "className": "a",
                    "listeners": [{"name": "a", "port": 443, "protocol": "HTTPS"}],
                },
            }
        },
        "a is HTTPS without tls: name its Secret",
    ),
    "a contract that is too large": (
        {"contract": {"text": f"channels: {{}} # {'x' * 2**20}"}},
        "bytes, and a ConfigMap takes 1048576",
    ),
    "replicaCount": ({"replicaCount": 3}, "replicaCount is not a value of this chart: did you mean replicas?"),
    "a group of another chart": (
        {"redis": {"enabled": True, "host": "redis"}},
        "redis is not a value of this chart: did you mean settings.broker.url, such as redis://redis.db:6379, with the password "
        "in secrets.brokerPassword.existingSecret? Note: this chart installs no Redis.",
    ),
    "a name in a group": (
        {"autoscaling": {"enabled": True}},
        "did you mean autoscaling.hpa.enabled (or autoscaling.keda.enabled)?",
    ),
    "what this chart has not": ({"podSecurityPolicy": {}}, "Kubernetes has none any more; pods pass the restricted"),
    "a slip": ({"replica": 2}, "replica is not a value of this chart: did you mean replicas?"),
    "a slip in a group": (
        {"autoscaling": {"hpa": {"min_replicas": 2}}},
        "autoscaling.hpa.min_replicas is not a value of this chart: did you mean autoscaling.hpa.minReplicas?",
    ),
    "hosts as helm create has them": (
        {"ingress": {"hosts": [{"host": "rt.example.com", "paths": []}]}},
        'ingress.hosts is a list of names, such as ["rt.example.com"]',
    ),
    "a setting in camelCase": (
        {"settings": {"limits": {"connectionRate": {"perSecond": 1}}}},
        "settings.limits.connectionRate is not a value of this chart: did you mean settings.limits.connection_rate?",
    ),
    "a setting without its group": (
        {"settings": {"maxAge": 60}},
        "settings.maxAge is not a value of this chart: did you mean settings.rollout.max_age?",
    ),
    "a setting of two groups without one": (
        {"settings": {"position_ttl": 1, "ttl": 60, "interval": 5}},
        "settings.ttl is not a value of this chart: did you mean settings.presence.ttl?",
    ),
    "a contract as text": (
        {"contract": "channels: {}"},
        "contract is a group: give the contract's text in contract.text",
    ),
    "a host as text": ({"ingress": {"hosts": "rt.example.com"}}, "ingress.hosts is a list, such as [rt.example.com]"),
    "tls as a switch": ({"ingress": {"tls": True}}, "ingress.tls is a list, such as [{secretName: rt-tls"),
    "tls as names": ({"ingress": {"tls": ["rt-tls"]}}, "ingress.tls is a list, such as [{secretName: rt-tls"),
    "a setting as an argument": (
        {"extraArgs": ["--log-level=debug"]},
        "extraArgs: tidewire serve has no option --log-level, and pods would not start: set settings.log.level",
    ),
    "a setting as an argument, by its own name": (
        {"extraArgs": ["--origins", "https://a.example.com"]},
        "has no option --origins, and pods would not start: set settings.origins",
    ),
    "variables as a map": ({"extraEnv": {"LANG": "C"}}, "extraEnv is a list, such as [{name: LANG, value: C.UTF-8}]"),
}
"""Values that the API server would refuse, or that other charts call so; `make test` plays a third of them."""
GUARDS |= FORMATS if WHOLE else dict(list(FORMATS.items())[::3])

OTHER_NAMES: dict[str, str] = yaml.safe_load((CHART / "files" / "other-names.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", OTHER_NAMES if WHOLE else ["env", "ingress.ingressClassName", "rbac"])
def test_value_name_of_other_charts_is_refused_with_ours(each_helm: Helm, name: str) -> None:
    values: dict[str, Any] = {}
    *groups, last = name.split(".")
    holder = values
    for group in groups:
        holder = holder.setdefault(group, {})
    holder[last] = {}
    with pytest.raises(Refused) as refused:
        each_helm.template(values)
    assert f"{name} is not a value of this chart" in str(refused.value)
    assert OTHER_NAMES[name].removeprefix(": ").partition("; ")[0] in str(refused.value)


def test_other_names_stand_for_values_that_there_are() -> None:
    for name, here in OTHER_NAMES.items():
        assert not _has(DEFAULTS, name), name
        for place in re.findall(r"^[a-zA-Z]+(?:\.[a-zA-Z]+)+|^[a-z]+[A-Z][a-zA-Z]+", here):
            assert _has(DEFAULTS, place) or place.startswith("settings."), (name, place)


def _has(values: dict[str, Any], place: str) -> bool:
    held: Any = values
    for step in place.split("."):
        if not isinstance(held, dict) or step not in held:
            return place.startswith("affinity.")
        held = held[step]
    return True


@pytest.mark.parametrize("name", GUARDS)
def test_guarded_values_are_refused_with_their_sentence(helm: Helm, name: str) -> None:
    values, sentence = GUARDS[name]
    with pytest.raises(Refused) as refused:
        helm.template(values)
    assert sentence in " ".join(str(refused.value).split())


@pytest.mark.parametrize(
    "values",
    [
        {"terminationGracePeriodSeconds": 150},
        {**ingress("nginx"), "idleTimeout": 60, "settings": {"deadlines": {"heartbeat": 29}}},
        {"idleTimeouts": {"office": 51}},
        {"replicas": 2, "settings": REDIS},
        # Google's is a connection's whole life, and Contour has none: there is nothing to race.
        {**ingress("gce"), "settings": {"deadlines": {"heartbeat": 10_000}}},
        {**ingress("contour"), "settings": {"deadlines": {"heartbeat": 10_000}}},
    ],
)
def test_values_at_the_limit_are_accepted(helm: Helm, values: Values) -> None:
    assert helm.template(values)


def test_both_helms_refuse_alike(each_helm: Helm) -> None:
    with pytest.raises(Refused, match="2 pods need a broker"):
        each_helm.template({"replicas": 2})
    with pytest.raises(Refused, match=r"replica is not a value of this chart: did you mean replicas\?"):
        each_helm.template({"replica": 2})
    with pytest.raises(Refused, match="additional properties 'batches' not allowed"):
        each_helm.template({"settings": {"limits": {"batches": 2}}})


def test_every_wrong_name_is_told_at_once(each_helm: Helm) -> None:
    wrong = {"replicaCount": 3, "autoscaling": {"enabled": True}, "settings": {"rollout": {"maxAge": 60}}}
    with pytest.raises(Refused) as refused:
        each_helm.template(wrong)
    for sentence in (
        "replicaCount is not a value of this chart: did you mean replicas?",
        "autoscaling.enabled is not a value of this chart: did you mean autoscaling.hpa.enabled",
        "settings.rollout.maxAge is not a value of this chart: did you mean settings.rollout.max_age?",
    ):
        assert sentence in str(refused.value)


def test_old_kubernetes_is_refused(each_helm: Helm) -> None:
    with pytest.raises(Refused, match=r"kubeVersion: >=1\.29\.0-0"):
        each_helm.template({}, kubernetes="1.28")


# --- the schema, without Helm -----------------------------------------------------------------------------------------


SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))


def _groups(schema: dict[str, Any], place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if "object" in schema.get("type", "") and schema.get("additionalProperties") is False:
        yield place
    for name, part in schema.get("properties", {}).items():
        yield from _groups(part, (*place, name))


def test_defaults_pass() -> None:
    assert jsonschema_rs.is_valid(SCHEMA, DEFAULTS)


@pytest.mark.parametrize("place", sorted(_groups(SCHEMA)), ids=".".join)
def test_unknown_key_is_refused_in_every_group(place: tuple[str, ...]) -> None:
    values: dict[str, Any] = {}
    holder = values
    for name in place:
        holder = holder.setdefault(name, {})
    assert jsonschema_rs.is_valid(SCHEMA, values)
    holder["unknown-key"] = 1
    assert not jsonschema_rs.is_valid(SCHEMA, values)


@pytest.mark.parametrize(
    "values",
    [
        {"replicas": -1},
        {"replicas": "3"},
        {"ingress": {"preset": "haproxy"}},
        {"gateway": {"implementation": "nginx"}},
        {"image": {"digest": "sha256:abc"}},
        {"publicPaths": ["ws"]},
        {"publicPaths": []},
        {"idleTimeout": 0},
        {"settings": {"limits": {"connections": 0}}},
        {"settings": {"limits": {"connection_rate": {"per_second": "many"}}}},
        {"settings": {"log": {"level": "loud"}}},
        {"settings": {"auth": {"issuers": [{"issuer": "i", "audience": "a", "algorithm": "none"}]}}},
        {"settings": {"compression": {"level": 10}}},
    ],
)
def test_wrong_value_is_refused(values: Values) -> None:
    assert not jsonschema_rs.is_valid(SCHEMA, values)


@pytest.mark.parametrize("major", [3, 4] if WHOLE else [4])
def test_null_in_place_of_any_value_leaves_a_chart_that_renders(major: int) -> None:
    """A parent takes values back with null. One run takes back all of a group, then all groups."""
    groups = {name: value for name, value in DEFAULTS.items() if isinstance(value, dict) and name != "settings"}
    needed = {"secrets"}
    inner = {name: dict.fromkeys(value) for name, value in groups.items() if name not in needed}
    outer = dict.fromkeys(name for name in DEFAULTS if name not in needed)
    for values in (inner, outer):
        documents = helms()[major].template(values)
        assert of_kind(documents, "Deployment")["spec"]["replicas"] == 1


def test_null_inside_objects_of_kubernetes_says_nothing(helm: Helm) -> None:
    nothing: Values = {
        "affinity": {"podAntiAffinity": None, "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": None}},
        "tolerations": [None],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": None}],
        "lifecycle": {"preStop": None},
        "securityContext": {"capabilities": None},
        "extraEnv": [{"name": "A", "value": 1, "valueFrom": None}],
        "networkPolicy": {"enabled": True, "publicFrom": [{"podSelector": {}, "ipBlock": None}]},
    }
    documents = helm.template(nothing)
    pod = of_kind(documents, "Deployment")["spec"]["template"]["spec"]
    assert pod["affinity"] == {"nodeAffinity": {}}
    assert "tolerations" not in pod
    assert "preStop" in pod["containers"][0]["lifecycle"]
    assert pod["containers"][0]["env"][-1] == {"name": "A", "value": "1"}


# --- what must stay what it is ----------------------------------------------------------------------------------------


def test_zero_false_and_null_stay_what_they_are(helm: Helm) -> None:
    budget = of_kind(rendered(helm, "disruptions: none"), "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 0
    share = of_kind(rendered(helm, "disruptions: per cent"), "PodDisruptionBudget")["spec"]
    assert share["minAvailable"] == "50%"
    assert "maxUnavailable" not in share
    assert of_kind(rendered(helm, "no pods"), "Deployment")["spec"]["replicas"] == 0
    rollout = of_kind(rendered(helm, "rollout"), "Deployment")["spec"]
    assert rollout["strategy"]["rollingUpdate"] == {"maxUnavailable": "25%", "maxSurge": 0}
    assert rollout["minReadySeconds"] == 0
    assert "lifecycle" not in rollout["template"]["spec"]["containers"][0]
    defaults = of_kind(rendered(helm, "defaults"), "Deployment")["spec"]
    assert defaults["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    quiet = helm.template({"settings": {"auth": {"verified_tokens": 0}, "proxy": {"hops": 0}}, **ingress("nginx")})
    settings = yaml.safe_load(of_kind(quiet, "ConfigMap")["data"]["settings.yaml"])
    assert settings["auth"]["verified_tokens"] == 0
    assert settings["proxy"]["hops"] == 0
