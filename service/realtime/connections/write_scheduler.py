"""What goes out at the end of a turn of the event loop: what rooms have for their members, then what is left of replies.

So everything that one turn brings for a peer travels in as few writes as can be; and a room of thousands goes out in slices,
taking turns with the others, so that the loop is never held for long and no small room waits for a huge one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from service.core.clock import Clock

SLICE = 100
"""Members that one room writes to before the next room has its turn: about a millisecond's work."""
BUDGET = 0.004
"""Seconds of one turn of the loop that fan-outs may take; what is left goes on in the next."""


_log = structlog.get_logger("turn")


class Room(Protocol):
    """Something that writes to many."""

    def fan_out(self, most: int) -> bool:
        """Writes to at most so many; gives whether more is left to be written now."""

    def fail(self) -> None:
        """Called when `fan_out` has raised. It is asked again only after `schedule`."""


class Peer(Protocol):
    """Something that has replies."""

    def flush(self) -> None:
        """Writes them."""

    def fail(self) -> None:
        """Called when `flush` has raised."""


class WriteScheduler:
    """Runs at most once in a turn of the loop, behind what the turn has read. A fault in one room or peer is logged, and
    the others do not notice."""

    __slots__ = ("_clock", "_is_due", "_peers", "_rooms", "_soon")

    def __init__(self, clock: Clock, soon: Callable[[Callable[[], None]], object] | None = None) -> None:
        self._clock = clock
        self._soon = soon or self._learn
        """Has something called in the next turn of the loop."""
        self._rooms: deque[Room] = deque()
        self._peers: list[Peer] = []
        self._is_due = False

    def _learn(self, callback: Callable[[], None]) -> object:
        # Asking for the running loop is a system call on Python 3.11, so it is asked for once.
        self._soon = asyncio.get_running_loop().call_soon
        return self._soon(callback)

    def schedule(self, room: Room) -> None:
        """Has the room write at the end of this turn. It must not ask again before it has been asked to write the last."""
        self._rooms.append(room)
        self._run_soon()

    def schedule_flush(self, peer: Peer) -> None:
        """Has the peer flush at the end of this turn."""
        self._peers.append(peer)
        self._run_soon()

    def _run_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._soon(self._run)

    def _run(self) -> None:
        rooms = self._rooms
        if rooms:
            end = self._clock.monotonic() + BUDGET
            while rooms:
                room = rooms.popleft()
                try:
                    if room.fan_out(SLICE):
                        rooms.append(room)
                except Exception:
                    _log.exception("a fan-out failed")
                    room.fail()
                if self._clock.monotonic() >= end:
                    break
        peers, self._peers = self._peers, []
        for peer in peers:
            try:
                peer.flush()
            except Exception:
                _log.exception("a flush failed")
                peer.fail()
        self._is_due = False
        if rooms or self._peers:
            self._run_soon()
