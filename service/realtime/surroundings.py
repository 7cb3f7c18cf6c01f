"""What rooms and connections have in common with all others of their node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.core.clock import Clock
from service.core.limits import OutboxLimits
from service.protocol.close import CloseCode
from service.realtime.frame import Press
from service.realtime.outbox import Budget
from service.realtime.socket import Sender
from service.realtime.turn import Turn
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.realtime.connection import Connection


@dataclass(frozen=True, slots=True)
class Ways:
    """What all rooms share."""

    clock: Clock
    metrics: Metrics
    turn: Turn
    press: Press
    most_batch: int
    """Messages in one frame."""
    sender: Sender | None = None
    """Writes to many members at once, if there is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings(Ways):
    """What all connections share, and with them the rooms."""

    limits: OutboxLimits
    budget: Budget
    on_close: Callable[[Connection, CloseCode, str], None]
    """Called once for each connection that this side decides to close: leaves the hub."""
