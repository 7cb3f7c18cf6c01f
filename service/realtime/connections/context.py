"""The dependencies that all rooms of a node share, and those that all its connections share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from service.core.clock import Clock
from service.core.limits import OutboxLimits
from service.protocol.close import CloseCode
from service.realtime.connections.encoder import FrameEncoder
from service.realtime.connections.transport import BatchSender
from service.realtime.connections.write_scheduler import WriteScheduler
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from service.realtime.connections.connection import Connection


@dataclass(frozen=True, slots=True)
class RoomContext:
    """Dependencies of every room."""

    clock: Clock
    metrics: Metrics
    scheduler: WriteScheduler
    encoder: FrameEncoder
    max_batch: int
    """Messages in one WebSocket message, at most."""
    batch_sender: BatchSender | None = None
    """Writes to many members in one call; None where the native sender is not built."""


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """Dependencies of every connection."""

    clock: Clock
    metrics: Metrics
    scheduler: WriteScheduler
    encoder: FrameEncoder
    max_batch: int
    """Messages in one WebSocket message, at most."""
    outbox_limits: OutboxLimits
    on_close: Callable[[Connection, CloseCode, str], None]
    """Called once for each connection that this side closes; must stop deliveries to it."""
