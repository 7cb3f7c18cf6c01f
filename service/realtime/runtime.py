"""The dependencies of most classes in the realtime core: clock, tasks, metrics, and logs of outages."""

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
    """The logs of outages. All parts share them, so that an outage is logged once."""

    @classmethod
    def create(cls, clock: Clock, metrics: Metrics) -> Runtime:
        """Returns a runtime with its own task supervisor, which counts the deaths of tasks in the metrics."""
        return cls(clock, TaskSupervisor(metrics.process.count_task_death), metrics)

    def with_clock(self, clock: Clock) -> Runtime:
        """Returns the same runtime with another clock, for times that all nodes must agree on."""
        return replace(self, clock=clock)
