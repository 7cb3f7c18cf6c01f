"""Several workers: a parent that starts them, watches over them, and ends with them.

Each worker is a process forked from the parent and a node of its own; the kernel spreads new connections over those that listen.
The parent has read settings and contract and loaded the code: so faults are told once, a worker that is started an hour later has
the contract of its siblings, and what was loaded is in memory once. It runs no event loop, holds no connection and never listens.
docs/adr/0014-workers.md tells why.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import selectors
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import NoReturn

import structlog

from service import app, process
from service.contract.document import Fault, Faults
from service.contract.model import Contract
from service.core.backoff import Backoff
from service.settings import Settings
from service.signals import STOPPING, stopping
from service.telemetry import log
from service.web.http.socket_options import bound_sockets

BEAT = 1.0
"""Seconds between two signs of life of a worker; must stay far below SILENCE."""
SILENCE = 30.0
"""Seconds without one after which a worker's loop counts as one that does not turn any more."""
LATE = 10.0
"""Seconds beyond `deadlines.shutdown` and `deadlines.last_scrape` that a draining worker gets before it is killed."""

_SERVING, _DRAINING = b".", b"-"
_PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent ends, however that ends."""

_log = structlog.get_logger("workers")


@dataclass(frozen=True, slots=True)
class Patience:
    """What workers may take before the parent does something. In seconds, but for `tries`."""

    start: float
    """Until a started worker serves."""
    drain: float
    """Until a worker that was told to stop has ended."""
    silence: float = SILENCE
    """Without a sign of life until a worker is killed and replaced, as a liveness probe would have it."""
    young: float = 10.0
    """An end sooner after the start than this is a failed try."""
    tries: int = 5
    """Failed tries of one worker in a row after which all is given up."""
    first: float = 0.5
    """The wait before a dead worker is started again; it is doubled with each failed try …"""
    most: float = 15.0
    """… up to this."""


Work = Callable[[int, int], int]
"""What a worker does, given its number and the descriptor it shows signs of life on; returns its exit status."""


def serve(settings: Settings, contract: Contract) -> int:
    """Runs `settings.workers` nodes until a signal of `service.signals`, then has them drain. Returns the worst exit status.

    Raises Faults where there cannot be several workers.
    """
    if sys.platform != "linux":
        raise Faults([Fault("workers", None, "only Linux spreads connections over several; leave it at 1")])
    log.configure(settings.log.level, settings.log.format, queue_bytes=settings.log.queue_bytes)
    patience = Patience(
        start=settings.broker.unready_after + SILENCE,
        drain=settings.deadlines.shutdown + settings.deadlines.last_scrape + LATE,
    )
    with ExitStack() as held:
        try:
            port = held.enter_context(_held(settings.host, settings.port))
        except OSError as error:
            reason = error.strerror or str(error)
            _log.error(
                "cannot listen", reason=f"{reason}: {settings.host} port {settings.port} (settings host and port)"
            )
            return 1

        def work(number: int, pulse: int) -> int:
            held.close()  # the parent's are enough
            ops_port = settings.ops_port + number if settings.ops_port else 0
            own = settings.model_copy(update={"port": port, "ops_port": ops_port})
            return process.serve(app.Service(own, contract), companion(pulse))

        gc.collect()
        gc.freeze()  # a worker's collections then do not touch, and so not copy, what it shares with the others
        return Parent(settings.workers, work, patience).run()


@contextmanager
def _held(host: str, port: int) -> Iterator[int]:
    """Keeps the port for the workers, also while none of them lives; gives its number, a free one for 0.

    The sockets are bound and never listen: the kernel hands connections only to sockets that do, so none waits here.
    Raises OSError if another program listens there.
    """
    if port:
        # Another service of the same user that shares the port as we do would be let in, and get half of our clients.
        for probe in bound_sockets(host, port, shared=False):
            probe.close()
    with ExitStack() as stack:
        held = [stack.enter_context(bound) for bound in bound_sockets(host, port, shared=True)]
        yield held[0].getsockname()[1]


def companion(pulse: int) -> app.Companion:
    """Beside a worker's service: shows the parent that it listens and that its loop turns, and then that it drains."""

    @asynccontextmanager
    async def beside(port: int) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def beat() -> None:
            nonlocal timer
            _show(pulse, _SERVING)
            timer = loop.call_later(BEAT, beat)

        beat()
        try:
            yield
        finally:
            timer.cancel()
            _show(pulse, _DRAINING)

    return beside


def _show(pulse: int, sign: bytes) -> None:
    # A parent that has gone is told of by its death signal; one that is stopped finds the pipe full, which is a sign too.
    with suppress(BrokenPipeError, BlockingIOError):
        os.write(pulse, sign)


@dataclass(slots=True)
class _Worker:
    """One of the workers, over all its lives."""

    number: int
    backoff: Backoff
    pid: int | None = None
    pulse: int | None = None
    """Where its signs of life come from."""
    started: float = 0.0
    deadline: float | None = None
    """When it is killed if it shows nothing, or started again if it is dead; None if there is nothing to wait for."""
    failures: int = 0
    """Ends in a row that came soon after the start."""
    has_served: bool = False
    """Whether one of its lives came so far as to listen."""
    late: str = ""
    """What is said when the deadline passes."""


class Parent:
    """Runs so many workers. Made and run once, in a process with one thread."""

    def __init__(self, count: int, work: Work, patience: Patience) -> None:
        self._work = work
        self._patience = patience
        self._workers = [_Worker(number, Backoff(patience.first, patience.most)) for number in range(count)]
        # Keeps nothing in the kernel: an epoll would be the workers' too.
        self._selector: selectors.BaseSelector = selectors.PollSelector()
        self._arriving = os.pipe()
        """Signals come through this pipe, so that one wait is for them and for the workers."""
        self._handled = (*stopping(), signal.SIGCHLD)
        self._stopping = False
        self._status = 0

    def run(self) -> int:
        """Returns when all workers have ended for good: the worst of their exit statuses."""
        with self._handling():
            # What keeps one from starting, keeps all: the first goes alone, and its reason is told once.
            self._start(self._workers[0])
            while self._awaited():
                self._turn()
        _log.info("stopped", workers=len(self._workers), status=self._status)
        return self._status

    def _awaited(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid is not None or worker.deadline is not None]

    def _turn(self) -> None:
        """Waits for the next thing to happen, and does what it asks for."""
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        wait = max(0.0, min(deadlines) - monotonic()) if deadlines else None
        ready = [key for key, _ in self._selector.select(wait)]
        # What a worker has shown comes before its end, which closes the pipe that it came through.
        for key in sorted(ready, key=lambda key: key.data is None):
            if key.data is None:
                self._signalled(os.read(key.fd, 4096))
            else:
                self._heard(key.data, os.read(key.fd, 4096))
        now = monotonic()
        for worker in self._workers:
            if worker.deadline is not None and worker.deadline <= now:
                self._passed(worker)

    # --- what happens -------------------------------------------------------------------------------------------------

    def _signalled(self, numbers: bytes) -> None:
        if any(number in numbers for number in STOPPING):
            if self._stopping:
                self._pass_on()  # a worker knows whether it is soon enough to be the same request
            self._stop()
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for worker in self._workers:
                    if worker.pid == ended[0]:
                        self._ended(worker, os.waitstatus_to_exitcode(ended[1]))

    def _heard(self, worker: _Worker, signs: bytes) -> None:
        if not signs:
            self._deafen(worker)  # it has ended, or is about to; its exit status tells
        elif self._stopping:
            pass  # the deadline of the drain stays
        elif signs.endswith(_DRAINING):
            self._within(worker, self._patience.drain, "it did not end after its drain")
        else:
            self._within(worker, self._patience.silence, "its event loop does not turn")
            if not worker.has_served:
                worker.has_served = True
                if worker.number == 0:
                    for other in self._workers[1:]:
                        self._start(other)

    def _passed(self, worker: _Worker) -> None:
        if worker.pid is None:
            self._start(worker)
        else:
            worker.deadline = None
            _log.error("a worker is killed", worker=worker.number, pid=worker.pid, reason=worker.late)
            os.kill(worker.pid, signal.SIGKILL)

    def _ended(self, worker: _Worker, code: int) -> None:
        lived = monotonic() - worker.started
        pid, worker.pid, worker.deadline = worker.pid, None, None
        self._deafen(worker)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if self._stopping:
            # By the signal itself, if it had not begun to handle it or had ended already.
            self._status = max(self._status, 0 if -code in STOPPING else 128 - code if code < 0 else code)
            return
        _log.warning("a worker has ended", worker=worker.number, pid=pid, how=how, seconds=round(lived, 1))
        self._failed(worker, how, lived)

    def _failed(self, worker: _Worker, how: str, lived: float) -> None:
        """After an end that nobody asked for, or a start that could not be: tries again, or gives all up."""
        if not worker.has_served:
            self._give_up(f"worker {worker.number} ended before it served ({how}); its own words stand above")
            return
        if lived >= self._patience.young:
            worker.failures = 0
            worker.backoff.reset()
        else:
            worker.failures += 1
        if worker.failures >= self._patience.tries:
            self._give_up(
                f"worker {worker.number} ended {worker.failures} times in a row within {self._patience.young:g} s of its start, "
                f"at last: {how}; its own words stand above"
            )
            return
        self._within(worker, worker.backoff.next(), "")

    # --- what is done -------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        if self._stopping:
            return
        worker.deadline = None
        hearing, pulse = os.pipe()
        parent = os.getpid()
        # Until the child has handlers of its own, a signal would run ours in it.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)
        try:
            pid = os.fork()
            if pid == 0:
                self._be(worker.number, hearing, pulse, parent)
        except OSError as error:
            os.close(hearing)
            os.close(pulse)
            _log.warning("a worker could not be started", worker=worker.number, reason=error.strerror)
            self._failed(worker, "no process to be had", 0.0)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
        os.close(pulse)
        worker.pid, worker.pulse, worker.started = pid, hearing, monotonic()
        self._selector.register(hearing, selectors.EVENT_READ, worker)
        self._within(worker, self._patience.start, "it did not come to serve")

    def _be(self, number: int, hearing: int, pulse: int, parent: int) -> NoReturn:
        """The rest of a worker's process. It never returns into what the parent was doing."""
        status = 1
        try:
            end_with(parent)
            signal.set_wakeup_fd(-1)
            for handled in self._handled:
                signal.signal(handled, signal.SIG_DFL)
            # A terminal sends SIGINT to all; the parent passes on what concerns us.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._let_go()
            os.close(hearing)
            os.set_blocking(pulse, False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
            structlog.contextvars.bind_contextvars(worker=number)
            status = self._work(number, pulse)
        except KeyboardInterrupt:
            status = 0  # a second Ctrl-C, between the end of the loop that handles them and that of the process
        except BaseException:
            _log.exception("a worker has failed", worker=number)
        finally:
            log.flush()
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(status)

    def _stop(self) -> None:
        """Has all workers drain."""
        if self._stopping:
            return
        self._stopping = True
        _log.info("draining", workers=sum(worker.pid is not None for worker in self._workers))
        for worker in self._workers:
            worker.deadline = None
            if worker.pid is not None:
                self._within(worker, self._patience.drain, "it did not end after its drain")
        self._pass_on()

    def _pass_on(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM)

    def _give_up(self, reason: str) -> None:
        _log.error("given up", reason=reason)
        self._status = max(self._status, 1)
        self._stop()

    def _within(self, worker: _Worker, seconds: float, late: str) -> None:
        worker.deadline, worker.late = monotonic() + seconds, late

    # --- descriptors and signals --------------------------------------------------------------------------------------

    @contextmanager
    def _handling(self) -> Iterator[None]:
        """Has signals come through the pipe."""
        for end in self._arriving:
            os.set_blocking(end, False)
        self._selector.register(self._arriving[0], selectors.EVENT_READ, None)
        wakeup = signal.set_wakeup_fd(self._arriving[1], warn_on_full_buffer=False)
        before = [signal.signal(number, _nothing) for number in self._handled]
        try:
            yield
        finally:
            for number, handler in zip(self._handled, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self._let_go()

    def _deafen(self, worker: _Worker) -> None:
        if worker.pulse is not None:
            self._selector.unregister(worker.pulse)
            os.close(worker.pulse)
            worker.pulse = None

    def _let_go(self) -> None:
        """Closes every descriptor of the parent's."""
        for worker in self._workers:
            self._deafen(worker)
        self._selector.close()
        for end in self._arriving:
            os.close(end)


def _nothing(number: int, frame: object) -> None:
    """Takes the place of a signal's default; the pipe brings the signal."""


def end_with(parent: int) -> None:
    """Has the kernel send this process SIGTERM when its parent ends, be it by SIGKILL: it drains then as if it were asked to.

    Ends it at once if that has happened already.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:
        os._exit(1)
