"""Are documents what Kubernetes takes? Unknown keys and unknown kinds are faults."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import yaml

from tests.chart.tools import TOOLS, Document

CLOSED = Path(__file__).parent / "crds" / "closed.yaml"
TYPED = {
    "gateway.networking.k8s.io/v1": "gateway-api",
    "cloud.google.com/v1": "gke",
    "networking.gke.io/v1": "gke",
    "networking.istio.io/v1": "istio",
    "keda.sh/v1alpha1": "keda",
    "monitoring.coreos.com/v1": "prometheus-operator",
}
"""Custom resources whose types a package has: test_custom_resources compiles against them."""
_METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "namespace", "labels"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


def has_schemas(kubernetes: str) -> bool:
    """Whether the schemas of that version are here."""
    return (TOOLS / "schemas" / kubernetes).is_dir()


def faults(document: Document, kubernetes: str) -> list[str]:
    """What that Kubernetes, or a custom resource's schema, has against a document."""
    group, kind = document["apiVersion"], document["kind"]
    if group in TYPED:
        return _told(_metadata(), document["metadata"])
    validator = _closed().get(f"{group}/{kind}") or _core(kubernetes, group, kind)
    if validator is None:
        return [f"Kubernetes {kubernetes} knows no {group}/{kind}"]
    return _told(validator, document)


def _told(validator: jsonschema_rs.Draft202012Validator, value: Any) -> list[str]:
    return [f"{'/'.join(map(str, error.instance_path))}: {error.message}" for error in validator.iter_errors(value)]


@cache
def _metadata() -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(_METADATA)


@cache
def _closed() -> dict[str, jsonschema_rs.Draft202012Validator]:
    found = {}
    for name, spec in yaml.safe_load(CLOSED.read_text(encoding="utf-8")).items():
        closed = {"type": "object", "additionalProperties": False, **spec}
        properties = {"apiVersion": {}, "kind": {}, "metadata": _METADATA, "spec": closed}
        found[name] = jsonschema_rs.Draft202012Validator(
            {"type": "object", "additionalProperties": False, "required": ["spec"], "properties": properties}
        )
    return found


@cache
def _core(kubernetes: str, group: str, kind: str) -> jsonschema_rs.Draft202012Validator | None:
    short, _, version = group.rpartition("/")
    file = TOOLS / "schemas" / kubernetes / f"{kind}-{short.split('.')[0] + '-' if short else ''}{version}.json".lower()
    if not file.exists():
        return None
    return jsonschema_rs.Draft202012Validator(
        json.loads(file.read_bytes()), registry=_registry(kubernetes), validate_formats=False
    )


@cache
def _registry(kubernetes: str) -> jsonschema_rs.Registry:
    definitions = json.loads((TOOLS / "schemas" / kubernetes / "_definitions.json").read_bytes())
    return jsonschema_rs.Registry([(definitions["$id"], definitions)])
