"""Compares the cost of a connection in this checkout with that in another revision, or with another server, to a few percent.

`python -m benchmarks.connect_pairs HEAD~1` or `centrifugo` starts both services on one core. Clients on the other core connect in
bursts, to one service and to the other in turn. A burst lasts about a tenth of a second, so other programs and the clock of the
processor disturb both alike. It prints the microseconds of CPU time, and the median of the pairs' ratios with its interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import load
from benchmarks.build import build
from benchmarks.cases import WORKLOADS, Case
from benchmarks.compare import Before, checked_out
from benchmarks.figures import Spread
from benchmarks.measuring import Stage
from benchmarks.peers import Peer, everyone
from benchmarks.peers.peer import Started
from benchmarks.peers.tidewire import Tidewire
from benchmarks.processes import Cores, free_port

PAIRS = 30
CONNECTIONS = 600
"""Connections of one burst."""
WARM_UP = 3
"""Bursts that are not counted."""
_TO = "where a connection counts as made: at the subscription after `ready` (live), or with `ready=1` (ready), or at `welcome`"


@dataclass(slots=True)
class Service:
    """A running service, and the costs of its bursts."""

    started: Started
    job: Path
    core: int
    """The core of the clients."""
    costs: list[float] = field(default_factory=list)
    """CPU microseconds of a connection."""

    async def burst(self, connections: int) -> None:
        """Connects clients, counts the cost, and waits until they have left."""
        looks: list[float] = []

        def look() -> None:
            looks.append(self.started.usage().cpu)

        await load.run(build() / "load", self.job, core=self.core, seconds=0, begins=look, ends=look)
        self.costs.append((looks[1] - looks[0]) / connections * 1e6)
        await self.started.at_rest()


@contextmanager
def found(name: str) -> Iterator[Peer]:
    """Yields the server with this name, or Tidewire in this revision."""
    peer = everyone().get(name)
    if peer is not None:
        peer.install()
        yield peer
    else:
        with checked_out(name) as tree:
            yield Before(tree)


async def measured(case: Case, peers: Sequence[Peer], pairs: int, folder: Path) -> Sequence[Sequence[float]]:
    """Returns the costs of each peer, burst by burst."""
    cores = Cores.of_this_machine()
    async with AsyncExitStack() as stack:
        services = []
        for peer in peers:
            own = folder / peer.name
            own.mkdir()
            started = await peer.start(case, port := free_port(), own, cores)
            stack.push_async_callback(started.end)
            services.append(Service(started, Stage._job(case, peer, port, own), cores.client))
        for number in range(WARM_UP + pairs):
            for service in services[:: 1 if number % 2 else -1]:
                await service.burst(case.connections)
    return [service.costs[WARM_UP:] for service in services]


def main(words: Sequence[str] | None = None) -> None:
    """Prints the result as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.connect_pairs", description=__doc__)
    parser.add_argument("other", help="the revision, or the server, to compare this checkout with")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--connections", type=int, default=CONNECTIONS, help="of one burst")
    parser.add_argument("--to", choices=("live", "ready", "welcome"), default="live", help=_TO)
    asked = parser.parse_args(words)
    wanted = {"live": "connect", "ready": "ready", "welcome": "upgrade"}[asked.to]
    case = next(case for case in WORKLOADS["connect"].cases if case.name == wanted)
    case = replace(case, connections=asked.connections, rooms=max(1, asked.connections // 10))
    with found(asked.other) as other, TemporaryDirectory() as folder:
        theirs, ours = asyncio.run(measured(case, (other, Tidewire()), asked.pairs, Path(folder)))
    gain = Spread.of(cost / own for cost, own in zip(theirs, ours, strict=True))
    result = {
        "other_us": round(statistics.median(theirs), 1),
        "this_us": round(statistics.median(ours), 1),
        "other_over_this": None if gain is None else gain.json(),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
