"""Every alert has its page and every page its alert, and what they ask Prometheus for is exported by somebody."""

from __future__ import annotations

import re

import pytest

from tests.monitoring import FOREIGN, ROOT, RUNBOOKS, Rule, exported, groups, names, rules, runbook_queries

ALERTS = [rule for rule in rules() if rule.is_alert]
SECTIONS = ["Impact", "Diagnosis", "Mitigation", "Escalation", "Resolved when"]


def test_every_alert_has_its_runbook_and_every_runbook_its_alert() -> None:
    assert {page.stem for page in RUNBOOKS.glob("*.md")} - {"README"} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_a_runbook_says_all_and_asks_for_what_there_is(alert: Rule) -> None:
    name = alert.name
    text = (RUNBOOKS / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    for section in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        assert section.strip(), "no section is empty"
    assert re.search(r"^1\. ", text, re.MULTILINE), "there is something to do first"
    queries = runbook_queries(name)
    assert queries
    for query in queries:
        assert names(query), query
        assert names(query) <= exported() | FOREIGN.keys(), query
    for metric in set(re.findall(r"`(tidewire_\w+)", text)):
        assert any(known.startswith(metric) for known in exported()), metric


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.name)
def test_a_rule_asks_for_what_there_is(rule: Rule) -> None:
    assert names(rule.expr)
    assert names(rule.expr) <= exported() | FOREIGN.keys()


def test_an_unknown_metric_is_noticed() -> None:
    assert names('sum(tidewire_conections{job!=""})') - exported() == {"tidewire_conections"}
    assert names('rate(tidewire_closes_total{code="tidewire_code"}[5m])') == {"tidewire_closes_total"}


def test_every_alert_says_what_it_is() -> None:
    for group in groups():
        for rule in group["rules"]:
            if "alert" not in rule:
                continue
            told = rule["annotations"]
            assert rule["labels"]["severity"] in ("critical", "warning")
            assert told["summary"]
            assert not told["summary"].endswith(".")
            assert told["runbook_url"] == f"docs/runbooks/{rule['alert']}.md"
            assert (ROOT / told["runbook_url"]).is_file()
            # What is about everything says so; everything else names the release, and how much of it.
            if rule["alert"] != "TidewireMetricsAbsent":
                assert "$labels.namespace" in told["description"] or "$labels.pod" in told["description"]


def test_every_rule_is_of_one_release() -> None:
    """Whatever is asked of the service's metrics can be narrowed to one release, and no group's name stands twice."""
    for rule in rules():
        asked = re.sub(r"kube_\w+\{[^}]*\}", "", rule.expr)
        selectors = re.findall(r"(?:tidewire|namespace_job:tidewire)_[\w:]+(\{[^}]*\})?", asked)
        assert all('job!=""' in selector for selector in selectors), rule.name
    titles = [group["name"] for group in groups()]
    assert len(titles) == len(set(titles))
