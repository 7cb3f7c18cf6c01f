"""The dashboards: panels do not overlap, query exported metrics only, and together show every metric."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from tests.e2e.watching.expressions import dashboards, filled_in, of_dashboards, panels
from tests.support.monitoring import FOREIGN, exported, names

ALL = {dashboard["uid"]: dashboard for dashboard in dashboards()}
EVERY = [(dashboard["title"], panel) for dashboard in ALL.values() for panel in panels(dashboard)]
OURS = re.compile(r"(?:tidewire|process)_\w+(\{[^}]*\})?")
WIDTH = 24


def every_panel(test: Any) -> Any:
    return pytest.mark.parametrize(
        "panel", [panel for _, panel in EVERY], ids=[f"{of} {one['title']}" for of, one in EVERY]
    )(test)


@pytest.mark.parametrize("uid", ALL)
def test_panels_of_a_dashboard_do_not_overlap(uid: str) -> None:
    places = [(panel["id"], panel["gridPos"]) for panel in ALL[uid]["panels"]]
    assert len({number for number, _ in places}) == len(places)
    for _, place in places:
        assert 0 <= place["x"] <= place["x"] + place["w"] <= WIDTH
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one, other)


@every_panel
def test_panel_queries_name_exported_metrics_and_filter_by_variables(panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expr = target["expr"]
        filled_in(expr)  # which raises for a variable that is none
        found = names(expr) - {"up"}
        assert found or "ALERTS" in expr
        assert found <= exported() | FOREIGN.keys()
        for selector in OURS.findall(re.sub(r'"[^"]*"', lambda text: text[0].replace("tidewire", "…"), expr)):
            assert 'namespace=~"$namespace"' in selector, "what is not chosen is left out"
            assert 'job=~"$job",pod=~"$pod"' in selector
        legend = target["legendFormat"]
        for label in re.findall(r"\{\{(\w+)\}\}", legend):
            assert re.search(rf"by \([^)]*\b{label}\b[^)]*\)", expr), "a legend of a label that is summed away"


def test_every_exported_metric_is_on_a_dashboard() -> None:
    shown = {name for asked in of_dashboards() for name in names(asked.expr)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("tidewire_")}
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert families - seen == set()
