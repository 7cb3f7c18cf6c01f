"""Writes job files and runs the load client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.processes import FailedError, on_core

COME = 180.0
"""Timeout in seconds for all connections to join, and for a phase to end after its length."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"})
_TAB_BETWEEN = "answer"
"""The key whose value contains a real tab."""


def render(lines: Iterable[tuple[str, str]]) -> str:
    """Renders a job file (`c/JOB.md`)."""
    return "".join(f"{key} {_escaped(key, value)}\n" for key, value in lines)


def _escaped(key: str, value: str) -> str:
    parts = value.split("\t", 1) if key == _TAB_BETWEEN else [value]
    return "\t".join(part.translate(_ESCAPES) for part in parts)


async def run(
    program: Path, job: Path, *, core: int, seconds: float, begins: Callable[[], None], ends: Callable[[], None]
) -> dict[str, Any]:
    """Runs `program` with `job` (which has `gate yes`); returns its report.

    `begins` is called before the measured phase of `seconds`, `ends` after it; the server is idle both times. Raises FailedError
    with the client's error message.
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
    """Reads output up to a line. Raises FailedError with the last output if the program ends before."""
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
