"""The quick form of the fault suite: little traffic, short faults. `make test-faults` plays all of them, larger and longer."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import pytest

from tests.faults import everything
from tests.faults.report import table
from tests.faults.scenario import Scenario, run

pytestmark = pytest.mark.faults

SEED = 1


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "scenario", [pytest.param(scenario, id=scenario.name) for scenario in everything() if scenario.quick]
)
async def test_the_promise_holds_through(scenario: Scenario) -> None:
    report = await run(scenario, SEED, "redis", quick=True)
    print(table([report]))
    assert not report.failures
    assert not report.skipped
