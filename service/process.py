"""A process that serves: its signals, its limit of open files, its exit status."""

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
from service.signals import stopping
from service.telemetry import log
from service.telemetry.process import max_files
from service.telemetry.runtime import settle_gc

PATIENCE = 1.0
"""Seconds after the first signal within which another one is the same request: service managers send theirs to every process
of a group, and the parent of workers passes on its own."""

_MAX_FILES = (1_048_576, 10_240)
"""What kernels take at most, where the hard limit does not say: Linux' default for one process, and macOS' OPEN_MAX."""

_log = structlog.get_logger("app")


_M_MMAP_THRESHOLD = -3
"""See mallopt(3)."""
LARGE_BLOCK = 65_536
"""Bytes of a block of memory that goes back to the system once it is free."""


def return_large_blocks() -> None:
    """Has glibc map large blocks one by one, whatever has been freed before.

    By itself it raises that threshold up to 32 MiB. Blocks of bodies and replies then leave holes between what lives longer: with
    48 MB held for peers the process grew by 90 MB, and kept 72 (tests/load/test_bytes.py). Other C libraries are left alone.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, LARGE_BLOCK)


def serve(service: Service, companion: Companion | None = None) -> int:
    """Runs until a signal of `service.signals`, then drains; a second one, a second later or more, ends that at once.

    Returns the exit status: 0, also if the signal came before the service listened; 1 if a port or the broker cannot be had.
    """
    raise_file_limit()
    return_large_blocks()
    settings = service.settings.log
    log.configure(settings.level, settings.format, queue_bytes=settings.queue_bytes)
    try:
        check_limit(max_files(), TYPICAL_IN_USE, service.settings.limits)  # no event loop can be made with a few less
    except TooFewFilesError as error:
        _log.error("cannot start", reason=str(error))
        log.flush()
        return 1
    before = {number: signal.getsignal(number) for number in stopping()}
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_serve(service, companion))
    finally:
        log.flush()
        for number, handler in before.items():
            signal.signal(number, handler)  # the loop has left the system's, which would make a late signal a failure


class _Stop:
    """What signals ask for: the end of the start, or a drain, and then that it be quick."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.current_task()
        self._asked_at: float | None = None
        self._asked = asyncio.Event()
        for number in stopping():
            self._loop.add_signal_handler(number, self._ask)

    def _ask(self) -> None:
        now = self._loop.time()
        if self._asked_at is None:
            self._asked_at = now
            self._asked.set()
            if self._starting is not None:
                self._starting.cancel()
        elif now - self._asked_at >= PATIENCE:
            self._service.hurry()

    @property
    def is_asked(self) -> bool:
        """Whether there has been a signal."""
        return self._asked.is_set()

    def started(self) -> None:
        """From now on there is something to drain."""
        self._starting = None

    async def asked(self) -> None:
        """Waits for a signal."""
        await self._asked.wait()


async def _serve(service: Service, companion: Companion | None) -> int:
    stop = _Stop(service)
    try:
        async with running(service, max_files) as (port, ops_port):
            stop.started()
            settle_gc()
            _log.info(
                "serving",
                host=service.settings.host,
                port=port,
                ops_port=ops_port,
                pid=os.getpid(),
                native_send=service.native_send,
            )
            async with companion(port) if companion is not None else nullcontext():
                await stop.asked()
            _log.info("draining", connections=service.node.connections)
    except asyncio.CancelledError:
        if not stop.is_asked:
            raise
    except TooFewFilesError as error:
        _log.error("cannot start", reason=str(error))
        return 1
    except OSError as error:
        reason = f"{EXHAUSTED} ({error})" if is_exhaustion(error) else str(error)  # the sentence says it all
        _log.error("cannot listen", reason=reason)
        return 1
    except ServiceError as error:
        _log.error("cannot start", code=error.code.code, reason=error.message)  # as above
        return 1
    _log.info("stopped")
    return 0


def raise_file_limit() -> None:
    """Raises the soft limit of open files to the hard one: containerd gives pods a soft limit of 1024, macOS a shell 256."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft in (hard, resource.RLIM_INFINITY):
        return
    is_unlimited = hard == resource.RLIM_INFINITY
    for wanted in (hard, *(most for most in _MAX_FILES if is_unlimited and most > soft)):
        with suppress(ValueError, OSError):  # above what the kernel takes
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return
