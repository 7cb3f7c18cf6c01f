"""Presence events: `presence.joined` and `presence.left` for a user, `presence.count` for a large channel."""

from __future__ import annotations

import msgspec
from msgspec import Raw

from service.core.channel import ChannelKey
from service.core.clock import Clock, milliseconds
from service.core.event import Delivery, Event, Publication
from service.core.presence import PresenceEntry, PresenceJoin, is_updated, updated_info
from service.realtime.ids import new_id

JOINED, LEFT, COUNT = "presence.joined", "presence.left", "presence.count"


class PresenceEvents:
    """Makes presence events with the time of the store clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def join(self, entry: PresenceEntry, info: bytes | None) -> PresenceJoin:
        """Returns an entry for the store, with the event that announces its user."""
        data: dict[str, str | Raw | bool] = {"user": entry.user}
        if info is not None:
            data["info"] = Raw(info.rstrip())
        if is_updated(info):
            data["updated"] = True
        return PresenceJoin(entry, info, self._publication(entry.channel, JOINED, data, entry.user))

    def left(self, channel: ChannelKey, user: str) -> Publication:
        """Returns the event for a user who has left the channel."""
        return self._publication(channel, LEFT, {"user": user}, user)

    def count(self, channel: ChannelKey, users: int) -> Publication:
        """Returns the event with the number of users, for a channel that is too large to announce each user."""
        return self._publication(channel, COUNT, {"count": users}, None)

    def _publication(self, channel: ChannelKey, kind: str, data: object, user: str | None) -> Publication:
        return Publication(
            channel=channel,
            type=kind,
            id=new_id(),
            delivery=Delivery.EPHEMERAL,
            data=msgspec.json.encode(data),
            sender=user,
            at=milliseconds(self._clock),
            key=user or "",
        )


class _JoinedData(msgspec.Struct):
    """The part of a `presence.joined` event that shows the user."""

    info: Raw = Raw(b"")
    updated: bool = False


_decode_joined = msgspec.json.Decoder(_JoinedData).decode


def shown_info(joined: Event) -> bytes | None:
    """Returns the info in a `presence.joined` event, as stores keep it. None if it has none, or if another version made it."""
    try:
        data = _decode_joined(joined.data)
    except msgspec.DecodeError:
        return None
    info = bytes(data.info)
    return updated_info(info) if data.updated else info or None
