"""The parts of a node that act on connections from their start to their end."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import nan

from service.core.broker import Broker
from service.core.quota import QuotaScope, QuotaStore
from service.protocol.close import CloseCode
from service.protocol.features import NO_ANNOUNCEMENT, Announcement
from service.realtime.admission.admission import Admission
from service.realtime.admission.session_evictor import ReplacedSessions, SessionEvictor
from service.realtime.bounds import Bounds
from service.realtime.calls import Calls
from service.realtime.cluster.cluster import Cluster
from service.realtime.cluster.messages import CloseConnections
from service.realtime.connections.connection import Connection
from service.realtime.facts.facts import Facts
from service.realtime.lifecycle.availability import Availability
from service.realtime.lifecycle.drain import Drain
from service.realtime.lifecycle.latency_probe import Connect, LatencyProbe
from service.realtime.lifecycle.monitor import ConnectionMonitor
from service.realtime.lifecycle.pending_handshakes import PendingHandshakes
from service.realtime.lifecycle.rebalancer import Rebalancer
from service.realtime.lifecycle.reconnects import ReconnectScheduler
from service.realtime.lifecycle.renewals import Renewals
from service.realtime.runtime import Runtime
from service.realtime.streams.streams import Streams

REPLACED = "replaced by a newer session"


class Lifecycle:
    """Adds and removes connections. Moves them to other nodes when they are old, for rebalancing, and in a drain."""

    def __init__(
        self,
        broker: Broker,
        quota: QuotaStore,
        connect: Connect,
        availability: Availability,
        admission: Admission,
        streams: Streams,
        cluster: Cluster,
        calls: Calls,
        bounds: Bounds,
        runtime: Runtime,
    ) -> None:
        self._admission = admission
        self._streams = streams
        self._cluster = cluster
        self._limits = bounds.limits
        self._clock = runtime.clock
        self._client_facts = streams.facts if bounds.webhooks.client_endpoint is not None else None
        registry, rollout, metrics = streams.registry, bounds.rollout, runtime.metrics
        self._calls = calls
        self.reconnects = ReconnectScheduler(runtime.clock, metrics, before_close=calls.refuse)
        self.monitor = ConnectionMonitor(
            registry,
            bounds.deadlines,
            bounds.outbox,
            runtime.clock,
            metrics,
            on_check=admission.evict_idle,
            on_keepalive=cluster.receipts.renew_if_due,
            rollout=rollout,
            reconnects=self.reconnects,
        )
        self.renewals = Renewals(cluster.authenticator, bounds.deadlines, runtime)
        self.rebalancer = Rebalancer(registry, self.reconnects, cluster.membership, availability, rollout, runtime)
        self.pending_handshakes = PendingHandshakes()
        self.probe = LatencyProbe(
            cluster.node_id,
            bounds.probe,
            broker,
            connect,
            streams.room_context,
            streams.connection_context,
            runtime,
        )
        streams.relay.subscribe_internally(self.probe.channel, self.probe)
        self._drain = Drain(registry, self.reconnects, calls, rollout, bounds.deadlines, metrics)
        self._replaced = ReplacedSessions(self._close_replaced, runtime)
        self._evictor = SessionEvictor(quota, bounds.limits, runtime, self._replaced.add)
        metrics.lifecycle.draining.set_function(lambda: float(availability.is_draining))
        metrics.lifecycle.drain_left.set_function(lambda: len(registry) if availability.is_draining else 0)
        for quantile in (0.5, 0.9, 1.0):
            metrics.connections.connection_age_seconds.labels(quantile=f"{quantile:g}").set_function(
                partial(self._age_quantile, quantile)
            )

    async def start(self) -> None:
        """Starts all parts. The other groups of the node must have started."""
        self._evictor.start()
        await self.probe.start()
        self.monitor.start()
        self.rebalancer.start()

    def close(self) -> None:
        """Stops all parts. Connections stay open."""
        self.monitor.close()
        self.rebalancer.close()
        self.reconnects.close()
        self.renewals.close()
        self.probe.close()
        self._evictor.close()
        self._replaced.close()

    @property
    def drain_timed_out(self) -> bool:
        """True if a drain has aborted connections because `deadlines.shutdown` had passed."""
        return self._drain.timed_out

    def add(self, connection: Connection, announcement: Announcement = NO_ANNOUNCEMENT) -> None:
        """Adds an authenticated connection, and closes the user's oldest ones above the cap."""
        self.monitor.track(connection)
        self._streams.registry.add(connection)
        if self._client_facts is not None:
            identity, client = connection.session.identity, announcement.client
            client = f"{client}/{announcement.version}" if client else ""
            self._client_facts.client_connected(connection.id, identity.tenant, identity.user, client)
        # The token may have been revoked between its check and now, while the connection was not in the registry.
        self._cluster.revocations.enforce(connection)
        self._evict_oldest(connection)

    def remove(self, connection: Connection, *, is_moved: bool = False) -> None:
        """Removes a connection and releases its slot. A second call does nothing.

        `is_moved`: the session goes on at another node under the same id.
        """
        if self._client_facts is not None:
            self._report_end(self._client_facts, connection, is_moved=is_moved)
        self._evictor.remove(connection.session.identity, connection.id, is_moved=is_moved)
        self._streams.registry.remove(connection)
        self.reconnects.remove(connection)
        self.renewals.discard(connection)
        connection.slot.release()

    def _report_end(self, facts: Facts, connection: Connection, *, is_moved: bool) -> None:
        tenant, closing = connection.session.identity.tenant, connection.closing
        is_restarted = closing is not None and closing[0] is CloseCode.RESTART
        if is_moved or (connection.transport.may_continue and is_restarted):
            facts.client_left(connection.id, tenant)
        else:
            code = closing[0].code if closing is not None else connection.transport.close_code
            facts.client_disconnected(connection.id, tenant, code)

    async def drain(self) -> None:
        """Refuses new connections, then moves all connections to other nodes (`Drain.run`).

        Returns when none is left or `deadlines.shutdown` has passed.
        """
        self._admission.set_draining(draining=True)
        self._cluster.heartbeat.report_soon()
        self._streams.drain()
        self.pending_handshakes.expire()
        await self._drain.run()

    def skip_drain_delays(self) -> None:
        """Makes the drain close all connections at once, now or when it starts."""
        self._drain.skip_delays()

    def _evict_oldest(self, newest: Connection) -> None:
        identity = newest.session.identity
        if self._limits.on_user_cap != "replace" or identity.is_anonymous:
            return
        connections = self._streams.registry.of_user(identity.tenant, identity.user)
        for oldest in connections[: -self._limits.connections_per_user]:
            oldest.close(CloseCode.REPLACED, REPLACED)
            self.remove(oldest)
            if oldest.transport.has_receipts:
                self._cluster.receipts.end_session(oldest.id, identity)
                self._replaced.add(QuotaScope(identity.tenant, identity.user), [oldest.id])
        self._evictor.add(identity, newest.id)

    async def _close_replaced(self, sessions: Mapping[str, QuotaScope]) -> None:
        users = [(scope.tenant, scope.user or "") for scope in sessions.values()]
        await self._cluster.requests.send(
            CloseConnections(connections=list(sessions), users=users, code=CloseCode.REPLACED.name, reason=REPLACED)
        )

    def _age_quantile(self, quantile: float) -> float:
        """Returns this quantile of the connections' ages in seconds; NaN without connections."""
        began = self._streams.registry.opened_at(1.0 - quantile)
        return nan if began is None else self._clock.monotonic() - began
