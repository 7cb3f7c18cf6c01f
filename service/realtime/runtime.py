"""What most classes of the realtime core need: time, tasks, metrics, and logs of outages."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from service.aio.tasks import TaskSupervisor
from service.core.clock import Clock
from service.telemetry.metrics import Metrics
from service.telemetry.outage import Outages


@dataclass(frozen=True, slots=True)
class Runtime:
    """One node's clock, tasks and metrics, passed as one value."""

    clock: Clock
    tasks: TaskSupervisor
    """Owns every task of the node."""
    metrics: Metrics
    outages: Outages = field(default_factory=Outages)
    """The logs of what fails again and again, shared so that one outage is logged once."""

    @classmethod
    def create(cls, clock: Clock, metrics: Metrics) -> Runtime:
        """A runtime with a supervisor of its own, which counts deaths in the metrics."""
        return cls(clock, TaskSupervisor(metrics.process.count_task_death), metrics)

    def with_clock(self, clock: Clock) -> Runtime:
        """The same runtime by another clock, for what all nodes must agree on."""
        return replace(self, clock=clock)
