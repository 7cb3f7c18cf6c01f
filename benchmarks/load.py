"""The load client: its job file, and a run of it with a look at the server before and after the measured phase."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import FailedError, on_core

COME = 180.0
"""Seconds that all connections together may take to come, and a phase to end beyond its own length."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_TAB_BETWEEN = "answer"
"""The key whose value has a real tab in the middle."""


def render(lines: Iterable[tuple[str, str]]) -> str:
    """A job file, as `c/JOB.md` describes it."""
    return "".join(f"{key} {_escaped(key, value)}\n" for key, value in lines)


def _escaped(key: str, value: str) -> str:
    parts = value.split("\t", 1) if key == _TAB_BETWEEN else [value]
    return "\t".join(part.translate(_ESCAPES) for part in parts)


async def run(
    program: Path, job: Path, *, core: int, seconds: float, begins: Callable[[], None], ends: Callable[[], None]
) -> dict[str, Any]:
    """Runs `program` with `job` (which has `gate yes`); returns what it reports.

    `begins` is called at rest before the measured phase of some `seconds`, `ends` at rest after it. Raises FailedError with the
    sentence of the client where it could not do the job.
    """
    with on_core(core):
        process = await asyncio.create_subprocess_exec(
            str(program),
            str(job),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(COME):
            await _reached(process, "ready")
        begins()
        await _go_on(process)
        async with asyncio.timeout(COME + seconds):
            await _reached(process, "done")
        ends()
        await _go_on(process)
        async with asyncio.timeout(COME):
            output, words = await process.communicate()
    except TimeoutError:
        raise FailedError(f"the load client was not done in time ({job})") from None
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    if process.returncode:
        raise FailedError(f"the load client failed: {words.decode(errors='replace').strip()}")
    report: dict[str, Any] = json.loads(output)
    return report


async def _reached(process: asyncio.subprocess.Process, word: str) -> None:
    """Reads what it says up to that line. Raises FailedError with the last sentence when it ends before."""
    assert process.stderr is not None
    said = ""
    async for line in process.stderr:
        said = line.decode(errors="replace").strip()
        if said == word:
            return
    raise FailedError(f"the load client failed: {said or 'it said nothing'}")


async def _go_on(process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    # One that has just ended by a fault says so on stderr, which is read next.
    with suppress(ConnectionError):
        await process.stdin.drain()
