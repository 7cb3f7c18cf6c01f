"""Measures the contract gate alone in one process, because a network would hide its microseconds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.processes import FailedError, on_core
from service.contract.gate import Gate
from service.contract.load import load
from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.session import Subscription

PUBLISHES = 100_000
WARM = 5_000
"""Publishes before the measurement."""
SECONDS = 60.0
"""Timeout in seconds."""


async def measure(case: Case, contract: Path, checkout: Path, core: int) -> float:
    """Returns the CPU seconds of PUBLISHES publishes of the case's event type, in a fresh process. Raises FailedError."""
    command = [sys.executable, "-m", "benchmarks.gate", str(contract), f"bench.{case.event}", _data(case)]
    with on_core(core):
        process = await asyncio.create_subprocess_exec(
            *command, cwd=checkout, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    try:
        async with asyncio.timeout(SECONDS):
            output, words = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise FailedError(f"the gate took more than {SECONDS:g} s") from None
    if process.returncode:
        raise FailedError(f"the gate failed: {words.decode(errors='replace').strip()}")
    return float(output)


def _data(case: Case) -> str:
    return case.data().replace("%t", f"{time.time_ns() // 1_000}").replace("%p", "x" * case.padding)


def _main(contract: str, type_: str, text: str) -> None:
    gate = Gate(load(Path(contract)))
    ann = Identity("default", "ann")
    subscription = Subscription(ChannelKey("default", "room:1"), None)
    data = text.encode()

    def publish(times: int) -> None:
        for _ in range(times):
            gate.validate(ann, "room:1", type_, data, "e", None, "ann", 1, subscription)

    publish(WARM)
    began = time.process_time()
    publish(PUBLISHES)
    sys.stdout.write(f"{time.process_time() - began}\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
