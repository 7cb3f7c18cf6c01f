"""Values with which the chart is rendered: every preset, and every switch on."""

from __future__ import annotations

from tests.chart.tools import Values

INGRESS_PRESETS = ("", "nginx", "f5-nginx", "traefik", "haproxytech", "jcmoraisjr", "alb", "agic", "gce", "contour")
GATEWAYS = ("", "istio", "envoy-gateway", "cilium", "traefik", "ngf", "gke", "aws")
STICKY_GATEWAYS = ("istio", "envoy-gateway", "gke", "aws")
REDIS = {"broker": {"url": "redis://redis.db:6379"}}

_TLS = [{"secretName": "rt-tls", "hosts": ["rt.example.com"]}]
_CONTRACT = """\
channels:
  "r:{r}":
    subscribe: everyone
    history: {events: 10, ttl: 1h}
    events:
      a.b: {publish: server, delivery: durable, schema: {$ref: s/a.json}}
"""
_PARENTS = [{"name": "public", "namespace": "gateways"}]
_RESTRICTED = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def ingress(preset: str, *, sticky: bool = False) -> Values:
    """An ingress with that preset."""
    hosts = {"hosts": ["rt.example.com", "rt.example.org"], "tls": _TLS}
    return {
        "ingress": {"enabled": True, "preset": preset, "className": "public", **hosts},
        "stickySessions": {"enabled": sticky},
    }


def gateway(implementation: str, *, sticky: bool = False) -> Values:
    """A route with that implementation."""
    route = {"enabled": True, "implementation": implementation, "parentRefs": _PARENTS, "hostnames": ["rt.example.com"]}
    return {"gateway": route, "stickySessions": {"enabled": sticky}}


WEBHOOK = {"name": "archive", "tenants": ["default"]}
ARCHIVE = {
    **WEBHOOK,
    "url": "http://archive.shop.svc:3000/webhooks",
    "secrets_file": "/etc/tidewire/webhooks/archive",
}
MODERATION = {
    "name": "moderation",
    "url": "https://backend.test/hooks",
    "tenants": ["default"],
    "secrets_file": "/etc/tidewire/hooks/moderation",
    "ca": "/etc/tidewire/hooks/ca.crt",
}


def every_secret() -> Values:
    """Each kind of Secret, by a name of the user's own."""
    return {
        "settings": {
            "broker": {"url": "rediss+sentinel://s1:26379,s2:26379/main", "sentinel_user": "watch"},
            "hooks": {"endpoints": [MODERATION]},
            "webhooks": {"endpoints": [ARCHIVE]},
        },
        "secrets": {
            "generate": False,
            "authSecret": {"existingSecret": "auth", "key": "hs256"},
            "authIssuers": {"existingSecret": "issuers"},
            "jwks": {"existingConfigMap": "jwks"},
            "hooks": {"existingSecret": "hooks"},
            "webhooks": {"existingSecret": "webhooks"},
            "apiKey": {"existingSecret": "api"},
            "apiKeys": {"existingSecret": "api", "key": "more.json"},
            "brokerPassword": {"existingSecret": "redis"},
            "sentinelPassword": {"existingSecret": "redis", "key": "sentinel"},
            "brokerCa": {"existingConfigMap": "redis-ca"},
            "brokerClient": {"existingSecret": "redis-client"},
        },
    }


CASES: dict[str, Values] = {
    "defaults": {},
    **{f"ingress {preset or 'plain'}": ingress(preset) for preset in INGRESS_PRESETS},
    **{f"ingress {preset} sticky": ingress(preset, sticky=True) for preset in INGRESS_PRESETS if preset},
    **{f"gateway {name or 'plain'}": gateway(name) for name in GATEWAYS},
    **{f"gateway {name} sticky": gateway(name, sticky=True) for name in STICKY_GATEWAYS},
    "gateway created": {
        "gateway": {"enabled": True, "implementation": "aws", "create": {"enabled": True, "className": "alb"}}
    },
    "gateway timeouts": {
        "gateway": {"enabled": True, "parentRefs": _PARENTS, "timeouts": {"request": "0s", "backendRequest": "0s"}}
    },
    "gateway session persistence": {
        "gateway": {
            "enabled": True,
            "parentRefs": _PARENTS,
            "sessionPersistence": {"enabled": True, "spec": {"sessionName": "pod", "type": "Cookie"}},
        }
    },
    "aws v1beta1": {
        "gateway": {
            "enabled": True,
            "implementation": "aws",
            "parentRefs": _PARENTS,
            "aws": {"apiVersion": "gateway.k8s.aws/v1beta1"},
        }
    },
    "ingress f5-nginx 5.3 sticky": {
        "ingress": {**ingress("f5-nginx")["ingress"], "presetVersion": "5.3"},
        "stickySessions": {"enabled": True},
    },
    "gateway envoy-gateway 1.7": {"gateway": {**gateway("envoy-gateway")["gateway"], "implementationVersion": "1.7"}},
    "gateway ngf 2.5": {"gateway": {**gateway("ngf")["gateway"], "implementationVersion": "2.5"}},
    "gateway ngf 2.3": {"gateway": {**gateway("ngf")["gateway"], "implementationVersion": "2.3"}},
    "gateway aws 3.4 sticky": {
        "gateway": {**gateway("aws")["gateway"], "implementationVersion": "3.4"},
        "stickySessions": {"enabled": True},
    },
    "ingress without hosts": {"ingress": {"enabled": True}},
    "replicas": {"replicas": 3, "settings": REDIS},
    "no pods": {"replicas": 0},
    "cluster on usual port": {"settings": {"broker": {"url": "rediss+cluster://redis.db"}}, "replicas": 2},
    "nats": {"settings": {"broker": {"url": "tls://n1:4222,n2:4222"}}, "networkPolicy": {"enabled": True}},
    "every secret": every_secret(),
    "connect hook": {
        "networkPolicy": {"enabled": True},
        "settings": {
            "hooks": {
                "endpoints": [MODERATION],
                "connect": {"endpoint": "moderation", "headers": ["x-device"], "rate": {"per_second": 20, "burst": 50}},
            }
        },
        "secrets": {"generate": False, "hooks": {"existingSecret": "hooks"}},
    },
    "webhooks": {
        "networkPolicy": {"enabled": True, "httpsEgress": True},
        "settings": {
            "webhooks": {"endpoints": [ARCHIVE], "queues": 8, "keep": 604_800, "clients": {"endpoint": "archive"}}
        },
        "secrets": {"webhooks": {"existingSecret": "webhooks"}},
    },
    "webhooks without an address": {
        "settings": {"webhooks": {"endpoints": [WEBHOOK]}},
    },
    "anonymous": {"secrets": {"generate": False}, "settings": {"auth": {"anonymous": True}}},
    "contract": {
        "contract": {
            "text": _CONTRACT,
            "files": {"s/a.json": '{"type": "object"}'},
        }
    },
    "contract elsewhere": {"contract": {"existingConfigMap": "contracts", "key": "main.yaml"}},
    "hpa": {"autoscaling": {"hpa": {"enabled": True, "connections": {"enabled": True}}}, "settings": REDIS},
    "keda": {
        "autoscaling": {
            "keda": {
                "enabled": True,
                "prometheusAddress": "http://prometheus:9090",
                "triggerAuthentication": "prometheus",
            }
        },
        "settings": REDIS,
    },
    "keda 2.16": {
        "autoscaling": {"keda": {"enabled": True, "prometheusAddress": "http://prometheus:9090", "version": "2.16"}},
        "settings": REDIS,
    },
    "network policy": {
        "networkPolicy": {
            "enabled": True,
            "publicFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}],
            "opsFrom": [{"namespaceSelector": {}}],
            "brokerTo": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "extraIngress": [{"ports": [{"port": 9999}]}],
            "extraEgress": [{"ports": [{"port": 4318}]}],
        },
        "settings": REDIS,
    },
    "network policy, memory": {"networkPolicy": {"enabled": True, "httpsEgress": False}},
    "service monitor": {
        "serviceMonitor": {
            "enabled": True,
            "labels": {"release": "prometheus"},
            "relabelings": [{"action": "labeldrop", "regex": "pod_.*"}],
            "metricRelabelings": [{"action": "drop", "sourceLabels": ["__name__"], "regex": "python_.*"}],
        }
    },
    "pod monitor": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "rules of one's own": {
        "prometheusRule": {
            "enabled": True,
            "groups": [{"name": "mine", "rules": [{"alert": "Away", "expr": "tidewire_ready == 0", "for": "5m"}]}],
        }
    },
    "dashboards": {"dashboards": {"enabled": True, "folder": "Realtime"}},
    "disruptions: none": {"podDisruptionBudget": {"maxUnavailable": 0}},
    "disruptions: per cent": {"podDisruptionBudget": {"minAvailable": "50%"}},
    "disruptions: no budget": {"podDisruptionBudget": {"enabled": False}},
    "rollout": {"strategy": {"maxUnavailable": "25%", "maxSurge": 0}, "minReadySeconds": 0, "preStopSeconds": 0},
    "load balancer": {
        "service": {
            "type": "LoadBalancer",
            "loadBalancerClass": "service.k8s.aws/nlb",
            "externalTrafficPolicy": "Local",
            "appProtocol": "http",
            "annotations": {"service.beta.kubernetes.io/aws-load-balancer-type": "external"},
        }
    },
    "account of one's own": {"serviceAccount": {"create": False, "name": "mine"}},
    "image by digest": {"image": {"repository": "r.example.com/rt", "digest": f"sha256:{'0' * 64}"}},
    "everything extra": {
        "commonLabels": {"team": "chat"},
        "commonAnnotations": {"example.com/owner": "chat"},
        "podLabels": {"color": "blue"},
        "podAnnotations": {"example.com/scrape": "no"},
        "imagePullSecrets": [{"name": "pull"}],
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "realtime", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["rt"]}]}]
                }
            }
        },
        "topologySpread": {"whenUnsatisfiable": "DoNotSchedule"},
        "priorityClassName": "realtime",
        "extraEnv": [{"name": "RELEASE", "value": "{{ .Release.Name }}"}],
        "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "initContainers": [{"name": "first", "image": "busybox", "securityContext": _RESTRICTED}],
        "extraContainers": [{"name": "beside", "image": "busybox", "securityContext": _RESTRICTED}],
        "extraObjects": [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "{{ .Release.Name }}-one"}},
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {{ .Release.Name }}-two\n",
        ],
    },
    "no spread, no tests": {"topologySpread": {"enabled": False}, "tests": {"enabled": False}},
    "long names": {"fullnameOverride": "a-name-that-is-much-longer-than-what-is-left-for-it-in-a-label"},
}
"""By name."""

SOME = frozenset(
    {
        "defaults",
        "ingress nginx sticky",
        "ingress contour sticky",
        "ingress gce sticky",
        "gateway envoy-gateway sticky",
        "gateway gke sticky",
        "gateway aws sticky",
        "gateway istio sticky",
        "gateway ngf",
        "gateway created",
        "every secret",
        "connect hook",
        "webhooks",
        "contract",
        "hpa",
        "keda",
        "network policy",
        "service monitor",
        "pod monitor",
        "rules of one's own",
        "dashboards",
        "everything extra",
    }
)
"""Those of the smaller matrix: one of each kind of object."""
