"""Reads history for every door: the command `history`, the backend API, `GET /history` and the addresses of pages."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Raw, Struct

from service.contract.gate import Gate
from service.contract.model import ChannelSpec
from service.core.broker import Broker
from service.core.channel import ChannelKey
from service.core.clock import Clock
from service.core.event import Event
from service.core.limits import HistoryPages
from service.core.page_address import PageAddress, PageSigner, expiry_of, page_of
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.realtime.connections.frame import encode_event


class HistoryPart(Struct, frozen=True):
    """A part of a channel's history, oldest first."""

    position: Position
    """The newest position of the channel."""
    events: list[Raw]
    has_more: bool
    """True if there are further events in the requested direction."""
    older: str | None = None
    """The address of the page with the event before the first one. None if caches may not keep that page."""
    newer: str | None = None
    """The same for the event after the last one."""


class CachedPage(Struct, frozen=True):
    """A page that caches may keep."""

    channel: ChannelKey
    part: HistoryPart
    max_age: int
    """Seconds that caches may keep it without asking again."""


class HistoryReader:
    """Reads history, and gives out the addresses of the pages that caches may keep."""

    def __init__(
        self, gate: Gate, broker: Broker, signer: PageSigner, clock: Clock, pages: HistoryPages, max_bytes: int
    ) -> None:
        """`clock`: the store clock. `max_bytes`: the encoded events of one part."""
        self._gate = gate
        self._broker = broker
        self._signer = signer
        self._clock = clock
        self._pages = pages
        self._max_bytes = max_bytes

    async def read(
        self, channel: ChannelKey, spec: ChannelSpec, after: int | None, before: int | None, limit: int
    ) -> HistoryPart:
        """Reads what `Broker.history` reads, as far as it fits. The caller has asked the gate for the right to history.

        Where the contract says `cacheable`, the part has the address of the page that continues it.
        """
        page = await self._broker.history(channel, after, before, limit)
        newest_first = after is None
        encoded = encode_page(page.events, self._max_bytes, newest_first=newest_first)
        part = HistoryPart(page.position, encoded, page.has_more or len(encoded) < len(page.events))
        if not spec.is_cacheable or not part.has_more:
            return part
        expires_at = expiry_of(*channel, self._clock.wall(), self._pages.address_ttl)
        if newest_first:
            address = self._address(channel, page.position, _offset(page.events[-len(encoded)]) - 1, expires_at)
            return HistoryPart(part.position, encoded, part.has_more, older=address)
        address = self._address(channel, page.position, _offset(page.events[len(encoded) - 1]) + 1, expires_at)
        return HistoryPart(part.position, encoded, part.has_more, newer=address)

    def verify(self, path: str) -> PageAddress:
        """Returns the address in a path. Raises ServiceError(INVALID_ADDRESS) if its signature is wrong or it has expired."""
        address = self._signer.verify(path)
        if address is None or address.expires_at <= self._clock.wall():
            raise ServiceError(
                ErrorCode.INVALID_ADDRESS, "the address is forged, changed or expired; read history to get a new one"
            )
        return address

    async def read_page(self, address: PageAddress) -> CachedPage:
        """Reads the page of a verified address.

        Raises ServiceError: what `Gate.authorise_page` raises, or NOT_FOUND if the channel has another epoch now, or keeps no
        event of the page.
        """
        self._gate.authorise_page(address.channel)
        channel, first, last = ChannelKey(address.tenant, address.channel), address.first, address.last
        page = await self._broker.history(channel, first - 1, last + 1, last - first + 1)
        if page.position.epoch != address.epoch or not page.events:
            raise ServiceError(ErrorCode.NOT_FOUND, "the channel has a new epoch, or keeps no event of this page")
        encoded = encode_page(page.events, self._max_bytes, newest_first=False)
        part = HistoryPart(
            page.position,
            encoded,
            has_more=_offset(page.events[len(encoded) - 1]) < last,
            older=self._address(channel, page.position, first - 1, address.expires_at)
            if _offset(page.events[0]) == first
            else None,
            newer=self._address(channel, page.position, last + 1, address.expires_at),
        )
        max_age = min(self._pages.max_age, int(address.expires_at - self._clock.wall()))
        return CachedPage(channel, part, max_age)

    def _address(self, channel: ChannelKey, newest: Position, offset: int, expires_at: int) -> str | None:
        """Returns the address of the page with this offset, if it is full: later events cannot change it."""
        first, last = page_of(offset)
        if offset < 1 or last > newest.offset:
            return None
        return self._signer.sign(PageAddress(*channel, newest.epoch, first, last, expires_at))


def encode_page(events: Sequence[Event], max_bytes: int, *, newest_first: bool) -> list[Raw]:
    """Encodes the newest or the oldest events that fit into `max_bytes` together, but at least one."""
    encoded: list[Raw] = []
    size = 0
    for event in reversed(events) if newest_first else events:
        payload = encode_event(event)
        size += len(payload)
        if encoded and size > max_bytes:
            break
        encoded.append(Raw(payload))
    return encoded[::-1] if newest_first else encoded


def _offset(event: Event) -> int:
    return event.offset or 0
