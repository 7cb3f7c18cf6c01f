"""The dashboards: every panel says what it is, in a unit, in a place of its own, and asks for what there is."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest

from tests.e2e.watching.expressions import dashboards, filled_in, of_dashboards, panels
from tests.e2e.watching.units import FORMATS
from tests.monitoring import FOREIGN, RUNBOOKS, exported, names

ALL = {dashboard["uid"]: dashboard for dashboard in dashboards()}
EVERY = [(dashboard["title"], panel) for dashboard in ALL.values() for panel in panels(dashboard)]
ROWS = ("Overview", "Connections", "Messages", "Broker (Redis, Valkey, NATS)", "Resume", "Runtime", "Rollout")
OURS = re.compile(r"(?:tidewire|process)_\w+(\{[^}]*\})?")
WIDTH = 24


def every_panel(test: Any) -> Any:
    return pytest.mark.parametrize(
        "panel", [panel for _, panel in EVERY], ids=[f"{of} {one['title']}" for of, one in EVERY]
    )(test)


def test_their_addresses_hold_and_they_lead_to_each_other() -> None:
    assert set(ALL) == {"tidewire", "tidewire-pods"}
    for dashboard in ALL.values():
        assert dashboard["tags"] == ["tidewire"]
        assert [link["tags"] for link in dashboard["links"]] == [["tidewire"]]
        assert "__inputs" not in dashboard, "Grafana's sidecar would not fill them in"
        assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource", "namespace", "job", "pod"]
        assert all(one["includeAll"] for one in dashboard["templating"]["list"][1:])


def test_the_rows_are_in_order() -> None:
    assert tuple(panel["title"] for panel in ALL["tidewire"]["panels"] if panel["type"] == "row") == ROWS


@pytest.mark.parametrize("uid", ALL)
def test_no_two_panels_lie_over_each_other(uid: str) -> None:
    places = [(panel["id"], panel["gridPos"]) for panel in ALL[uid]["panels"]]
    assert len({number for number, _ in places}) == len(places)
    for _, place in places:
        assert 0 <= place["x"] <= place["x"] + place["w"] <= WIDTH
    for (one, a), (other, b) in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (one, other)


@every_panel
def test_a_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith("."), "a sentence or more"
    assert panel["description"].count(" ") > 4
    assert panel["fieldConfig"]["defaults"]["unit"] in FORMATS
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    if panel["type"] == "timeseries":
        assert all(legend and legend != "__auto" for legend in legends)
        assert panel["options"]["legend"]["showLegend"]
    for runbook in re.findall(r"runbook (Tidewire\w+)", panel["description"]):
        assert (RUNBOOKS / f"{runbook}.md").is_file()


@every_panel
def test_a_panel_asks_for_what_there_is(panel: dict[str, Any]) -> None:
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


def test_a_bound_is_drawn() -> None:
    [fds] = [panel for _, panel in EVERY if panel["title"] == "File descriptors"]
    assert [step["value"] for step in fds["fieldConfig"]["defaults"]["thresholds"]["steps"]] == [None, 0.7, 0.85]
    assert fds["fieldConfig"]["defaults"]["custom"]["thresholdsStyle"]["mode"] == "line"
    [reachable] = [panel for _, panel in EVERY if panel["title"] == "Broker reachable"]
    steps = reachable["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [(step["color"], step["value"]) for step in steps] == [("red", None), ("yellow", 0.5), ("green", 1)]


def test_every_metric_of_the_service_is_somewhere_on_them() -> None:
    shown = {name for asked in of_dashboards() for name in names(asked.expr)}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in exported() if name.startswith("tidewire_")}
    seen = {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown}
    assert families - seen == set()
