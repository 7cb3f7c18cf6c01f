"""Publishing over HTTP: one event or several, in order, each with its own result."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec import UNSET, Raw

from service.core.broker import PublishResult
from service.errors import ErrorCode, ServiceError
from service.protocol.unique_keys import check_text
from service.web.api.call import Call, decode_leniently, is_user
from service.web.api.messages import (
    MAX_EVENTS,
    MAX_USER,
    AddressedEvent,
    NewEvent,
    NoQuery,
    Published,
    Refusal,
    Refused,
    Results,
)

EVENTS_A_TURN = 25
"""Events published in one go: checking many large ones takes milliseconds that every connection of the node would wait."""
BYTES_A_TURN = 65_536
"""The same in bytes."""

_several = msgspec.json.Decoder(list[Raw])
_event = msgspec.json.Decoder(NewEvent)
_addressed = msgspec.json.Decoder(AddressedEvent)
_SPACE = b" \t\r\n"


async def to_channel(call: Call, query: NoQuery) -> Published | Results:
    """Publishes one event or several in the channel of the address."""
    channel, _ = call.channel()
    key = call.idempotency_key()
    body = await call.body()
    if body.lstrip(_SPACE)[:1] == b"[":
        return await _publish_all(call, _events(call, body), channel, key)
    return await _publish(call, body, decode_leniently(body, _event), channel, key)


async def to_channels(call: Call, query: NoQuery) -> Results:
    """Publishes several events, each in the channel that it names."""
    key = call.idempotency_key()
    return await _publish_all(call, _events(call, await call.body()), None, key)


def _events(call: Call, body: bytes) -> list[Raw]:
    events = decode_leniently(body, _several)  # each is looked at by itself
    if len(events) > MAX_EVENTS:
        call.node.runtime.metrics.limits.limit_hits.labels(limit="batch").inc()
        raise ServiceError(
            ErrorCode.INVALID_MESSAGE, f"a request has at most {MAX_EVENTS} events", path="$", limit=MAX_EVENTS
        )
    return events


async def _publish_all(call: Call, events: Sequence[Raw], channel: str | None, key: str | None) -> Results:
    """Publishes in order. Once one is refused for a while, the rest is not tried: sending all again keeps the order."""
    results: list[Published | Refused] = []
    waiting: ServiceError | None = None
    size = 0
    for index, raw in enumerate(events):
        size += len(raw)
        if index % EVENTS_A_TURN == EVENTS_A_TURN - 1 or size > BYTES_A_TURN:
            size = 0
            await asyncio.sleep(0)
        try:
            if waiting is not None:
                raise waiting
            fallback = f"{key}.{index}" if key is not None else None
            if channel is None:
                addressed = decode_leniently(raw, _addressed)
                results.append(await _publish(call, raw, addressed, addressed.channel, fallback))
            else:
                results.append(await _publish(call, raw, decode_leniently(raw, _event), channel, fallback))
        except ServiceError as error:
            results.append(_refused(error))
            waiting = error if error.retryable else None
    return Results(results=results)


def _refused(error: ServiceError) -> Refused:
    return Refused(
        error=Refusal(
            code=error.code.code, message=error.message, details=dict(error.details), retryable=error.retryable
        )
    )


async def _publish(call: Call, raw: bytes | Raw, event: NewEvent, channel: str, fallback_id: str | None) -> Published:
    _check(call, event)
    check_text(raw)  # after its size
    receipt = await call.node.publisher.publish(
        call.identity,
        channel=channel,
        type=event.type,
        data=event.data,
        id=event.id if event.id is not None else fallback_id,
        key=event.key,
        sender=event.sender,
        subscribed=False,
    )
    return _published(receipt)


def _check(call: Call, event: NewEvent) -> None:
    if event.sender is not None and not is_user(event.sender):
        raise ServiceError(
            ErrorCode.INVALID_MESSAGE,
            f"a user is 1 to {MAX_USER} printable characters without spaces around them",
            path="$.from",
        )
    limit = call.node.bounds.limits.message_bytes
    if len(bytes(event.data)) > limit:  # an outbox could not take it: every subscriber would count as slow
        call.node.runtime.metrics.limits.limit_hits.labels(limit="message_bytes").inc()
        raise ServiceError(ErrorCode.TOO_BIG, f"data has at most {limit} bytes", path="$.data", limit=limit)


def _published(receipt: PublishResult) -> Published:
    return Published(
        id=receipt.id,
        epoch=receipt.epoch or UNSET,
        offset=receipt.offset if receipt.offset is not None else UNSET,
        rev=receipt.state_version if receipt.state_version is not None else UNSET,
        duplicate=receipt.duplicate,
    )
