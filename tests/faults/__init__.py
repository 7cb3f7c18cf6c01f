"""The fault suite: real stores, real nodes, seeded traffic, one fault at a time, and an oracle. See docs/testing-faults.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.scenario import Scenario


def everything() -> list[Scenario]:
    """All scenarios, in the order of the table."""
    from tests.faults import faults_clients
    from tests.faults.scenario import SCENARIOS

    assert faults_clients
    return list(SCENARIOS.values())
