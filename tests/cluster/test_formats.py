"""What the chart refuses is what the API server refuses, and nothing else: both judge the same values."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart.cases import REDIS, ingress
from tests.chart.tools import CHART, Helm, Refused, Values, helms, read
from tests.cluster.client import Cluster, RefusedError

pytestmark = pytest.mark.cluster


def service(**fields: Any) -> Values:
    """Values of the Service."""
    return {"service": fields}


def balancer(**fields: Any) -> Values:
    """Values of a Service that is a LoadBalancer."""
    return service(type="LoadBalancer", **fields)


def constraint(**fields: Any) -> Values:
    """One constraint of where pods go."""
    return {"topologySpreadConstraints": [{"topologyKey": "zone", **fields}]}


def scaled(**behavior: Any) -> Values:
    """An autoscaler with a behavior."""
    return {"settings": REDIS, "autoscaling": {"hpa": {"enabled": True}, "behavior": behavior}}


def hosts(*names: str) -> Values:
    """An Ingress with hosts."""
    return {"ingress": {"enabled": True, "hosts": list(names)}}


def peer(**fields: Any) -> Values:
    """A NetworkPolicy with a peer."""
    return {"networkPolicy": {"enabled": True, "publicFrom": [fields]}}


def affine(**kinds: Any) -> Values:
    """Affinity."""
    return {"affinity": kinds}


PREFERENCE = {"weight": 5, "preference": {"matchExpressions": [{"key": "a", "operator": "Exists"}]}}


def required(expressions: Any) -> Values:
    """Rules for nodes: one term with expressions."""
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    }


def variable(name: str, **fields: Any) -> Values:
    """A variable of the container."""
    return {"extraEnv": [{"name": name, **fields}]}


PROBES: dict[str, Values] = {
    "label with a space": {"commonLabels": {"team": "chat room"}},
    "label of 63": {"commonLabels": {"team": "a" * 63}},
    "label of 64": {"commonLabels": {"team": "a" * 64}},
    "label that ends with a dash": {"podLabels": {"team": "a-"}},
    "empty label": {"podLabels": {"team": ""}},
    "label with a bad key": {"podLabels": {"a b": "c"}},
    "label with a prefix": {"podLabels": {"example.com/team_1": "Chat.Room"}},
    "label with two prefixes": {"podLabels": {"a/b/c": "d"}},
    "label with a capital prefix": {"podLabels": {"Example.com/team": "chat"}},
    "label that is a number": {"podLabels": {"team": 5}},
    "node selector with a space": {"nodeSelector": {"pool": "a b"}},
    "node selector that is a boolean": {"nodeSelector": {"gpu": True}},
    "annotation of any text": {"podAnnotations": {"note": "a b\nc"}},
    "annotation with a capital prefix": {"podAnnotations": {"Example.com/note": "x"}},
    "annotation with a bad key": {"podAnnotations": {"a b": "c"}},
    "annotations that are large": {"podAnnotations": {"note": "x" * 262_200}},
    "account with a capital": {"serviceAccount": {"create": False, "name": "Mine"}},
    "account with a dot": {"serviceAccount": {"name": "mine.too"}},
    "class with a capital": {"ingress": {"enabled": True, "className": "NGINX"}},
    "priority with an underscore": {"priorityClassName": "high_priority"},
    "runtime with a slash": {"runtimeClassName": "a/b"},
    "host with a capital": hosts("RT.example.com"),
    "host with an underscore": hosts("rt_1.example.com"),
    "host with a port": hosts("rt.example.com:443"),
    "host with a scheme": hosts("https://rt.example.com"),
    "host that is an address": hosts("10.0.0.1"),
    "host of one label": hosts("localhost"),
    "wildcard": hosts("*.example.com"),
    "two wildcards": hosts("*.*.example.com"),
    "wildcard alone": hosts("*"),
    "tls with a bad host": {
        "ingress": {"enabled": True, "hosts": ["a.test"], "tls": [{"secretName": "t", "hosts": ["a b"]}]}
    },
    "tls with a bad secret": {"ingress": {"enabled": True, "hosts": ["a.test"], "tls": [{"secretName": "T_1"}]}},
    "tls without a secret": {"ingress": {"enabled": True, "hosts": ["a.test"], "tls": [{"hosts": ["a.test"]}]}},
    "path with an empty step": {**ingress(""), "publicPaths": ["/ws//"]},
    "path with dots": {**ingress(""), "publicPaths": ["/a/../ws"]},
    "path that ends with a slash": {**ingress(""), "publicPaths": ["/ws/"]},
    "path with a coded slash": {**ingress(""), "publicPaths": ["/a%2fb"]},
    "node port": service(type="NodePort", nodePort=30000),
    "port as text": service(port="8080"),
    "no port": service(port=0),
    "port above": service(port=65536),
    "headless": service(clusterIP="None"),
    "headless node port": service(type="NodePort", clusterIP="None"),
    "address of the cluster": service(clusterIP="10.96.7.7"),
    "address that is none": service(clusterIP="10.96.7"),
    "address with a zero": service(clusterIP="10.96.07.7"),
    "address of the other family": service(clusterIP="10.96.7.8", ipFamilies=["IPv6"]),
    "address of IPv6": service(clusterIP="fd00:96::77", ipFamilies=["IPv6"]),
    "ranges": balancer(loadBalancerSourceRanges=["10.0.0.0/8", "2001:db8::/32"]),
    "range without a length": balancer(loadBalancerSourceRanges=["10.0.0.0"]),
    "range that is too long": balancer(loadBalancerSourceRanges=["10.0.0.0/33"]),
    "range of names": balancer(loadBalancerSourceRanges=["office"]),
    "class of a balancer": balancer(loadBalancerClass="service.k8s.aws/nlb"),
    "class of a balancer with a space": balancer(loadBalancerClass="a b"),
    "two families": service(ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="RequireDualStack"),
    "two families, one wanted": service(ipFamilies=["IPv4", "IPv6"], ipFamilyPolicy="SingleStack"),
    "one family twice": service(ipFamilies=["IPv4", "IPv4"]),
    "a family that is none": service(ipFamilies=["IPv5"]),
    "either family": service(ipFamilyPolicy="PreferDualStack"),
    "protocol with a space": service(appProtocol="web socket"),
    "protocol with a prefix": service(appProtocol="kubernetes.io/ws"),
    "memory without a unit": {"resources": {"limits": {"memory": 1_610_612_736}}},
    "memory in MB": {"resources": {"limits": {"memory": "1536MB"}}},
    "a cpu and a half": {"resources": {"requests": {"cpu": 1.5}}},
    "cpu in words": {"resources": {"requests": {"cpu": "half"}}},
    "exponent": {"resources": {"requests": {"cpu": "1e-1"}}},
    "request above the limit": {"resources": {"requests": {"memory": "2Gi"}, "limits": {"memory": "1536Mi"}}},
    "request at the limit": {"resources": {"requests": {"memory": "1.5Gi"}, "limits": {"memory": "1536Mi"}}},
    "negative": {"resources": {"requests": {"cpu": "-1"}}},
    "a resource of no name": {"resources": {"limits": {"gpu": 1}}},
    "a resource with a prefix": {"resources": {"limits": {"example.com/gpu": 1}}},
    "disk": {"resources": {"limits": {"ephemeral-storage": "1Gi"}}},
    "resources that are others": {"resources": {"request": {"cpu": 1}}},
    "budget above": {"podDisruptionBudget": {"maxUnavailable": "101%"}},
    "budget in per cent": {"podDisruptionBudget": {"maxUnavailable": "100%"}},
    "budget below": {"podDisruptionBudget": {"maxUnavailable": -1}},
    "surge in per cent": {"strategy": {"maxSurge": "150%"}},
    "unavailable above": {"strategy": {"maxUnavailable": "101%"}},
    "unavailable in words": {"strategy": {"maxUnavailable": "one"}},
    "toleration of all": {"tolerations": [{"operator": "Exists"}]},
    "toleration without a key": {"tolerations": [{"value": "a"}]},
    "toleration with a value": {"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]},
    "toleration with a bad operator": {"tolerations": [{"key": "a", "operator": "Is"}]},
    "toleration with a bad effect": {"tolerations": [{"key": "a", "operator": "Exists", "effect": "Never"}]},
    "toleration for a while": {
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]
    },
    "toleration for a while of another": {
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 60}]
    },
    "toleration with a number": {"tolerations": [{"key": "a", "value": 5}]},
    "toleration with a bad value": {"tolerations": [{"key": "a", "value": "a b"}]},
    "affinity of another kind": {"affinity": {"nodeAfinity": {}}},
    "constraint": constraint(maxSkew=2, whenUnsatisfiable="DoNotSchedule", minDomains=2),
    "constraint alone": constraint(),
    "constraint with a skew of none": constraint(maxSkew=0),
    "constraint with bad words": constraint(whenUnsatisfiable="Never"),
    "constraint with domains": constraint(minDomains=2),
    "constraint twice": {"topologySpreadConstraints": [{"topologyKey": "zone"}, {"topologyKey": "zone"}]},
    "constraint with a bad key": {"topologySpreadConstraints": [{"topologyKey": "a b"}]},
    "constraint of one's own": constraint(labelSelector={"matchLabels": {"a": "b"}}),
    "constraint with other keys": constraint(matchLabelKeys=["a"]),
    "aliases": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["redis.db"]}, {"ip": "::1", "hostnames": ["x"]}]},
    "alias without an address": {"hostAliases": [{"ip": "redis", "hostnames": ["redis.db"]}]},
    "alias with a bad name": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": ["a_b"]}]},
    "alias twice": {"hostAliases": [{"ip": "10.0.0.1", "hostnames": [name]} for name in ("a", "b")]},
    "no nameservers": {"dnsPolicy": "None"},
    "nameservers": {"dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.10"], "searches": ["db.svc"]}},
    "nameserver of a name": {"dnsConfig": {"nameservers": ["dns.example.com"]}},
    "options": {"dnsConfig": {"options": [{"name": "ndots", "value": 2}, {"name": "edns0"}]}},
    "search with a bad name": {"dnsConfig": {"searches": ["a b"]}},
    "hook of two kinds": {
        "lifecycle": {"postStart": {"exec": {"command": ["true"]}, "httpGet": {"path": "/", "port": 8080}}}
    },
    "hook of none": {"lifecycle": {"postStart": {}}},
    "hook that sleeps": {"lifecycle": {"preStop": {"sleep": {"seconds": 200}}}},
    "hook that runs": {"lifecycle": {"preStop": {"exec": {"command": ["sleep", "5"]}}}},
    "variable twice": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
    "variable of the chart's": variable("TIDEWIRE_CONFIG", value="/x"),
    "variable that is a number": variable("A", value=1),
    "variable with a dash": variable("a-b.c", value="x"),
    "variable with an equals sign": variable("A=B", value="x"),
    "variable with an empty name": variable("", value="x"),
    "variable of two sources": variable("A", value="x", valueFrom={"fieldRef": {"fieldPath": "metadata.name"}}),
    "variable of a field": variable("A", valueFrom={"fieldRef": {"fieldPath": "metadata.name"}}),
    "volume twice": {"extraVolumes": [{"name": "a", "emptyDir": {}}, {"name": "a", "emptyDir": {}}]},
    "volume of the chart's": {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
    "volume with a capital": {"extraVolumes": [{"name": "A", "emptyDir": {}}]},
    "mount twice": {
        "extraVolumes": [{"name": "a", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "a", "mountPath": "/a"}],
    },
    "mount of the chart's": {
        "extraVolumes": [{"name": "a", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "a", "mountPath": "/tmp"}],
    },
    "mount of no volume": {"extraVolumeMounts": [{"name": "a", "mountPath": "/a"}]},
    "container of the chart's": {"extraContainers": [{"name": "tidewire", "image": "busybox"}]},
    "container twice": {"extraContainers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]},
    "container and init container of one name": {
        "extraContainers": [{"name": "a", "image": "b"}],
        "initContainers": [{"name": "a", "image": "b"}],
    },
    "container without an image": {"extraContainers": [{"name": "a"}]},
    "pull secrets twice": {"imagePullSecrets": ["a", {"name": "a"}]},
    "probe that takes too long": {"probes": {"liveness": {"timeoutSeconds": 2**31}}},
    "probe that begins late": {"probes": {"liveness": {"initialDelaySeconds": 30}}},
    "probe that needs two": {"probes": {"liveness": {"successThreshold": 2}}},
    "readiness that needs two": {"probes": {"readiness": {"successThreshold": 2}}},
    "too many pods": {"replicas": 2**31},
    "scaling": scaled(scaleUp={"stabilizationWindowSeconds": 3600}),
    "scaling with a long window": scaled(scaleDown={"stabilizationWindowSeconds": 3601}),
    "scaling with a long period": scaled(scaleDown={"policies": [{"type": "Pods", "value": 1, "periodSeconds": 1801}]}),
    "scaling by nothing": scaled(scaleDown={"policies": [{"type": "Pods", "value": 0, "periodSeconds": 60}]}),
    "scaling by another kind": scaled(scaleDown={"policies": [{"type": "Node", "value": 1, "periodSeconds": 60}]}),
    "scaling that is off": scaled(scaleDown={"selectPolicy": "Disabled"}),
    "scaling that is wrong": scaled(scaleDown={"selectPolicy": "None"}),
    "peer of a range": peer(ipBlock={"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}),
    "peer of a bad range": peer(ipBlock={"cidr": "10.0.0.0"}),
    "peer of two kinds": peer(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}),
    "peer of none": peer(),
    "peer of another kind": peer(pods={}),
    "contract that is large": {"contract": {"text": f"channels: {{}} # {'x' * 1_048_000}"}},
    "contract that just fits": {"contract": {"text": f"channels: {{}} # {'x' * 1_040_000}"}},
    "contract with a file above": {"contract": {"text": "channels: {}", "files": {"..a": "{}"}}},
    "sources of variables": {"extraEnvFrom": [{"prefix": "A_", "configMapRef": {"name": "a"}}]},
    "source of variables of none": {"extraEnvFrom": [{"prefix": "A_"}]},
    "source of variables of two": {"extraEnvFrom": [{"configMapRef": {"name": "a"}, "secretRef": {"name": "a"}}]},
    "volume of no source": {"extraVolumes": [{"name": "a"}]},
    "volume of two sources": {"extraVolumes": [{"name": "a", "emptyDir": {}, "configMap": {"name": "a"}}]},
    "privileged": {"securityContext": {"privileged": True}},
    "administrator": {"securityContext": {"capabilities": {"add": ["CAP_SYS_ADMIN"]}}},
    "capability": {"securityContext": {"capabilities": {"add": ["NET_BIND_SERVICE"]}}},
    "context with a slip": {"securityContext": {"runAsUsr": 5}},
    "context of the pod with a slip": {"podSecurityContext": {"fsgroup": 5}},
    "context of the pod": {"podSecurityContext": {"fsGroup": 5, "supplementalGroups": [6]}},
    "hook that sleeps backwards": {"lifecycle": {"preStop": {"sleep": {"seconds": -1}}}},
    "hook without a command": {"lifecycle": {"preStop": {"exec": {}}}},
    "hook without a port": {"lifecycle": {"postStart": {"httpGet": {"path": "/"}}}},
    "toleration with a slip": {"tolerations": [{"keys": "a", "operator": "Exists"}]},
    "alias with a slip": {"hostAliases": [{"ip": "10.0.0.1", "hosts": ["a"]}]},
    "constraint with a slip": constraint(maxskew=2),
    "preference": affine(nodeAffinity={"preferredDuringSchedulingIgnoredDuringExecution": [PREFERENCE]}),
    "preference without a weight": affine(
        nodeAffinity={"preferredDuringSchedulingIgnoredDuringExecution": [{**PREFERENCE, "weight": 0}]}
    ),
    "preference with a bad operator": affine(
        nodeAffinity={
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}]
            }
        }
    ),
    "requirement of nothing": affine(nodeAffinity={"requiredDuringSchedulingIgnoredDuringExecution": {}}),
    "distance": affine(podAntiAffinity={"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}),
    "distance without a key": affine(
        podAntiAffinity={"requiredDuringSchedulingIgnoredDuringExecution": [{"labelSelector": {}}]}
    ),
    "distance with a term in the wrong place": affine(
        podAntiAffinity={"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 5, "topologyKey": "zone"}]}
    ),
    "rule with a slip": {"networkPolicy": {"enabled": True, "extraEgress": [{"port": 80}]}},
    "namespace with a capital": {"namespaceOverride": "Chat"},
    "affinity of null": affine(podAntiAffinity=None),
    "requirement of null": affine(nodeAffinity={"requiredDuringSchedulingIgnoredDuringExecution": None}),
    "term with a slip": affine(
        nodeAffinity={"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFelds": []}]}}
    ),
    "expression without a key": affine(nodeAffinity=required([{"operator": "Exists"}])),
    "expression with a number": affine(nodeAffinity=required([{"key": "a", "operator": "In", "values": [5]}])),
    "expression of text": affine(nodeAffinity=required("a")),
    "label of a selector that is a number": affine(
        podAffinity={
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "zone", "labelSelector": {"matchLabels": {"team": 5}}}
            ]
        }
    ),
    "key of a topology that is a number": affine(
        podAffinity={"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": 5}]}
    ),
    "selector with a bad operator": constraint(
        labelSelector={"matchExpressions": [{"key": "a", "operator": "in", "values": ["b"]}]}
    ),
    "policy of nodes that is none": constraint(nodeAffinityPolicy="Maybe"),
    "toleration of nulls": {
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": None}]
    },
    "toleration for a while in words": {
        "tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": "60"}]
    },
    "capabilities of null": {"securityContext": {"capabilities": None}},
    "capabilities with a slip": {"securityContext": {"capabilities": {"adds": ["NET_BIND_SERVICE"]}}},
    "group in words": {"podSecurityContext": {"fsGroup": "users"}},
    "user below 0": {"securityContext": {"runAsUser": -1}},
    "seccomp profile without a type": {"podSecurityContext": {"seccompProfile": {"localhostProfile": "a"}}},
    "seccomp profile with a slip": {"securityContext": {"seccompProfile": {"type": "runtimeDefault"}}},
    "sysctl without a name": {"podSecurityContext": {"sysctls": [{"value": "1"}]}},
    "hook with a header": {
        "lifecycle": {"postStart": {"httpGet": {"port": 80, "httpHeaders": [{"name": "a", "value": ""}]}}}
    },
    "hook with a scheme of none": {"lifecycle": {"postStart": {"httpGet": {"port": 80, "scheme": "http"}}}},
    "hook with a command as text": {"lifecycle": {"preStop": {"exec": {"command": "sleep 5"}}}},
    "hook with null beside it": {"lifecycle": {"preStop": {"exec": None, "sleep": {"seconds": 5}}}},
    "requests of text": {"resources": {"requests": ""}},
    "policy of scaling in words": scaled(
        scaleDown={"policies": [{"type": "Pods", "value": "one", "periodSeconds": 60}]}
    ),
    "scaling with a slip": scaled(scaleDown={"stabilizationWindow": 60}),
    "port of a rule in words": {"networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": "http"}]}]}},
    "port of a rule with a slip": {"networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"prot": 80}]}]}},
    "protocol of a rule of none": {
        "networkPolicy": {"enabled": True, "extraEgress": [{"ports": [{"port": 80, "protocol": "tcp"}]}]}
    },
    "selector of a peer with a slip": peer(podSelector={"matchLabel": {"a": "b"}}),
    "peer with null": peer(podSelector={}, ipBlock=None),
    "variable with null beside it": variable("A", value="x", valueFrom=None),
    "variable of a Secret without a key": variable("A", valueFrom={"secretKeyRef": {"name": "a"}}),
    "variable of a source with a slip": variable("A", valueFrom={"secretRef": {"name": "a", "key": "b"}}),
    "volume with a slip": {"extraVolumes": [{"name": "a", "configmap": {"name": "b"}}]},
    "volume with a mode as text": {
        "extraVolumes": [{"name": "a", "secret": {"secretName": "b", "defaultMode": "0400"}}]
    },
    "mount with a slip inside": {
        "extraVolumes": [{"name": "a", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "a", "mountPath": "/a", "readOnly": "yes"}],
    },
    "volume of a Secret without a name": {"extraVolumes": [{"name": "a", "secret": {"defaultMode": 256}}]},
    "volume with a size in words": {"extraVolumes": [{"name": "a", "emptyDir": {"sizeLimit": "1GB"}}]},
    "variable of no source": variable("A", valueFrom={}),
    "source of variables without a name": {"extraEnvFrom": [{"secretRef": {"optional": True}}]},
    "selector without values": peer(podSelector={"matchExpressions": [{"key": "a", "operator": "In"}]}),
    "selector with values that it has no use for": peer(
        podSelector={"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}
    ),
    "port of a rule above": {"networkPolicy": {"enabled": True, "extraIngress": [{"ports": [{"port": 65_536}]}]}},
    "hook at port 0": {"lifecycle": {"postStart": {"tcpSocket": {"port": 0}}}},
    "container with templates": {
        "extraContainers": [
            {
                "name": "a",
                "image": "{{ .Values.image.repository }}",
                "imagePullPolicy": "{{ .Values.image.pullPolicy }}",
                "resources": {"limits": {"memory": "{{ .Values.resources.limits.memory }}"}},
            }
        ]
    },
    "container with a slip": {"extraContainers": [{"name": "a", "image": "b", "arg": ["c"]}]},
    "container with a port as text": {
        "extraContainers": [{"name": "a", "image": "b", "ports": [{"containerPort": "80"}]}]
    },
    "certificate of a host with a slip": {"ingress": {"enabled": True, "tls": [{"secretName": "a", "hosts": "a.b"}]}},
    "Secret of a certificate that is a number": {"ingress": {"enabled": True, "tls": [{"secretName": 5}]}},
    "file that is a number": {"contract": {"text": "channels: {}", "files": {"a": 5}}},
    "file of null": {"contract": {"text": "channels: {}", "files": {"a": None}}},
    "node port of no text": service(type="NodePort", nodePort=""),
    "object without a kind": {"extraObjects": [{"apiVersion": "v1", "metadata": {"name": "a"}}]},
}


@pytest.fixture(scope="module")
def unguarded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart without its schema and without its checks of formats: what it makes of values that it refuses."""
    chart = tmp_path_factory.mktemp("unguarded") / "tidewire"
    shutil.copytree(CHART, chart)
    (chart / "values.schema.json").unlink()
    names = chart / "templates" / "_names.tpl"
    text = names.read_text(encoding="utf-8")
    bare = "".join(line for line in text.splitlines(keepends=True) if "tidewire.validate" not in line)
    assert bare != text
    names.write_text(bare, encoding="utf-8")
    return chart


@pytest.fixture(scope="module")
def shared(cluster: Cluster) -> Iterator[str]:
    """A namespace in which nothing is made: every request is a dry run."""
    with cluster.namespace("formats") as name:
        yield name


def chart_says(helm: Helm, chart: Path, values: Values, namespace: str) -> tuple[str, str]:
    """What the chart makes of values, and why it refuses them; one of both is empty."""
    try:
        return helm.run("template", "rt", str(chart), "--namespace", namespace, values=values), ""
    except Refused as refused:
        return "", str(refused)


def server_says(cluster: Cluster, text: str, namespace: str) -> str:
    """Why the API server refuses an install, as Helm 3 or as Helm 4 sends it; empty if it does not."""
    try:
        documents = read(text)
        for document in documents:
            if document["kind"] == "Pod":  # the account of its own is not there in a dry run
                document["spec"]["serviceAccountName"] = "default"
        core = yaml.safe_dump_all(documents)
        for way in (["create"], ["apply", "--server-side"]):
            cluster.kubectl(*way, "--dry-run=server", "-n", namespace, "-f", "-", stdin=core)
    except (RefusedError, yaml.YAMLError, KeyError) as refused:
        return str(refused)
    return ""


@pytest.mark.parametrize("name", PROBES)
def test_chart_and_api_server_agree(cluster: Cluster, unguarded: Path, shared: str, name: str) -> None:
    helm = helms()[4]
    values = PROBES[name]
    _, told = chart_says(helm, CHART, values, shared)
    text, broken = chart_says(helm, unguarded, values, shared)
    answer = broken or server_says(cluster, text, shared)
    assert bool(told) == bool(answer), f"chart: {told or 'takes it'}\nAPI server: {answer or 'takes it'}"


@pytest.mark.parametrize(
    ("port", "is_taken"), [(80, False), (29_999, False), (30_000, True), (32_767, True), (32_768, False)]
)
def test_chart_and_api_server_agree_on_node_ports(
    cluster: Cluster, unguarded: Path, namespace: str, port: int, is_taken: bool
) -> None:
    """A dry run does not look at the range."""
    values = service(type="NodePort", nodePort=port)
    _, told = chart_says(helms()[4], CHART, values, namespace)
    text, _ = chart_says(helms()[4], unguarded, values, namespace)
    [document, _] = [document for document in read(text) if document["kind"] == "Service"]
    assert bool(told) is not is_taken
    if is_taken:
        cluster.apply(document)
    else:
        with pytest.raises(RefusedError, match="not in the valid range"):
            cluster.apply(document)
