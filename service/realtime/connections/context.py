"""What rooms have in common with all others of their node."""

from __future__ import annotations

from dataclasses import dataclass

from service.core.clock import Clock
from service.realtime.connections.frame import FrameEncoder
from service.realtime.connections.transport import BatchSender
from service.realtime.connections.write_scheduler import WriteScheduler
from service.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class RoomContext:
    """What all rooms share."""

    clock: Clock
    metrics: Metrics
    turn: WriteScheduler
    encoder: FrameEncoder
    max_batch: int
    """Messages in one frame."""
    sender: BatchSender | None = None
    """Writes to many members at once, if there is one."""
