"""One measurement: a fresh server, its clients, and the server's CPU time between two idle moments."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import gate, load
from benchmarks.build import build
from benchmarks.cases import Case, Workload
from benchmarks.figures import Counts, Sample, longest
from benchmarks.peers import Peer
from benchmarks.peers.peer import CHECKOUT, TOOLS
from benchmarks.peers.tidewire import CONTRACT
from benchmarks.processes import HOST, Cores, FailedError, Usage, free_port


@dataclass(slots=True)
class Stage:
    """The cores for measurements, and the folder for their files."""

    cores: Cores
    folder: Path = TOOLS / "run"

    async def measure(self, workload: Workload, case: Case, peer: Peer, round_: int) -> Sample:
        """Measures a peer in a case. A failed server or client gives a sample with the reason."""
        folder = self.folder / f"{workload.name}-{case.name}-{peer.name.replace('/', '_')}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        began = time.monotonic()
        sample = Sample(workload.name, case.name, peer.name, round_, case.everyone)
        try:
            await self._measured(case, peer, folder, sample)
        except FailedError as error:
            sample.failure = str(error)
        sample.took = round(time.monotonic() - began, 2)
        return sample

    async def _measured(self, case: Case, peer: Peer, folder: Path, sample: Sample) -> None:
        if case.kind == "gate":
            sample.cpu = round(await gate.measure(case, CONTRACT, CHECKOUT, self.cores.server), 4)
            sample.report = {"publishes": gate.PUBLISHES}
            return
        port = free_port()
        job = self._job(case, peer, port, folder)
        started = await peer.start(case, port, folder, self.cores)
        try:
            await started.at_rest()
            looks: list[Usage] = []
            said: list[Counts] = []

            # To tell of itself costs the server something: never between the two looks at what it takes.
            def begins() -> None:
                if case.active:
                    said.append(peer.vitals(folder))
                looks.append(started.usage())

            def ends() -> None:
                looks.append(started.usage())
                if case.active:
                    said.append(peer.vitals(folder))

            begins()
            async with self._beside(case, peer, port, folder):
                report = await load.run(
                    build() / "load", job, core=self.cores.client, seconds=case.seconds, begins=begins, ends=ends
                )
        finally:
            await started.end()
        alone, before, after = looks
        sample.report = report
        if any(said):  # others say nothing
            at_start, at_begin, at_end = said
            sample.vitals = {"before": longest(at_start, at_begin), "during": longest(at_begin, at_end)}
        sample.cpu = round(after.cpu - before.cpu, 6)
        sample.rss_alone, sample.rss = alone.rss, after.rss

    @asynccontextmanager
    async def _beside(self, case: Case, peer: Peer, port: int, folder: Path) -> AsyncIterator[None]:
        """Keeps the neighbour room busy, if the case has one."""
        if not case.beside:
            yield
            return
        neighbour, busy = case.neighbour(), asyncio.Event()
        job = self._job(neighbour, peer, port, folder, room=neighbour.name)
        other = asyncio.create_task(
            load.run(
                build() / "load",
                job,
                core=self.cores.client,
                seconds=neighbour.seconds,
                begins=busy.set,
                ends=lambda: None,
            )
        )
        begun = asyncio.create_task(busy.wait())
        try:
            await asyncio.wait((other, begun), return_when=asyncio.FIRST_COMPLETED)
            if other.done():
                other.result()  # it says why
                raise FailedError("the room beside was over before it began")
            yield
            if other.done():
                other.result()
                raise FailedError("the room beside was over too early")
        finally:
            begun.cancel()
            other.cancel()
            await asyncio.gather(other, begun, return_exceptions=True)

    @staticmethod
    def _job(case: Case, peer: Peer, port: int, folder: Path, room: str = "%r") -> Path:
        lines = [("host", HOST), ("port", str(port)), *case.lines()]
        lines += [(key, value.replace("%r", room)) for key, value in peer.dialogue(case)]
        if values := list(peer.values(case)):
            file = folder / f"values-{case.name}"
            file.write_text("\n".join(values) + "\n")
            lines.append(("values", str(file)))
        job = folder / f"job-{case.name}"
        job.write_text(load.render(lines))
        return job
