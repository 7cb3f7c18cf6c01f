"""Runs the service in this process: signals, limit of open files, memory allocation, exit status."""

from __future__ import annotations

import asyncio
import ctypes
import os
import resource
import signal
from contextlib import nullcontext, suppress

import structlog
import uvloop

from service.app import Companion, Service, running
from service.core.descriptors import EXHAUSTED, TYPICAL_IN_USE, TooFewFilesError, check_limit, is_exhaustion
from service.errors import ServiceError
from service.signals import stop_signals
from service.telemetry import log
from service.telemetry.process import max_files
from service.telemetry.runtime import freeze_gc

SAME_REQUEST_WINDOW = 1.0
"""Seconds after the first signal within which another one counts as the same request. Service managers send signals to every
process of a group, and the parent of workers forwards its own."""

_MAX_FILES = (1_048_576, 10_240)
"""Highest limits that kernels accept where the hard limit is infinite: the default of Linux, and OPEN_MAX of macOS."""

_log = structlog.get_logger("app")


_M_MMAP_THRESHOLD = -3
"""The parameter M_MMAP_THRESHOLD of mallopt(3)."""
LARGE_BLOCK = 65_536
"""Size in bytes from which a freed block of memory returns to the system at once."""


def return_large_blocks() -> None:
    """Makes glibc map each large block by itself, so that a freed block returns to the system.

    By default glibc raises the threshold up to 32 MiB. Freed bodies and replies then leave holes between longer-lived
    blocks. With 48 MB held for peers the process grew by 90 MB, and kept 72 (tests/load/test_bytes.py). Other C libraries
    are not changed.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def serve(service: Service, companion: Companion | None = None) -> int:
    """Runs until a signal of `service.signals`, then drains. A second signal, at least a second later, ends the drain at once.

    Returns the exit status: 0, even if the signal arrived before the service listened; 1 if a port or the broker is unavailable.
    """
    raise_file_limit()
    return_large_blocks()
    settings = service.settings.log
    log.configure(settings.level, settings.format, queue_bytes=settings.queue_bytes)
    try:
        check_limit(
            max_files(), TYPICAL_IN_USE, service.settings.limits
        )  # with a few less no event loop can be created
    except TooFewFilesError as error:
        _log.error("start_failed", reason=str(error))
        log.flush()
        return 1
    before = {number: signal.getsignal(number) for number in stop_signals()}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(service, companion))
    finally:
        log.flush()
        for number, handler in before.items():
            signal.signal(
                number, handler
            )  # the loop has restored the defaults, with which a late signal would end the process with a failure


class _StopRequest:
    """Handles stop signals: cancels the start, or requests the drain; a repeated signal shortens the drain."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._start_task = asyncio.current_task()
        self._requested_at: float | None = None
        self._requested = asyncio.Event()
        for number in stop_signals():
            self._loop.add_signal_handler(number, self._request)

    def _request(self) -> None:
        now = self._loop.time()
        if self._requested_at is None:
            self._requested_at = now
            self._requested.set()
            if self._start_task is not None:
                self._start_task.cancel()
        elif now - self._requested_at >= SAME_REQUEST_WINDOW:
            self._service.shorten_drain()

    @property
    def is_requested(self) -> bool:
        """Whether a signal has arrived."""
        return self._requested.is_set()

    def started(self) -> None:
        """Records that the service has started: signals now request a drain."""
        self._start_task = None

    async def wait(self) -> None:
        """Waits for a signal."""
        await self._requested.wait()


async def _serve(service: Service, companion: Companion | None) -> int:
    stop = _StopRequest(service)
    try:
        async with running(service, max_files) as (port, ops_port):
            stop.started()
            freeze_gc()
            _log.info(
                "serving",
                host=service.settings.host,
                port=port,
                ops_port=ops_port,
                pid=os.getpid(),
                native_send=service.native_send,
            )
            async with companion(port) if companion is not None else nullcontext():
                await stop.wait()
            _log.info("draining", connections=service.node.availability.connections)
    except asyncio.CancelledError:
        if not stop.is_requested:
            raise
    except TooFewFilesError as error:
        _log.error("start_failed", reason=str(error))
        return 1
    except OSError as error:
        reason = f"{EXHAUSTED} ({error})" if is_exhaustion(error) else str(error)  # the message says everything
        _log.error("listen_failed", reason=reason)
        return 1
    except ServiceError as error:
        _log.error("start_failed", code=error.code.code, reason=error.message)  # as above
        return 1
    _log.info("stopped")
    return 0


def raise_file_limit() -> None:
    """Raises the soft limit of open files to the hard one. containerd sets a soft limit of 1024, and a shell on macOS has 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    is_unlimited = hard == resource.RLIM_INFINITY
    for wanted in (hard, *(limit for limit in _MAX_FILES if is_unlimited and limit > soft)):
        with suppress(ValueError, OSError):  # above what the kernel accepts
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
