"""The face of facts: what connections, rooms and presence report.

facts = Facts(node_id, store, webhooks, runtime, config)
sweeper = FactSweeper(node_id, store, facts.teller, facts.lease, other_nodes, runtime)
facts.start()
sweeper.start()
facts.client_connected(connection.id, identity.tenant, identity.user, "tidewire-js/1.2.0")
...
await facts.close()
"""

from __future__ import annotations

from dataclasses import dataclass

from service.core.channel import ChannelKey
from service.core.clock import milliseconds
from service.core.presence import PresenceStore
from service.core.webhooks import ChannelChange, ChannelWebhook, WebhookTeller
from service.realtime.facts.fact import Fact, FactKind, Period
from service.realtime.facts.teller import FactTeller
from service.realtime.facts.tracker import FactTracker
from service.realtime.ids import new_id
from service.realtime.runtime import Runtime

_OCCUPANCY = {ChannelChange.OCCUPIED, ChannelChange.VACATED}
_USERS = {ChannelChange.JOINED, ChannelChange.LEFT}


@dataclass(frozen=True, slots=True)
class FactConfig:
    """The settings of facts."""

    ttl: float
    """Seconds that a fact of a killed node lasts."""
    debounce: float
    """Seconds from the last subscriber, or the last connection of a user, to the end."""
    is_shared: bool
    """True if other nodes use the store, too."""
    max_waiting: int
    """Ends that wait in memory while the store is away."""
    client_endpoint: str | None
    """The endpoint that is told of clients; None if none is."""
    client_tenant: str | None
    """Only clients of this tenant; None for those of all tenants of the endpoint."""


class Facts:
    """Tells endpoints which clients are connected, which channels are occupied, and who is present in them.

    Each report returns at once. What nobody is told costs nothing in the store.
    """

    def __init__(
        self,
        node_id: str,
        store: PresenceStore,
        webhooks: WebhookTeller,
        runtime: Runtime,
        config: FactConfig,
    ) -> None:
        """`store` keeps only facts. `runtime` uses the store clock."""
        self._node_id = node_id
        self._webhooks = webhooks
        self._clock = runtime.clock
        self._config = config
        self.teller = FactTeller(node_id, store, webhooks, runtime.clock)
        self._tracker = FactTracker(
            node_id,
            store,
            self.teller,
            runtime,
            ttl=config.ttl,
            is_shared=config.is_shared,
            max_waiting=config.max_waiting,
        )
        self.lease = self._tracker.lease
        self.is_shared = config.is_shared

    def start(self) -> None:
        """Starts to renew this node's facts."""
        self._tracker.start()

    def drain(self) -> None:
        """From now on, channels and users that leave stay until their entries expire. By then, most are at other nodes."""
        self._tracker.drain()

    async def close(self) -> None:
        """Tells what is left, within two seconds. Other nodes tell the rest. Webhooks must still work."""
        await self._tracker.close()

    # --- clients ------------------------------------------------------------------------------------------------------

    def client_connected(self, connection: str, tenant: str, user: str, client: str) -> None:
        """Reports a connection. `user`: empty for an anonymous one. `client`: what it announces; empty without."""
        fact = self._client(connection, tenant)
        if fact is not None:
            self._tracker.begin(
                fact, connection, self._period(tells_begin=True, tells_end=True, user=user, client=client)
            )

    def client_disconnected(self, connection: str, tenant: str, code: int) -> None:
        """Reports the end of a connection, with its close code. Does nothing if that was reported before."""
        fact = self._client(connection, tenant)
        if fact is not None:
            self._tracker.end(fact, connection, code=code)

    def client_left(self, connection: str, tenant: str) -> None:
        """Reports that a session may go on at another node, under the same id. It ends if no node has it in time."""
        fact = self._client(connection, tenant)
        if fact is not None:
            self._tracker.lapse(fact, connection)

    def _client(self, connection: str, tenant: str) -> Fact | None:
        endpoint, only = self._config.client_endpoint, self._config.client_tenant
        if endpoint is None or (only is not None and only != tenant) or not self._webhooks.has(endpoint, tenant):
            return None
        return Fact(FactKind.CLIENT, endpoint, tenant, "", connection)

    # --- channels -----------------------------------------------------------------------------------------------------

    def channel_occupied(self, channel: ChannelKey, webhook: ChannelWebhook) -> None:
        """Reports the first subscriber of a channel at this node."""
        fact = self._channel(channel, webhook)
        if fact is not None:
            period = self._period(
                tells_begin=ChannelChange.OCCUPIED in webhook.tell, tells_end=ChannelChange.VACATED in webhook.tell
            )
            self._tracker.begin(fact, self._node_id, period)

    def channel_vacated(self, channel: ChannelKey, webhook: ChannelWebhook) -> None:
        """Reports that the last subscriber of a channel has left this node."""
        fact = self._channel(channel, webhook)
        if fact is not None:
            self._tracker.end(fact, self._node_id, debounce=self._config.debounce)

    def _channel(self, channel: ChannelKey, webhook: ChannelWebhook) -> Fact | None:
        if not webhook.tell & _OCCUPANCY or not self._webhooks.has(webhook.endpoint, channel.tenant):
            return None
        return Fact(FactKind.CHANNEL, webhook.endpoint, channel.tenant, channel.name, "")

    def user_joined(
        self, channel: ChannelKey, webhook: ChannelWebhook, user: str, connection: str, info: bytes | None
    ) -> None:
        """Reports a connection by which a user is present in a channel. `info`: JSON that presence shows."""
        fact = self._user(channel, webhook, user)
        if fact is not None:
            text = None if info is None else info.decode()
            period = self._period(
                tells_begin=ChannelChange.JOINED in webhook.tell,
                tells_end=ChannelChange.LEFT in webhook.tell,
                info=text,
            )
            self._tracker.begin(fact, connection, period)

    def user_left(
        self, channel: ChannelKey, webhook: ChannelWebhook, user: str, connection: str, *, is_debounced: bool = True
    ) -> None:
        """Reports that a connection has left a channel. Does nothing if that was reported before."""
        fact = self._user(channel, webhook, user)
        if fact is not None:
            self._tracker.end(fact, connection, debounce=self._config.debounce if is_debounced else 0.0)

    def user_lapses(self, channel: ChannelKey, webhook: ChannelWebhook, user: str, connection: str) -> None:
        """Reports that a connection has left a channel, and may join it again at another node."""
        fact = self._user(channel, webhook, user)
        if fact is not None:
            self._tracker.lapse(fact, connection)

    def _user(self, channel: ChannelKey, webhook: ChannelWebhook, user: str) -> Fact | None:
        if not webhook.tell & _USERS or not self._webhooks.has(webhook.endpoint, channel.tenant):
            return None
        return Fact(FactKind.USER, webhook.endpoint, channel.tenant, channel.name, user)

    def _period(
        self, *, tells_begin: bool, tells_end: bool, user: str = "", client: str = "", info: str | None = None
    ) -> Period:
        now = milliseconds(self._clock)
        return Period(now, self._node_id, new_id(), tells_begin, tells_end, user, client, info)
