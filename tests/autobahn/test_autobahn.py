"""The Autobahn cases against the service's WebSocket; of those with compression a sample: `make test-autobahn` plays them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.autobahn.cases import DEVIATIONS, LOOPS, PLAIN, chosen, faults, play

pytestmark = [
    pytest.mark.autobahn,
    # The cases with compression read their data from files that the suite leaves open.
    pytest.mark.filterwarnings(r"ignore:Exception ignored in.*/kosoku/shim/:pytest.PytestUnraisableExceptionWarning"),
]

PROTOCOL = Path(__file__).parents[2] / "docs" / "protocol.md"
SAMPLE = ("12.*.2", "12.*.4", "13.*.3", "13.*.5", "12.1.11", "13.3.11", "13.7.11", "12.5.17")
"""Of the cases with compression: every kind of data and of offer, small and large, whole and in fragments."""


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("patterns", "count", "at_once"),
    [
        pytest.param(tuple(group for group in PLAIN if group != "9.*"), 247, 8, id="framing"),
        pytest.param(("9.*",), 54, 2, id="large"),
    ],
)
def test_cases_without_compression_pass(loop: str, patterns: tuple[str, ...], count: int, at_once: int) -> None:
    cases = chosen(patterns)
    assert len(cases) == count, "the suite has other cases than those that were judged"
    assert not faults(cases, play(loop, cases, compresses=False, at_once=at_once, within=60))


@pytest.mark.parametrize("loop", LOOPS)
def test_sampled_cases_with_compression_pass(loop: str) -> None:
    # Half of them on each loop.
    cases = chosen(SAMPLE)[list(LOOPS).index(loop) :: len(LOOPS)]
    assert not faults(cases, play(loop, cases, compresses=True, at_once=2, within=120))


def test_every_deviation_is_documented() -> None:
    section = PROTOCOL.read_text().partition("## Deviations from RFC 6455 and RFC 7692")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d[\d.]*) \| ([A-Z-]+) \|", section, re.MULTILINE))
    assert rows == {case: deviation.behaviour for case, deviation in DEVIATIONS.items()}
