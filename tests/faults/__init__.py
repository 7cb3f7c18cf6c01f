"""The fault suite: real stores, real nodes, seeded traffic, one fault at a time, and an oracle. See docs/testing-faults.md."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.faults.scenario import Scenario

GROUPS = ("clients", "redis", "network", "failover", "returns", "nodes", "nats", "webhooks", "scale")
"""Where the scenarios are, in the order of the table."""


def everything() -> list[Scenario]:
    """All scenarios, in the order of the table."""
    for group in GROUPS:
        import_module(f"tests.faults.faults_{group}")
    from tests.faults.scenario import SCENARIOS

    return list(SCENARIOS.values())
