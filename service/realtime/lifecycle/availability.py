"""Decides whether a node accepts connections. Its readiness probe and its reports to other nodes say so."""

from __future__ import annotations

from service.aio.tasks import TaskSupervisor
from service.errors import ErrorCode, ServiceError
from service.realtime.admission.admission import Admission
from service.realtime.connections.registry import ConnectionRegistry
from service.realtime.lifecycle.broker_health import BrokerHealth


class Availability:
    """Combines the causes that take a node out of service: a drain, a dead critical task, a long outage of the broker."""

    def __init__(
        self, admission: Admission, registry: ConnectionRegistry, health: BrokerHealth, tasks: TaskSupervisor
    ) -> None:
        self._admission = admission
        self._registry = registry
        self._tasks = tasks
        self.health = health

    def start(self) -> None:
        """Starts the checks of the broker. The broker must have started."""
        self.health.start()

    def close(self) -> None:
        """Ends the checks of the broker."""
        self.health.close()

    @property
    def connections(self) -> int:
        """The number of this node's connections."""
        return len(self._registry)

    @property
    def is_draining(self) -> bool:
        """True once the node drains."""
        return self._admission.is_draining

    @property
    def is_accepting(self) -> bool:
        """True if the node accepts connections. A short outage of the broker does not change this."""
        return (
            not self._admission.is_draining
            and self._tasks.failed is None
            and not self.health.is_unavailable_past_threshold
        )

    def check_ready(self) -> None:
        """Raises ServiceError if the node should get no new connections. Does not check the broker; `health` does."""
        self._admission.check_open()
        if self._tasks.failed is not None:
            raise ServiceError(ErrorCode.INTERNAL, f"the task {self._tasks.failed!r} has died")
