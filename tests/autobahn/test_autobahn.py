"""The Autobahn cases against the service's WebSocket; of those with compression a sample: `make test-autobahn` plays them all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.autobahn.cases import DEFLATED, DEVIATIONS, LOOPS, PLAIN, chosen, faults, play

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
def test_every_case_without_compression(loop: str, patterns: tuple[str, ...], count: int, at_once: int) -> None:
    cases = chosen(patterns)
    assert len(cases) == count, "the suite has other cases than those that were judged"
    assert not faults(cases, play(loop, cases, compresses=False, at_once=at_once, within=60))


@pytest.mark.parametrize("loop", LOOPS)
def test_a_sample_of_the_cases_with_compression(loop: str) -> None:
    # Half of them on each loop.
    cases = chosen(SAMPLE)[list(LOOPS).index(loop) :: len(LOOPS)]
    assert not faults(cases, play(loop, cases, compresses=True, at_once=2, within=120))


def test_the_sample_has_every_kind_of_data_and_of_offer() -> None:
    kinds = {case.rpartition(".")[0] for case in chosen(DEFLATED)}
    assert {case.rpartition(".")[0] for case in chosen(SAMPLE)} == kinds
    assert len(chosen((*PLAIN, *DEFLATED))) == len(chosen(["*"])), "nothing is left out of the long form"


def test_a_case_that_ends_otherwise_is_found() -> None:
    """Without compression those cases cannot pass: whoever judges must say so, and must miss what was not played."""
    cases = chosen(["1.1.1", "6.4.3", "12.1.1"])
    results = play("asyncio", cases, compresses=False, at_once=2, within=60)
    (fault,) = faults(cases, results)
    assert fault.startswith("12.1.1 is UNIMPLEMENTED/OK, not OK/OK")
    assert faults(["1.1.1", "1.1.2"], results[:1]) == ["1.1.2 was not played"]


def test_a_case_that_has_stopped_deviating_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVIATIONS, "1.1.1", DEVIATIONS["6.4.1"])
    cases = chosen(["1.1.1"])
    (fault,) = faults(cases, play("asyncio", cases, compresses=False, at_once=1, within=60))
    assert fault.startswith("1.1.1 is OK/OK, not NON-STRICT/OK")


def test_every_deviation_has_its_row_in_the_wire_contract() -> None:
    section = PROTOCOL.read_text().partition("## Deviations from RFC 6455 and RFC 7692")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\d[\d.]*) \| ([A-Z-]+) \|", section, re.MULTILINE))
    assert rows == {case: deviation.behaviour for case, deviation in DEVIATIONS.items()}
