"""Publishing over HTTP: one or several events in order, each with its own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw

from service.core.broker import PublishResult
from service.errors import ErrorCode, ServiceError
from service.protocol.unique_keys import check_text
from service.realtime.ids import is_connection_of
from service.web.api.call import Call, is_valid_user
from service.web.api.messages import (
    MAX_EVENTS_PER_REQUEST,
    MAX_USER_CHARS,
    AddressedEvent,
    NewEvent,
    NoQuery,
    Published,
    Refusal,
    Refused,
    Results,
)
from service.web.body import data_of, decode_unchecked

MAX_EVENTS_PER_ITERATION = 25
"""Events published in one loop iteration; then other connections run. Checking many large events takes milliseconds."""
MAX_BYTES_PER_ITERATION = 65_536
"""The same limit in bytes."""

_events_decoder = msgspec.json.Decoder(list[Raw])
_event_decoder = msgspec.json.Decoder(NewEvent)
_addressed_event_decoder = msgspec.json.Decoder(AddressedEvent)
_WHITESPACE = b" \t\r\n"


async def publish_to_channel(call: Call, query: NoQuery) -> Published | Results:
    """Publishes one event or several in the channel of the path."""
    channel, _ = call.channel()
    key = call.idempotency_key()
    body = await call.body()
    if body.lstrip(_WHITESPACE)[:1] == b"[":
        return await _publish_each(call, _decode_events(call, body), channel, key)
    return await _publish(call, body, decode_unchecked(body, _event_decoder), channel, key)


async def publish_to_channels(call: Call, query: NoQuery) -> Results:
    """Publishes several events, each in the channel that it names."""
    key = call.idempotency_key()
    return await _publish_each(call, _decode_events(call, await call.body()), None, key)


def _decode_events(call: Call, body: bytes) -> list[Raw]:
    events = decode_unchecked(body, _events_decoder)  # each event is checked for duplicate keys by itself
    if len(events) > MAX_EVENTS_PER_REQUEST:
        call.node.runtime.metrics.limits.limit_hits.labels(limit="batch").inc()
        raise ServiceError(
            ErrorCode.INVALID_MESSAGE,
            f"a request has at most {MAX_EVENTS_PER_REQUEST} events",
            path="$",
            limit=MAX_EVENTS_PER_REQUEST,
        )
    return events


async def _publish_each(call: Call, events: Sequence[Raw], channel: str | None, key: str | None) -> Results:
    """Publishes in order. After a retryable refusal, the remaining events get the same error untried, so that retrying
    all of them keeps the order."""
    results: list[Published | Refused] = []
    retryable_error: ServiceError | None = None
    size = 0
    for index, raw in enumerate(events):
        size += len(raw)
        if index % MAX_EVENTS_PER_ITERATION == MAX_EVENTS_PER_ITERATION - 1 or size > MAX_BYTES_PER_ITERATION:
            size = 0
            await asyncio.sleep(0)
        try:
            if retryable_error is not None:
                raise retryable_error
            fallback_id = f"{key}.{index}" if key is not None else None
            if channel is None:
                addressed = decode_unchecked(raw, _addressed_event_decoder)
                results.append(await _publish(call, raw, addressed, addressed.channel, fallback_id))
            else:
                results.append(await _publish(call, raw, decode_unchecked(raw, _event_decoder), channel, fallback_id))
        except ServiceError as error:
            results.append(_to_refused(error))
            retryable_error = error if error.retryable else None
    return Results(results=results)


def _to_refused(error: ServiceError) -> Refused:
    return Refused(
        error=Refusal(
            code=error.code.code, message=error.message, details=dict(error.details), retryable=error.retryable
        )
    )


async def _publish(call: Call, raw: bytes | Raw, event: NewEvent, channel: str, fallback_id: str | None) -> Published:
    data = _check_event(call, event)
    check_text(raw)  # after the check of its size
    result = call.node.publisher.publish(
        call.identity,
        channel=channel,
        type=event.type,
        data=data,
        id=event.id if event.id is not None else fallback_id,
        key=event.key,
        sender=event.sender,
        removed=event.removed is True,
        if_rev=event.if_rev,
        exclude=event.exclude,
    )
    return _to_published(result if isinstance(result, PublishResult) else await result)


def _check_event(call: Call, event: NewEvent) -> bytes | Raw:
    """Returns the data. Raises ServiceError for what the contract does not decide."""
    if event.sender is not None and not is_valid_user(event.sender):
        raise ServiceError(
            ErrorCode.INVALID_MESSAGE,
            f"a user is 1 to {MAX_USER_CHARS} printable characters without spaces around them",
            path="$.from",
        )
    if event.exclude is not None and not _is_connection_of(event.exclude, event.sender):
        raise ServiceError(ErrorCode.FORBIDDEN, "exclude names no connection of the user in `from`", path="$.exclude")
    if event.exclude is not None and event.removed is True:
        raise ServiceError(ErrorCode.INVALID_MESSAGE, "a removal goes to every subscriber", path="$.exclude")
    data = data_of(event.data, removed=event.removed is True)
    limit = call.node.bounds.limits.message_bytes
    if len(bytes(data)) > limit:  # no outbox could hold it, and every subscriber would count as slow
        call.node.runtime.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        raise ServiceError(ErrorCode.TOO_BIG, f"data has at most {limit} bytes", path="$.data", limit=limit)
    return data


def _to_published(result: PublishResult) -> Published:
    return Published(
        id=result.id,
        epoch=result.epoch or UNSET,
        offset=result.offset if result.offset is not None else UNSET,
        rev=result.state_version if result.state_version is not None else UNSET,
        duplicate=result.duplicate,
    )


def _is_connection_of(connection: str, sender: str | None) -> bool:
    """Whether it is a connection of the user; of an anonymous one, whose name has the connection in it, if it is this one."""
    user = "" if sender == f"anonymous-{connection}" else sender
    return user is not None and is_connection_of(connection, user)
