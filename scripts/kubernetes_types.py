#!/usr/bin/env python3
"""Makes scripts/kubernetes_types.json: the types of Kubernetes that values of the chart have, for values.schema.json.

They are taken from the schemas that `scripts/setup.sh chart` installs, of the newest Kubernetes there. A line `@kubernetes` in
values.yaml names one of `ROOTS`. `--check` writes nothing and fails if the file differs.

No tool of this kind exists for values: kubeconform checks rendered manifests, after Helm has accepted the values.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "scripts" / "kubernetes_types.json"
SCHEMAS = ROOT / ".venv" / "chart" / "schemas"
ROOTS = (
    "io.k8s.api.autoscaling.v2.HorizontalPodAutoscalerBehavior",
    "io.k8s.api.core.v1.Affinity",
    "io.k8s.api.core.v1.Container",
    "io.k8s.api.core.v1.EnvFromSource",
    "io.k8s.api.core.v1.EnvVar",
    "io.k8s.api.core.v1.HostAlias",
    "io.k8s.api.core.v1.LifecycleHandler",
    "io.k8s.api.core.v1.PodSecurityContext",
    "io.k8s.api.core.v1.SecurityContext",
    "io.k8s.api.core.v1.Toleration",
    "io.k8s.api.core.v1.TopologySpreadConstraint",
    "io.k8s.api.core.v1.Volume",
    "io.k8s.api.core.v1.VolumeMount",
    "io.k8s.api.networking.v1.NetworkPolicyEgressRule",
    "io.k8s.api.networking.v1.NetworkPolicyIngressRule",
    "io.k8s.api.networking.v1.NetworkPolicyPeer",
)
Json = dict[str, Any]


def _one_of(*words: str) -> Json:
    """One of these words, or a template, as containers and volumes may hold."""
    return {"pattern": rf"^({'|'.join(words)})$|\{{\{{"}


_UNSIGNED: Json = {"minimum": 0, "maximum": 2**31 - 1}
_PORT: Json = {"minimum": 1, "maximum": 65535, "pattern": "^[a-z0-9][-a-z0-9]*$|\\{\\{"}
_NAME: Json = {"type": "string", "minLength": 1}
_FIELDS: dict[str, Json] = {
    "AppArmorProfile.type": _one_of("Localhost", "RuntimeDefault", "Unconfined"),
    "Container.imagePullPolicy": _one_of("Always", "IfNotPresent", "Never"),
    "HPAScalingRules.selectPolicy": _one_of("Max", "Min", "Disabled"),
    "HTTPGetAction.port": _PORT,
    "HTTPGetAction.scheme": _one_of("HTTP", "HTTPS"),
    "HostAlias.hostnames": {"items": _NAME},
    "LabelSelectorRequirement.operator": _one_of("In", "NotIn", "Exists", "DoesNotExist"),
    "NetworkPolicyPort.endPort": {"minimum": 1, "maximum": 65535},
    "NetworkPolicyPort.port": _PORT,
    "NetworkPolicyPort.protocol": _one_of("TCP", "UDP", "SCTP"),
    "NodeSelectorRequirement.operator": _one_of("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    "PodSecurityContext.fsGroup": _UNSIGNED,
    "PodSecurityContext.fsGroupChangePolicy": _one_of("Always", "OnRootMismatch"),
    "PodSecurityContext.runAsGroup": _UNSIGNED,
    "PodSecurityContext.runAsUser": _UNSIGNED,
    "PodSecurityContext.supplementalGroups": {"items": {"type": "integer", **_UNSIGNED}},
    "SeccompProfile.type": _one_of("Localhost", "RuntimeDefault", "Unconfined"),
    "SecurityContext.procMount": _one_of("Default", "Unmasked"),
    "SecurityContext.runAsGroup": _UNSIGNED,
    "SecurityContext.runAsUser": _UNSIGNED,
    "TCPSocketAction.port": _PORT,
    "TopologySpreadConstraint.nodeAffinityPolicy": _one_of("Honor", "Ignore"),
    "TopologySpreadConstraint.nodeTaintsPolicy": _one_of("Honor", "Ignore"),
}
"""What the API server's validation knows of fields and its schemas do not."""
_NAMED = {
    "ConfigMapEnvSource": "name",
    "ConfigMapKeySelector": "name",
    "ConfigMapProjection": "name",
    "ConfigMapVolumeSource": "name",
    "SecretEnvSource": "name",
    "SecretKeySelector": "name",
    "SecretProjection": "name",
    "SecretVolumeSource": "secretName",
}
"""References whose name validation asks for and schemas do not."""
_TYPES: dict[str, Json] = {
    "EnvVarSource": {"minProperties": 1},
    "LabelSelectorRequirement": {
        "if": {"properties": {"operator": {"enum": ["In", "NotIn"]}}},
        "then": {"required": ["values"], "properties": {"values": {"type": "array", "minItems": 1}}},
        "else": {"properties": {"values": {"maxItems": 0}}},
    },
    "Quantity": {
        "pattern": r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$|\{\{",
    },
}
_COMPLETED = ("TopologySpreadConstraint",)
"""Types whose required fields the chart sets where they are missing."""
_KEPT = ("type", "items", "additionalProperties")


def types(definitions: Json) -> Json:
    """The roots and what they refer to, by short name."""
    found: Json = {}
    wanted = list(ROOTS)
    while wanted:
        name = wanted.pop()
        if _short(name) not in found:
            found[_short(name)] = _kept(definitions[name])
            wanted += _references(definitions[name])
    for name in _COMPLETED:
        del found[name]["required"]
    for name, more in _TYPES.items():
        found[name] |= more
    for place, more in _FIELDS.items():
        name, _, field = place.partition(".")
        held = found[name]["properties"][field]
        if "$ref" in held:
            held = found[name]["properties"][field] = dict(found[held["$ref"].rpartition("/")[2]])
        held |= more
    for name, field in _NAMED.items():
        found[name]["required"] = [*found[name].get("required", ()), field]
        found[name]["properties"][field] = _NAME
    return dict(sorted(found.items()))


def newest() -> Json | None:
    """The definitions of the newest Kubernetes whose schemas are here; None without schemas."""
    versions = sorted(SCHEMAS.glob("1.*"), key=lambda folder: int(folder.name.partition(".")[2]))
    if not versions:
        return None
    found: Json = json.loads((versions[-1] / "_definitions.json").read_bytes())["$defs"]
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def _kept(part: Any) -> Any:
    """Without texts."""
    if not isinstance(part, dict):
        return [_kept(one) for one in part] if isinstance(part, list) else part
    if "$ref" in part:
        return {"$ref": f"#/definitions/{_short(part['$ref'])}"}
    if "oneOf" in part:  # Quantity and IntOrString: null would be both of both
        return {"type": sorted({each for one in part["oneOf"] for each in one["type"]})}
    kept = {name: _kept(value) for name, value in part.items() if name in _KEPT}
    if "properties" in part:
        kept["properties"] = {name: _kept(value) for name, value in part["properties"].items()}
        needed = [name for name in part.get("required", ()) if (name, _type(part, name)) != ("value", "string")]
        for name in needed:
            if _type(part, name) == "string":
                kept["properties"][name]["minLength"] = 1
        kept = {**kept, "required": needed} if needed else kept
    if part.get("format") == "int32":
        kept |= {"minimum": -(2**31), "maximum": 2**31 - 1}
    return kept


def _type(part: Json, name: str) -> Any:
    """The type of a field. The text `value` of a header or sysctl may be missing, whatever the schemas say."""
    return part["properties"][name].get("type")


def main() -> int:
    """Writes the file, or says whether it differs."""
    definitions = newest()
    if definitions is None:
        print(
            "kubernetes_types: no schemas of Kubernetes are here; scripts/setup.sh chart installs them", file=sys.stderr
        )
        return 1
    lines = [f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in types(definitions).items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    if "--check" in sys.argv[1:]:
        if FILE.read_text(encoding="utf-8") != text:
            print(f"{FILE} differs from Kubernetes' schemas: run scripts/kubernetes_types.py", file=sys.stderr)
            return 1
        return 0
    FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
