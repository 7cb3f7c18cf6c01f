"""What rooms have in common with all others of their node."""

from __future__ import annotations

from dataclasses import dataclass

from service.core.clock import Clock
from service.realtime.connections.frame import Press
from service.realtime.connections.transport import Sender
from service.realtime.connections.write_scheduler import Turn
from service.telemetry.metrics import Metrics


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
