"""Nothing that is watched is empty: every expression of dashboards, rules and runbooks, asked of a real Prometheus after a day in
which everything has happened. A metric that does not exist is an empty answer too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.e2e.programs import need
from tests.e2e.watching import expressions
from tests.e2e.watching.day import Day, watched
from tests.e2e.watching.prometheus import Series
from tests.support.monitoring import rules, runbook_queries

pytestmark = pytest.mark.e2e

QUIET_RULES = {
    "TidewireMetricsAbsent": "there are metrics",
    "TidewireTaskDied": "nothing kills a task from outside",
    "TidewireNoTraffic": "looks only at releases to which nothing is sent",
    "TidewirePodSkew": "looks only at pods with more than a hundred connections each",
    "namespace_job:tidewire_connections:skew": "the same",
    "TidewireReconnectStorm": "compares with the connections of two minutes ago, and the day may be shorter",
    "TidewireAbnormalCloses": "looks only at pods on which more than ten clients ended",
    "TidewireSlowConsumers": "looks only at pods with more than five clients that are too slow",
    "TidewireClientsRejected": "looks only at more than five addresses, and everybody here has the same",
}
"""Alerts that look at nothing on a good day, and why. Each is seen to fire in tests/chart/rules."""


def is_empty(found: Sequence[Series]) -> bool:
    """Whether a graph of it would show nothing."""
    return not any(series.finite for series in found)


async def empty(day: Day, expr: str) -> bool:
    """The same of what Prometheus answers for the whole day."""
    return is_empty(await day.prometheus.over(expr, day.began, day.ended))


async def test_everything_that_is_watched_is_there() -> None:
    need("prometheus")
    async with watched() as day:
        hollow = {
            f"{asked.dashboard} / {asked.panel} / {asked.legend}": asked.expr
            for asked in expressions.of_dashboards()
            if await empty(day, asked.expr)
        }
        assert not hollow
        quiet = {rule.name for rule in rules() if await empty(day, expressions.without_threshold(rule))}
        assert quiet <= set(QUIET_RULES)
        for rule in rules():
            for query in runbook_queries(rule.name) if rule.is_alert else ():
                await day.prometheus.now(query)  # which raises for one that is no query
        assert is_empty(await day.prometheus.over("sum(tidewire_conections)", day.began, day.ended)), (
            "a misspelt one is noticed"
        )
        assert not await empty(day, 'ALERTS{alertname="TidewireEventsLost",alertstate="firing"}'), "and alerts do fire"
