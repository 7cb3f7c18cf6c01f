"""The bodies and addresses of the requests for streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from service.core import last_event_id
from service.core.position import Position
from service.core.tickets import StreamTicket
from service.errors import ErrorCode, ServiceError
from service.protocol.features import Announcement, parse_announcement
from service.protocol.messages import MAX_KEY, CallName, Channel, Id, Offset, Since, TailSize
from service.realtime.session.handshake import NO_TAILS
from service.web.body import decode
from service.web.connect_checks import parse_channels, read_announcement

MAX_WAIT = 20.0
"""Seconds that a poll waits at most. Proxies cut a response without data after 30 s or more."""
MAX_FEATURES = 64
"""Names of features in one request."""
_Text = Annotated[str, Meta(max_length=65)]

LAST_EVENT_ID = "Last-Event-ID"


class StreamSubscription(Struct, frozen=True, forbid_unknown_fields=True):
    """One channel, from a position if `since` is given, with its last events if `tail` is given."""

    channel: Channel
    since: Since | None = None
    tail: TailSize | None = None


class StreamRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /stream`."""

    subscriptions: list[StreamSubscription] = []
    """The channels. A stream without a channel has a receipt, and says when to reconnect."""
    client: _Text = ""
    """Name and version of the client's library, as `client` in the address of an upgrade."""
    contract: _Text = ""
    """Hash of the contract that the client was made for."""
    features: Annotated[list[_Text], Meta(max_length=MAX_FEATURES)] = []
    """Features that the client knows. Unknown names are ignored."""


class PollRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /poll`."""

    subscriptions: list[StreamSubscription] | None = None
    """The channels; without them, those of the receipt."""
    receipt: str | None = None
    """That of the last poll, which this one continues."""
    wait: Annotated[float, Meta(ge=0, le=MAX_WAIT)] = MAX_WAIT
    """Seconds to wait for an event."""
    client: _Text = ""
    contract: _Text = ""
    features: Annotated[list[_Text], Meta(max_length=MAX_FEATURES)] = []


class EmitRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /emit`: an event, as over a WebSocket, and the session that it belongs to."""

    type: str
    channel: Channel
    id: Id
    data: Raw | UnsetType = UNSET
    """Absent if and only if `removed`."""
    key: Annotated[str, Meta(min_length=1, max_length=MAX_KEY)] | None = None
    removed: Literal[True] | UnsetType = UNSET
    if_rev: Offset | None = None
    receipt: str | None = None


class CallRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /call`: a call, as over a WebSocket, and the session that it belongs to."""

    call: CallName
    id: Id
    data: Raw
    receipt: str | None = None


_poll_decoder = msgspec.json.Decoder(PollRequest)
_emit_decoder = msgspec.json.Decoder(EmitRequest)
_call_decoder = msgspec.json.Decoder(CallRequest)
_stream_decoder = msgspec.json.Decoder(StreamRequest)


class Wanted(Struct, frozen=True):
    """What a client wants to get: channels in order, and the positions from which it resumes. And what it announces."""

    channels: Sequence[str]
    positions: Mapping[str, Position]
    announcement: Announcement
    tails: Mapping[str, int] = NO_TAILS


def parse_stream(body: bytes) -> Wanted:
    """Reads the body of `POST /stream`. Raises ServiceError."""
    wanted = decode(body, _stream_decoder)
    announcement = parse_announcement(wanted.client, wanted.contract, ",".join(wanted.features))
    return _read_wanted(wanted.subscriptions, announcement)


def _read_wanted(subscriptions: Sequence[StreamSubscription], announcement: Announcement) -> Wanted:
    channels: dict[str, None] = {}
    positions: dict[str, Position] = {}
    for index, one in enumerate(subscriptions):
        if one.channel in channels:
            raise ServiceError(
                ErrorCode.INVALID_MESSAGE, f"{one.channel} is given twice", path=f"$.subscriptions[{index}].channel"
            )
        channels[one.channel] = None
        if one.since is not None:
            positions[one.channel] = Position(one.since.epoch, one.since.offset, one.since.id)
    tails = {one.channel: one.tail for one in subscriptions if one.tail is not None}
    return Wanted(list(channels), positions, announcement, tails or NO_TAILS)


def parse_poll(body: bytes) -> tuple[PollRequest, Wanted | None]:
    """Reads the body of `POST /poll`: the request, and what it names itself. Raises ServiceError."""
    request = decode(body, _poll_decoder)
    if request.subscriptions is None:
        return request, None
    announcement = parse_announcement(request.client, request.contract, ",".join(request.features))
    return request, _read_wanted(request.subscriptions, announcement)


def parse_emit(body: bytes) -> EmitRequest:
    """Reads the body of `POST /emit`. Raises ServiceError."""
    return decode(body, _emit_decoder)


def parse_call(body: bytes) -> CallRequest:
    """Reads the body of `POST /call`. Raises ServiceError."""
    return decode(body, _call_decoder)


def parse_address(request: web.Request, ticket: StreamTicket | None) -> Wanted:
    """Reads the address of `GET /sse`, and Last-Event-ID. Raises ServiceError.

    Without `channels`, a ticket opens all its channels.
    """
    channels = parse_channels(request.query.getall("channels", []))
    if ticket is not None:
        channels = channels or ticket.channels
        for channel in channels:
            if channel not in ticket.channels:
                raise ServiceError(
                    ErrorCode.FORBIDDEN, "the ticket is for other channels", parameter="channels", channel=channel
                )
    if not 1 <= len(channels) <= last_event_id.MAX_CHANNELS:
        raise ServiceError(
            ErrorCode.INVALID_REQUEST,
            f"name 1 to {last_event_id.MAX_CHANNELS} channels: their positions must fit into a header",
            parameter="channels",
            limit=last_event_id.MAX_CHANNELS,
        )
    # A browser's EventSource sends the header when it reconnects. A page that opens a new one can only set the address.
    given = request.headers.get(LAST_EVENT_ID) or request.query.get("last_event_id")
    positions = last_event_id.decode(given, channels) if given else {}
    return Wanted(channels, positions, read_announcement(request))
