"""Worker processes: a parent forks them, supervises them, and ends when they have ended.

Each worker is a node of its own. The kernel spreads new connections over the workers that listen. The parent reads settings
and contract and loads the code before it forks. So faults are reported once, loaded code is in memory once, and a worker
that starts an hour later has the same contract. The parent runs no event loop, has no connections and never listens
(docs/adr/0014-workers.md).
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
from service.signals import STOP_SIGNALS, stop_signals
from service.telemetry import log
from service.web.http.socket_options import bind_sockets

HEARTBEAT_TIMEOUT = 30.0
"""Seconds without a heartbeat after which the event loop of a worker counts as stuck."""
HEARTBEAT_INTERVAL = HEARTBEAT_TIMEOUT / 30
"""Seconds between two heartbeats of a worker."""
DRAIN_MARGIN = 10.0
"""Seconds beyond `deadlines.shutdown` and `deadlines.last_scrape` that a draining worker gets before it is killed."""

_SERVING, _DRAINING = b".", b"-"
_PR_SET_PDEATHSIG = 1
"""prctl(2): sets the signal that the kernel sends a process when its parent ends for any reason."""

_log = structlog.get_logger("workers")


@dataclass(frozen=True, slots=True)
class WorkerTimeouts:
    """How long workers may take before the parent acts. In seconds, except `max_failures`."""

    start: float
    """From the fork until the worker serves."""
    drain: float
    """From the signal to stop until the worker has ended."""
    heartbeat: float = HEARTBEAT_TIMEOUT
    """Between two heartbeats; then the worker is killed and replaced, as by a liveness probe."""
    stable_after: float = 10.0
    """A worker that ends sooner after its start counts as a failure."""
    max_failures: int = 5
    """Failures of one worker in a row after which the parent stops all workers."""
    initial_backoff: float = 0.5
    """Wait before the first restart of a worker. Each further failure doubles it."""
    max_backoff: float = 15.0
    """The longest wait before a restart."""


Work = Callable[[int, int], int]
"""The code of a worker. Gets its number and the descriptor to write heartbeats to; returns the exit status."""


def serve(settings: Settings, contract: Contract) -> int:
    """Runs `settings.workers` nodes until a signal of `service.signals`, then drains them. Returns the highest exit status.

    Raises Faults on systems without support for several workers.
    """
    if sys.platform != "linux":
        raise Faults([Fault("workers", None, "only Linux spreads connections over several; leave it at 1")])
    log.configure(settings.log.level, settings.log.format, queue_bytes=settings.log.queue_bytes)
    timeouts = WorkerTimeouts(
        start=settings.broker.unready_after + HEARTBEAT_TIMEOUT,
        drain=settings.deadlines.shutdown + settings.deadlines.last_scrape + DRAIN_MARGIN,
    )
    with ExitStack() as reserved:
        try:
            port = reserved.enter_context(reserved_port(settings.host, settings.port))
        except OSError as error:
            reason = error.strerror or str(error)
            _log.error(
                "listen_failed", reason=f"{reason}: {settings.host} port {settings.port} (settings host and port)"
            )
            return 1

        def work(number: int, heartbeats: int) -> int:
            reserved.close()  # the parent's sockets are enough
            ops_port = settings.ops_port + number if settings.ops_port else 0
            own = settings.model_copy(update={"port": port, "ops_port": ops_port})
            return process.serve(app.Service(own, contract), companion(heartbeats))

        gc.collect()
        gc.freeze()  # collections of a worker then do not touch, and so do not copy, memory shared with the parent
        return Parent(settings.workers, work, timeouts).run()


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Reserves the port for the workers, even while none of them runs; yields its number, a free one for 0.

    The sockets are bound and never listen. The kernel assigns connections only to listening sockets, so none waits here.
    Raises OSError if another program listens on the port.
    """
    if port:
        # Another service of the same user that shares the port would be allowed to bind, and get half of our clients.
        for probe in bind_sockets(host, port, reuse_port=False):
            probe.close()
    with ExitStack() as stack:
        sockets = [stack.enter_context(bound) for bound in bind_sockets(host, port, reuse_port=True)]
        yield sockets[0].getsockname()[1]


def companion(heartbeats: int) -> app.Companion:
    """Runs beside a worker's service: sends heartbeats to the parent while it listens, and then that it drains."""

    @asynccontextmanager
    async def beside(port: int) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle

        def heartbeat() -> None:
            nonlocal timer
            _send(heartbeats, _SERVING)
            timer = loop.call_later(HEARTBEAT_INTERVAL, heartbeat)

        heartbeat()
        try:
            yield
        finally:
            timer.cancel()
            _send(heartbeats, _DRAINING)

    return beside


def _send(heartbeats: int, sign: bytes) -> None:
    # If the parent has ended, its death signal reports that. A suspended parent finds earlier heartbeats in the full
    # pipe.
    with suppress(BrokenPipeError, BlockingIOError):
        os.write(heartbeats, sign)


@dataclass(slots=True)
class _Worker:
    """One worker, across its restarts."""

    number: int
    backoff: Backoff
    pid: int | None = None
    """None while it does not run."""
    heartbeats: int | None = None
    """The pipe to read its heartbeats from."""
    started: float = 0.0
    deadline: float | None = None
    """When to kill it without another heartbeat, or to restart it if it has ended; None: never."""
    failures: int = 0
    """Ends in a row soon after the start."""
    has_served: bool = False
    """Whether it has served since the parent started."""
    late_reason: str = ""
    """The reason to log when the deadline passes."""


class Parent:
    """Runs `count` workers. Created and run once, in a process with one thread."""

    def __init__(self, count: int, work: Work, timeouts: WorkerTimeouts) -> None:
        self._work = work
        self._timeouts = timeouts
        self._workers = [
            _Worker(number, Backoff(timeouts.initial_backoff, timeouts.max_backoff)) for number in range(count)
        ]
        # `poll` has no state in the kernel. An epoll descriptor would be inherited by the workers.
        self._selector: selectors.BaseSelector = selectors.PollSelector()
        self._signal_pipe = os.pipe()
        """Signals arrive through this pipe, so that one `select` waits for signals and workers."""
        self._handled = (*stop_signals(), signal.SIGCHLD)
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        """Returns when all workers have ended for good: the highest of their exit statuses."""
        with self._signal_handlers():
            # A fault that prevents one worker from starting prevents all. So the first starts alone, and logs the
            # reason once.
            self._start(self._workers[0])
            while self._active():
                self._handle_next()
        _log.info("stopped", workers=len(self._workers), status=self._status)
        return self._status

    def _active(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid is not None or worker.deadline is not None]

    def _handle_next(self) -> None:
        """Waits for the next signal, heartbeat or deadline, and handles it."""
        deadlines = [worker.deadline for worker in self._workers if worker.deadline is not None]
        wait = max(0.0, min(deadlines) - monotonic()) if deadlines else None
        ready = [key for key, _ in self._selector.select(wait)]
        # Heartbeats before signals: a worker's end closes the pipe that its last heartbeats are in.
        for key in sorted(ready, key=lambda key: key.data is None):
            if key.data is None:
                self._handle_signals(os.read(key.fd, 4096))
            else:
                self._handle_heartbeats(key.data, os.read(key.fd, 4096))
        now = monotonic()
        for worker in self._workers:
            if worker.deadline is not None and worker.deadline <= now:
                self._handle_deadline(worker)

    # --- events -------------------------------------------------------------------------------------------------------

    def _handle_signals(self, numbers: bytes) -> None:
        if any(number in numbers for number in STOP_SIGNALS):
            if self._is_stopping:
                self._forward_stop()  # the worker decides whether it repeats the first signal
            self._stop()
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for worker in self._workers:
                    if worker.pid == ended[0]:
                        self._handle_end(worker, os.waitstatus_to_exitcode(ended[1]))

    def _handle_heartbeats(self, worker: _Worker, heartbeats: bytes) -> None:
        if not heartbeats:
            self._close_heartbeats(worker)  # it has ended or is about to; its exit status says more
        elif self._is_stopping:
            pass  # the deadline of the drain applies
        elif heartbeats.endswith(_DRAINING):
            self._set_deadline(worker, self._timeouts.drain, "it did not end after its drain")
        else:
            self._set_deadline(worker, self._timeouts.heartbeat, "its event loop is stuck")
            if not worker.has_served:
                worker.has_served = True
                if worker.number == 0:
                    for other in self._workers[1:]:
                        self._start(other)

    def _handle_deadline(self, worker: _Worker) -> None:
        if worker.pid is None:
            self._start(worker)
        else:
            worker.deadline = None
            _log.error("worker_killed", worker=worker.number, pid=worker.pid, reason=worker.late_reason)
            os.kill(worker.pid, signal.SIGKILL)

    def _handle_end(self, worker: _Worker, code: int) -> None:
        lived = monotonic() - worker.started
        pid, worker.pid, worker.deadline = worker.pid, None, None
        self._close_heartbeats(worker)
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        if self._is_stopping:
            # Ended by the signal itself: its handler was not installed yet, or was removed already.
            self._status = max(self._status, 0 if -code in STOP_SIGNALS else 128 - code if code < 0 else code)
            return
        _log.warning("worker_ended", worker=worker.number, pid=pid, how=how, seconds=round(lived, 1))
        self._retry(worker, how, lived)

    def _retry(self, worker: _Worker, how: str, lived: float) -> None:
        """After an unexpected end or a failed start: schedules a restart, or stops all workers."""
        if not worker.has_served:
            self._give_up(f"worker {worker.number} ended before it served ({how}); its own log records are above")
            return
        if lived >= self._timeouts.stable_after:
            worker.failures = 0
            worker.backoff.reset()
        else:
            worker.failures += 1
        if worker.failures >= self._timeouts.max_failures:
            self._give_up(
                f"worker {worker.number} ended {worker.failures} times in a row within "
                f"{self._timeouts.stable_after:g} s of its start, "
                f"at last: {how}; its own log records are above"
            )
            return
        self._set_deadline(worker, worker.backoff.next(), "")

    # --- actions ------------------------------------------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        if self._is_stopping:
            return
        worker.deadline = None
        read_end, write_end = os.pipe()
        parent = os.getpid()
        # Blocked until the child has its own handlers; before that, it would run the parent's.
        signal.pthread_sigmask(signal.SIG_BLOCK, self._handled)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_worker(worker.number, read_end, write_end, parent)
        except OSError as error:
            os.close(read_end)
            os.close(write_end)
            _log.warning("worker_start_failed", worker=worker.number, reason=error.strerror)
            self._retry(worker, "no process could be forked", 0.0)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
        os.close(write_end)
        worker.pid, worker.heartbeats, worker.started = pid, read_end, monotonic()
        self._selector.register(read_end, selectors.EVENT_READ, worker)
        self._set_deadline(worker, self._timeouts.start, "it did not start to serve")

    def _run_worker(self, number: int, read_end: int, write_end: int, parent: int) -> NoReturn:
        """Runs the worker in the forked process, and ends the process."""
        status = 1
        try:
            end_with(parent)
            signal.set_wakeup_fd(-1)
            for handled in self._handled:
                signal.signal(handled, signal.SIG_DFL)
            # A terminal sends SIGINT to all processes; the parent forwards what concerns a worker.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._close()
            os.close(read_end)
            os.set_blocking(write_end, False)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self._handled)
            structlog.contextvars.bind_contextvars(worker=number)
            status = self._work(number, write_end)
        except KeyboardInterrupt:
            status = 0  # a second Ctrl-C between the end of the event loop and the end of the process
        except BaseException:
            _log.exception("worker_failed", worker=number)
        finally:
            log.flush()
            with suppress(OSError, ValueError):
                sys.stdout.flush()
            os._exit(status)

    def _stop(self) -> None:
        """Starts the drain of all workers."""
        if self._is_stopping:
            return
        self._is_stopping = True
        _log.info("draining", workers=sum(worker.pid is not None for worker in self._workers))
        for worker in self._workers:
            worker.deadline = None
            if worker.pid is not None:
                self._set_deadline(worker, self._timeouts.drain, "it did not end after its drain")
        self._forward_stop()

    def _forward_stop(self) -> None:
        for worker in self._workers:
            if worker.pid is not None:
                os.kill(worker.pid, signal.SIGTERM)

    def _give_up(self, reason: str) -> None:
        _log.error("workers_given_up", reason=reason)
        self._status = max(self._status, 1)
        self._stop()

    def _set_deadline(self, worker: _Worker, seconds: float, late_reason: str) -> None:
        worker.deadline, worker.late_reason = monotonic() + seconds, late_reason

    # --- descriptors and signals --------------------------------------------------------------------------------------

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Routes signals through the pipe."""
        for end in self._signal_pipe:
            os.set_blocking(end, False)
        self._selector.register(self._signal_pipe[0], selectors.EVENT_READ, None)
        wakeup = signal.set_wakeup_fd(self._signal_pipe[1], warn_on_full_buffer=False)
        before = [signal.signal(number, _ignore) for number in self._handled]
        try:
            yield
        finally:
            for number, handler in zip(self._handled, before, strict=True):
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self._close()

    def _close_heartbeats(self, worker: _Worker) -> None:
        if worker.heartbeats is not None:
            self._selector.unregister(worker.heartbeats)
            os.close(worker.heartbeats)
            worker.heartbeats = None

    def _close(self) -> None:
        """Closes every descriptor of the parent."""
        for worker in self._workers:
            self._close_heartbeats(worker)
        self._selector.close()
        for end in self._signal_pipe:
            os.close(end)


def _ignore(number: int, frame: object) -> None:
    """Replaces the default action of a signal; the pipe reports the signal."""


def end_with(parent: int) -> None:
    """Makes the kernel send this process SIGTERM when its parent ends, even by SIGKILL; it then drains.

    Ends the process at once if the parent has ended already.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if os.getppid() != parent:
        os._exit(1)
