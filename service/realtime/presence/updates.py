"""Sets the info of users on behalf of their clients, over a connection or over HTTP."""

from __future__ import annotations

from msgspec import Raw

from service.contract.gate import Gate
from service.core.channel import ChannelKey
from service.core.identity import Identity
from service.core.presence import updated_info
from service.core.session import Subscription
from service.errors import ErrorCode, ServiceError
from service.realtime.presence.presence import Presence
from service.telemetry.metrics import Metrics


class PresenceUpdates:
    """The one way to a `presence.update`: each passes the bound on its bytes and the contract gate."""

    def __init__(self, gate: Gate, presence: Presence, metrics: Metrics, max_bytes: int) -> None:
        self._gate = gate
        self._presence = presence
        self._metrics = metrics
        self._max_bytes = max_bytes

    async def update(
        self, identity: Identity, channel: str, data: Raw, connection: str, subscription: Subscription | None
    ) -> None:
        """Sets the info on behalf of a connection of this node, and announces it.

        Raises ServiceError; then nothing has changed. While the store is away, the change is postponed until its return.
        """
        key, info = self._check(identity, channel, data, subscription)
        await self._presence.update(key, identity.user, connection, info)

    async def update_at_once(
        self, identity: Identity, channel: str, data: bytes | Raw, session: str, subscription: Subscription | None
    ) -> None:
        """Does the same on behalf of a session of any node, but raises ServiceError(BROKER_UNAVAILABLE) if the store is away."""
        key, info = self._check(identity, channel, data, subscription)
        if not await self._presence.update_at_once(key, identity.user, session, info):
            raise ServiceError(ErrorCode.NOT_SUBSCRIBED, "the session has left the channel", path="$.channel")

    def _check(
        self, identity: Identity, channel: str, data: bytes | Raw, subscription: Subscription | None
    ) -> tuple[ChannelKey, bytes]:
        size = memoryview(data).nbytes
        if size > self._max_bytes:
            self._metrics.limits.limit_hits.labels(limit="presence_update_bytes").inc()
            raise ServiceError(
                ErrorCode.TOO_BIG, f"data has at most {self._max_bytes} bytes", path="$.data", limit=self._max_bytes
            )
        key, info = self._gate.validate_presence_update(identity, channel, data, subscription)
        return key, updated_info(info)
