"""The quick form of the fault suite: little traffic, short faults. `make test-faults` plays all of them, larger and longer."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import everything
from tests.faults.report import table
from tests.faults.scenario import Scenario, run
from tests.support.files import as_many_as_may_be

pytestmark = pytest.mark.faults

SEED = 1


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    with as_many_as_may_be():
        yield


@pytest.mark.parametrize(
    "scenario", [pytest.param(scenario, id=scenario.name) for scenario in everything() if scenario.quick]
)
async def test_guarantees_hold_through_fault(scenario: Scenario) -> None:
    report = await run(scenario, SEED, "redis", quick=True)
    print(table([report]))
    assert not report.failures
    assert not report.skipped
