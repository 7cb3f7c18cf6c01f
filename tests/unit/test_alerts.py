"""The chart's alerts: each has a runbook, and rules and runbooks ask Prometheus only for what is exported."""

from __future__ import annotations

import re

import pytest

from tests.support.monitoring import FOREIGN, ROOT, RUNBOOKS, Rule, exported, groups, names, rules, runbook_queries

ALERTS = [rule.name for rule in rules() if rule.is_alert]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_runbook_queries_name_exported_metrics(alert: str) -> None:
    queries = runbook_queries(alert)
    assert queries
    for query in queries:
        assert names(query), query
        assert names(query) <= exported() | FOREIGN.keys(), query


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_rule_names_exported_metrics(rule: Rule) -> None:
    assert names(rule.expr)
    assert names(rule.expr) <= exported() | FOREIGN.keys()


def test_alert_has_a_severity_and_links_its_runbook() -> None:
    for rule in [rule for group in groups() for rule in group["rules"] if "alert" in rule]:
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


def test_every_selector_of_a_rule_can_be_narrowed_to_one_release() -> None:
    for rule in rules():
        asked = re.sub(r"kube_\w+\{[^}]*\}", "", rule.expr)
        selectors = re.findall(r"(?:tidewire|namespace_job:tidewire)_[\w:]+(\{[^}]*\})?", asked)
        assert all('job!=""' in selector for selector in selectors), rule.name


def test_rule_group_names_are_unique() -> None:
    titles = [group["name"] for group in groups()]
    assert len(titles) == len(set(titles))
