"""The chart's monitoring: alerts, recording rules, runbooks, and the metrics that their expressions name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from service.telemetry.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "tidewire"
RULES = sorted((CHART / "rules").glob("*.yaml"))
RUNBOOKS = ROOT / "docs" / "runbooks"
FOREIGN = {
    "kube_horizontalpodautoscaler_status_current_replicas": "kube-state-metrics",
    "kube_horizontalpodautoscaler_spec_max_replicas": "kube-state-metrics",
    "kube_horizontalpodautoscaler_spec_min_replicas": "kube-state-metrics",
    "kube_pod_container_resource_limits": "kube-state-metrics",
    "kube_pod_container_status_restarts_total": "kube-state-metrics",
    "container_memory_working_set_bytes": "cAdvisor",
    "container_cpu_cfs_throttled_seconds_total": "cAdvisor",
    "kube_deployment_status_condition": "kube-state-metrics",
    "kube_deployment_status_replicas_available": "kube-state-metrics",
    "kube_deployment_status_replicas_unavailable": "kube-state-metrics",
    "kube_deployment_status_replicas_updated": "kube-state-metrics",
    "up": "Prometheus",
}
"""Metrics of other programs, by program."""
_NAME = re.compile(r"(?<![\w:$])((?:namespace_job:)?(?:tidewire|process|kube|container)_[a-z0-9_:]+|up)\b(?!\s*=(?!=))")
_QUOTED = re.compile(r'"[^"]*"')
_BLOCK = re.compile(r"^```promql\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the chart."""

    name: str
    expr: str
    is_alert: bool


@cache
def groups() -> Sequence[Mapping[str, Any]]:
    """Every group of the chart's rules."""
    return [group for file in RULES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]


@cache
def rules() -> Sequence[Rule]:
    """Every rule of the chart."""
    return [
        Rule(rule.get("alert") or rule["record"], rule["expr"], "alert" in rule)
        for group in groups()
        for rule in group["rules"]
    ]


def runbook_queries(name: str) -> list[str]:
    """The queries of an alert's runbook."""
    return _BLOCK.findall((RUNBOOKS / f"{name}.md").read_text(encoding="utf-8"))


def names(expr: str) -> set[str]:
    """The metrics in an expression."""
    return set(_NAME.findall(_QUOTED.sub('""', expr)))


@cache
def exported() -> frozenset[str]:
    """The names of every sample that a node can export, and of every series that the chart records."""
    found = {rule.name for rule in rules() if not rule.is_alert}
    for family in Metrics().registry.collect():
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
            "info": ("_info",),
        }.get(family.type, ("",))
        found |= {family.name + suffix for suffix in suffixes}
    return frozenset(found)
