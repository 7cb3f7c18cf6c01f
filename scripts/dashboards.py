#!/usr/bin/env python3
"""Writes the chart's dashboards (helm/tidewire/dashboards, JSON that Grafana 10 to 12 reads) from helm/dashboards/*.yaml.

Each panel there has a title, a description (what it shows, what is normal, what to do), a unit, and either `queries`
(expressions by legend) or `quantiles` of a histogram. This script adds what all panels have in common. `--check` writes nothing
and fails if a file differs.

The Grafana Foundation SDK builds the same JSON from code, panel by panel. These sources are data that operators can read, and
need no further dependency. Grafonnet needs Jsonnet.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from generated import ROOT, update

SOURCES = ROOT / "helm" / "dashboards"
TARGET = Path("helm/tidewire/dashboards")

Json = dict[str, Any]
Kind = Literal["timeseries", "stat"]

WIDTH = 24
"""Columns of Grafana's grid."""
SIZES: dict[Kind, tuple[int, int]] = {"timeseries": (8, 8), "stat": (3, 4)}
"""Width and height of a panel, in columns and lines."""
SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
PLACES = {
    "%S": 'namespace=~"$namespace",job=~"$job",pod=~"$pod"',
    "%N": 'namespace=~"$namespace",pod=~"$pod"',
    "%R": "$__rate_interval",
}
"""Signs in expressions: %S selects the service's metrics by Grafana's variables; %N those of exporters with another job."""
SCHEMA = 38
"""Schema version of Grafana 10.0; newer versions of Grafana migrate it."""
QUANTILES = {"p50": "0.5", "p99": "0.99"}
_GREEN, _YELLOW, _RED = "green", "yellow", "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel."""

    title: str
    description: str
    """What it shows, what is normal, what to do."""
    unit: str
    kind: Kind = "timeseries"
    queries: dict[str, str] = field(default_factory=dict)
    """Expressions by legend."""
    quantiles: str = ""
    """A histogram whose p50 and p99 are shown, instead of queries."""
    thresholds: tuple[float, ...] = ()
    """Values from which the panel is yellow and red, or red. If they fall, lower values are worse."""
    stacked: bool = False
    max: float | None = None
    """The top of the scale."""

    @property
    def expressions(self) -> dict[str, str]:
        """Expressions by legend, with variables in place of the signs."""
        queries = self.queries or {
            legend: f"histogram_quantile({quantile}, sum by (le) (rate({self.quantiles}_bucket{{%S}}[%R])))"
            for legend, quantile in QUANTILES.items()
        }
        return {legend: placed(expr) for legend, expr in queries.items()}


def placed(expr: str) -> str:
    """Replaces the signs of an expression by Grafana's variables."""
    for sign, text in PLACES.items():
        expr = expr.replace(sign, text)
    return expr


def read(source: Path) -> Json:
    """Reads a source file. Raises TypeError for an unknown key of a panel."""
    dashboard: Json = yaml.safe_load(source.read_text(encoding="utf-8"))
    for row in dashboard["rows"]:
        row["panels"] = [
            Panel(**{**panel, "thresholds": tuple(panel.get("thresholds", ()))}) for panel in row["panels"]
        ]
    return dashboard


def rendered(dashboard: Json) -> Json:
    """Returns the JSON that Grafana imports."""
    panels: list[Json] = []
    top = 0
    for row in dashboard["rows"]:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row["title"],
                "collapsed": False,
                "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
                "panels": [],
            }
        )
        top = _lay(row["panels"], panels, top + 1)
    return {
        "uid": dashboard["uid"],
        "title": dashboard["title"],
        "description": dashboard["description"],
        "tags": ["tidewire"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "links": [_LINK],
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _lay(row: list[Panel], panels: list[Json], top: int) -> int:
    """Places panels from left to right, line by line, and returns the top of the next row."""
    left, height = 0, 0
    for one in row:
        width, lines = SIZES[one.kind]
        if left + width > WIDTH:
            left, top, height = 0, top + height, 0
        place = {"x": left, "y": top, "w": width, "h": lines}
        panels.append(_panel(one, len(panels) + 1, place))
        left, height = left + width, max(height, lines)
    return top + height


def _panel(one: Panel, number: int, place: Json) -> Json:
    defaults: Json = {"unit": one.unit, "thresholds": {"mode": "absolute", "steps": _steps(one.thresholds)}}
    if one.kind == "timeseries" or (one.max is not None and one.max <= 1):
        defaults["min"] = 0
    if one.max is not None:
        defaults["max"] = one.max
    if one.kind == "stat":
        defaults["color"] = {"mode": "thresholds"}
        options: Json = {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "area",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto",
        }
    else:
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 30 if one.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if one.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if one.thresholds else "off"},
        }
        options = {
            "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }
    return {
        "id": number,
        "type": one.kind,
        "title": one.title,
        "description": one.description,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [_target(legend, expr, index) for index, (legend, expr) in enumerate(one.expressions.items())],
    }


def _target(legend: str, expr: str, index: int) -> Json:
    return {
        "refId": chr(ord("A") + index),
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": expr,
        "legendFormat": legend or "__auto",
        "range": True,
        "instant": False,
    }


def _steps(thresholds: tuple[float, ...]) -> list[Json]:
    falling = len(thresholds) > 1 and thresholds[0] > thresholds[-1]
    colors = (_YELLOW, _RED) if len(thresholds) > 1 else (_RED,)
    if falling:  # from the worst upwards
        values = sorted(thresholds)
        return [
            {"color": _RED, "value": None},
            {"color": _YELLOW, "value": values[0]},
            {"color": _GREEN, "value": values[1]},
        ]
    steps = [{"color": color, "value": value} for color, value in zip(colors, thresholds, strict=False)]
    return [{"color": _GREEN, "value": None}, *steps]


def _variables() -> list[Json]:
    narrowing = {"namespace": "", "job": 'namespace=~"$namespace"', "pod": 'namespace=~"$namespace",job=~"$job"'}
    source: Json = {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "multi": False,
        "includeAll": False,
    }
    return [source, *(_variable(name, inside) for name, inside in narrowing.items())]


def _variable(name: str, inside: str) -> Json:
    query = f"label_values(tidewire_ready{{{inside}}}, {name})"
    return {
        "name": name,
        "label": name.capitalize(),
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        # Also matches series without the label, as of a node outside of Kubernetes.
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


_LINK: Json = {
    "type": "dashboards",
    "title": "Tidewire",
    "tags": ["tidewire"],
    "asDropdown": False,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}


def main() -> int:
    """Writes every dashboard, or names those that are out of date."""
    dashboards = [read(source) for source in sorted(SOURCES.glob("*.yaml"))]
    return update(
        {
            TARGET / f"{dashboard['uid']}.json": json.dumps(rendered(dashboard), indent=2, ensure_ascii=False) + "\n"
            for dashboard in dashboards
        }
    )


if __name__ == "__main__":
    sys.exit(main())
