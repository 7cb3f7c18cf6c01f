"""What dashboards, rules and runbooks ask Prometheus for, as it can be asked while a day is watched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.monitoring import CHART, Rule

DASHBOARDS = sorted((CHART / "dashboards").glob("*.json"))
VARIABLES = {"$namespace": ".*", "$job": ".*", "$pod": ".*", "$__rate_interval": "5s", "$__range": "1h"}
"""What Grafana would put in their places: everything is chosen, and five scrapes are a rate's."""
_THRESHOLD = re.compile(r"\s(?:>=|<=|==|>|<) [0-9.]+$")


@dataclass(frozen=True, slots=True)
class Asked:
    """One expression of one panel."""

    dashboard: str
    panel: str
    legend: str
    expr: str


def dashboards() -> Iterator[dict[str, Any]]:
    """Every dashboard of the chart."""
    for file in DASHBOARDS:
        yield json.loads(file.read_text(encoding="utf-8"))


def filled_in(expr: str) -> str:
    """An expression with its variables. Raises ValueError for one that Grafana does not know of these dashboards."""
    for name in sorted(VARIABLES, key=len, reverse=True):
        expr = expr.replace(name, VARIABLES[name])
    if "$" in expr:
        raise ValueError(f"an unknown variable: {expr}")
    return expr


def panels(dashboard: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Its panels, without the rows."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def of_dashboards() -> list[Asked]:
    """Every expression of every panel."""
    return [
        Asked(dashboard["title"], panel["title"], target["legendFormat"], filled_in(target["expr"]))
        for dashboard in dashboards()
        for panel in panels(dashboard)
        for target in panel["targets"]
    ]


def without_threshold(rule: Rule) -> str:
    """What an alert looks at, whether it fires or not; of another rule the whole."""
    return _THRESHOLD.sub("", rule.expr) if rule.is_alert else rule.expr
