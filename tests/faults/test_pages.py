"""What the pages say of the fault suite is there to be played."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults import everything

GUARANTEES = Path(__file__).parents[2] / "docs" / "guarantees.md"


def test_scenarios_named_in_guarantees_exist() -> None:
    claims = re.findall(r"▸ ((?:`[a-z-]+`(?:, )?)+)", GUARANTEES.read_text(encoding="utf-8"))
    named = {name for claim in claims for name in re.findall(r"`([a-z-]+)`", claim)}
    assert named
    assert named <= {scenario.name for scenario in everything()}
