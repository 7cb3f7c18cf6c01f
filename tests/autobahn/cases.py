"""Which cases are played, how they must end, and the few that end otherwise, each with its reason."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import kosoku
import uvloop
from kosoku.cases import CASES

from tests.autobahn.echo import echoing

if TYPE_CHECKING:
    from kosoku._kosoku import CaseResult  # it has no public name

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
PLAIN = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "9.*", "10.*")
DEFLATED = ("12.*", "13.*")
"""Only where compression is switched on."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """A case that does not end with OK."""

    behaviour: str
    """Autobahn's verdict on what was said."""
    closing: str
    """Its verdict on how the connection ended."""
    reason: str


_AT_THE_END = "text is checked when its message is whole, not while it comes: RFC 6455 §8.1 sets no time"
_WHATEVER = "the case asks for no certain end: what comes behind a close is undefined"
_NO_CODE = "the case asks for no certain end: RFC 6455 §7.4.2 does not define the code; we answer 1002"

DEVIATIONS = {
    "6.4.1": Deviation("NON-STRICT", "OK", _AT_THE_END),
    "6.4.2": Deviation("NON-STRICT", "OK", _AT_THE_END),
    "6.4.3": Deviation("NON-STRICT", "OK", _AT_THE_END),
    "6.4.4": Deviation("NON-STRICT", "OK", _AT_THE_END),
    "7.1.6": Deviation("INFORMATIONAL", "INFORMATIONAL", _WHATEVER),
    "7.13.1": Deviation("INFORMATIONAL", "INFORMATIONAL", _NO_CODE),
    "7.13.2": Deviation("INFORMATIONAL", "INFORMATIONAL", _NO_CODE),
}
"""Every one; docs/protocol.md tells clients of them."""


def chosen(patterns: Iterable[str]) -> list[str]:
    """The cases that these ids and globs name, in the suite's order."""
    wanted = tuple(patterns)
    return [case for case in CASES if any(fnmatchcase(case, pattern) for pattern in wanted)]


def play(loop: str, cases: list[str], *, compresses: bool, at_once: int, within: float) -> list[CaseResult]:
    """Plays the cases, some at once, against an echo on that event loop. Raises TimeoutError after so many seconds."""

    async def run() -> list[CaseResult]:
        async with asyncio.timeout(within), echoing(compresses=compresses) as address:
            try:
                return await kosoku.run_fuzzingclient(address, cases=cases, concurrency=at_once)
            except kosoku.FailureError as failure:
                return failure.results

    with asyncio.Runner(debug=False, loop_factory=LOOPS[loop]) as runner:
        return runner.run(run())


def faults(cases: list[str], results: list[CaseResult]) -> list[str]:
    """What did not end as it must: a line each."""
    ended = {result.case_id: result for result in results}
    found = [f"{case} was not played" for case in cases if case not in ended]
    for case, result in ended.items():
        allowed = DEVIATIONS.get(case, Deviation("OK", "OK", ""))
        verdict = (result.behavior.value, result.behavior_close.value)
        if verdict != (allowed.behaviour, allowed.closing):
            said = f"{result.result} {result.result_close} Closed with {result.remote_close_code}."
            found.append(f"{case} is {'/'.join(verdict)}, not {allowed.behaviour}/{allowed.closing}: {said}")
    return found
