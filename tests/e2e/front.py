"""What stands between a client and the nodes: one listener of a proxy, told what the chart rendered for it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from tests.chart.cases import gateway, ingress
from tests.chart.tools import NAME, Document, Values
from tests.e2e.programs import helm

PLAIN = "ingress "
"""The preset of a chart that knows nothing of the proxy: what is left is the proxy as it is installed."""
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


@dataclass
class Front:
    """One listener. `nodes` are the ports that it leads to, as the Service's endpoints are."""

    preset: str
    """`ingress NAME` or `gateway NAME`, as in the chart's values; `gateway NAME@VERSION` for an older controller."""
    documents: Sequence[Document]
    nodes: list[int]
    tls: bool = False
    port: int = 0
    slots: list[int] = field(default_factory=list)
    """All nodes that it has ever led to, each in its place."""

    def __post_init__(self) -> None:
        self.slots = list(self.nodes)

    def annotations(self, kind: str) -> Mapping[str, str]:
        """Of the one object of that kind that the chart made for clients; empty without it."""
        for document in self.documents:
            if document["kind"] == kind and document["metadata"]["name"] == NAME:
                found: Mapping[str, str] = document["metadata"].get("annotations") or {}
                return found
        return {}

    def spec(self, kind: str) -> Any:
        """`spec` of that object; None without it."""
        for document in self.documents:
            if document["kind"] == kind and document["metadata"]["name"] == NAME:
                return document["spec"]
        return None

    @property
    def paths(self) -> list[str]:
        """What it leads to the nodes; nothing else."""
        if (spec := self.spec("Ingress")) is not None:
            return [path["path"] for rule in spec["rules"] for path in rule["http"]["paths"]]
        if (spec := self.spec("HTTPProxy")) is not None:
            return [condition["prefix"] for route in spec["routes"] for condition in route["conditions"]]
        return [match["path"]["value"] for rule in self.spec("HTTPRoute")["rules"] for match in rule["matches"]]


def rendered(preset: str, idle: int, heartbeat: float, *, sticky: bool = False) -> list[Document]:
    """What the chart makes of that preset."""
    return _rendered(preset, idle, heartbeat, sticky)


@cache
def _rendered(preset: str, idle: int, heartbeat: float, sticky: bool) -> list[Document]:
    kind, _, named = preset.partition(" ")
    name, _, version = named.partition("@")
    values: Values = ingress(name, sticky=sticky) if kind == "ingress" else gateway(name, sticky=sticky)
    if version:
        values = {**values, "gateway": {**values["gateway"], "implementationVersion": version}}
    if kind == "ingress":
        values = {**values, "ingress": {**values["ingress"], "hosts": ["localhost"], "tls": []}}
    return helm().template(
        {
            **values,
            "idleTimeout": idle,
            "replicas": 2,
            "settings": {"broker": {"url": "redis://redis"}, "deadlines": {"heartbeat": heartbeat}},
        }
    )


def settings_of(documents: Sequence[Document]) -> dict[str, Any]:
    """The service's settings that the chart renders beside."""
    [text] = [
        d["data"]["settings.yaml"] for d in documents if d["kind"] == "ConfigMap" and "settings.yaml" in d["data"]
    ]
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def seconds(duration: str) -> float:
    """A duration as proxies write them (`8s`, `1h`, `500ms`; a bare number is seconds). Raises ValueError."""
    if re.fullmatch(r"[0-9]+", duration):
        return float(duration)
    parts = re.findall(r"([0-9.]+)(ms|[smhd])", duration)
    if not parts or "".join(map("".join, parts)) != duration:
        raise ValueError(f"{duration!r} is no duration")
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
