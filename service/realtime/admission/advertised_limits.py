"""The limits that `welcome` tells a client."""

from __future__ import annotations

from msgspec import Raw, structs

from service.core.identity import Identity
from service.core.limits import Limits, Rate
from service.protocol import messages


class AdvertisedLimits:
    """The limits of a client, encoded once for all clients of the same kind."""

    def __init__(self, limits: Limits) -> None:
        self._anonymous = _encode(limits, is_anonymous=True)
        self._authenticated = _encode(limits, is_anonymous=False)

    def for_identity(self, identity: Identity) -> Raw:
        """Returns an encoded `messages.Limits`."""
        return self._anonymous if identity.is_anonymous else self._authenticated


def _encode(limits: Limits, *, is_anonymous: bool) -> Raw:
    subscribes, connects = limits.subscribe_rate, limits.connect_rate_per_ip
    address = _shared(limits.connections_per_ip, limits.ip_rate, limits.ip_subscribe_rate)
    user = _shared(limits.connections_per_user, limits.user_rate, limits.user_subscribe_rate)
    message = messages.Limits(
        message=limits.message_bytes,
        batch=limits.batch,
        subscriptions=limits.subscriptions,
        calls=limits.calls,
        rate=limits.connection_rate.per_second,
        burst=limits.connection_rate.burst,
        subscribe_rate=subscribes.per_second,
        subscribe_burst=subscribes.burst,
        violations=limits.rate_violations,
        address=structs.replace(address, connect_rate=connects.per_second, connect_burst=connects.burst),
        user=None if is_anonymous else user,
    )
    return Raw(messages.encode(message))


def _shared(connections: int, messages_rate: Rate, subscribes: Rate) -> messages.SharedLimits:
    return messages.SharedLimits(
        connections=connections,
        rate=messages_rate.per_second,
        burst=messages_rate.burst,
        subscribe_rate=subscribes.per_second,
        subscribe_burst=subscribes.burst,
    )
