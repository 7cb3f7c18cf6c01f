"""Every operation of the backend API as a call, or as a flow of several calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET

from tidewire.errors import ConfigurationError, TidewireError, api_error
from tidewire.events import MAX_EVENT_BATCH, NewEvent, new_id
from tidewire.http.flow import Call, Credential, Deadline, Flow, RetryPolicy, Wait, attempts
from tidewire.names import path_segment
from tidewire.results import (
    BatchResult,
    ChannelInfo,
    ChannelList,
    Disconnected,
    Erased,
    ErasedPage,
    EventRemoved,
    History,
    HistoryPage,
    Presence,
    Published,
    Purged,
    Refused,
    State,
    Subscriptions,
    Ticket,
    TokenRevoked,
    UserRevoked,
    WebhookDeadLetters,
    WebhookEntries,
    WebhookList,
)

MAX_BATCH_BYTES = 1_000_000
"""Bytes of the events in one request; the service takes 1 MiB."""

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


def encode(value: Any, what: str = "data") -> bytes:
    """Encodes JSON. Raises ConfigurationError for what JSON cannot say."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise ConfigurationError(f"{what} cannot be encoded as JSON: {error}") from error


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return msgspec.json.Decoder(kind).decode


def _query(**fields: Any) -> str:
    given = {name: value for name, value in fields.items() if value is not None}
    return f"?{urlencode(given)}" if given else ""


def _channel(channel: str) -> str:
    if not channel:
        raise ConfigurationError("a channel has a name")
    return f"/api/v1/channels/{path_segment(channel)}"


def _user(user: str) -> str:
    if not user:
        raise ConfigurationError("a user has a name")
    return f"/api/v1/users/{path_segment(user)}"


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


# --- publishing -------------------------------------------------------------------------------------------------------

_published = _reader(Published)


def publish(
    channel: str,
    type: str,
    data: Any,
    *,
    id: str | None = None,
    key: str | None = None,
    if_rev: int | None = None,
    sender: str | None = None,
    exclude: str | None = None,
) -> Call[Published]:
    """Publishes one event."""
    fields = _given(key=key, if_rev=if_rev, exclude=exclude, **{"from": sender})
    event_id = id or new_id()
    event = {"type": type, "id": event_id, "data": data, **fields}
    return Call("POST", f"{_channel(channel)}/events", _published, encode(event), event_id=event_id)


def remove_value(
    channel: str,
    type: str,
    key: str,
    *,
    id: str | None = None,
    if_rev: int | None = None,
    sender: str | None = None,
) -> Call[Published]:
    """Removes the value of a key."""
    event_id = id or new_id()
    fields = _given(if_rev=if_rev, **{"from": sender})
    event = {"type": type, "id": event_id, "key": key, "removed": True, **fields}
    return Call("POST", f"{_channel(channel)}/events", _published, encode(event), event_id=event_id)


class _Refusal(msgspec.Struct):
    code: str
    message: str
    retryable: bool = False
    details: dict[str, Any] = {}


class _Result(msgspec.Struct):
    id: str | msgspec.UnsetType = UNSET
    duplicate: bool = False
    epoch: str | None = None
    offset: int | None = None
    rev: int | None = None
    error: _Refusal | msgspec.UnsetType = UNSET


class _Results(msgspec.Struct):
    results: list[_Result]


def publish_many(events: Iterable[NewEvent], policy: RetryPolicy, deadline: Deadline) -> Flow[BatchResult]:
    """Publishes events in order, in as few requests as their size allows.

    From the first event with a retryable refusal on, the rest is sent again, so the order stays. Raises the error if not a single
    event has a result; else the events without one have that error.
    """
    waiting = list(events)
    results: list[Published | Refused] = []
    tries = 0
    while waiting:
        chunk = _chunk(waiting)
        try:
            found = yield from attempts(_publish_chunk(chunk), policy, deadline)
        except TidewireError as error:
            if not results:
                raise
            return BatchResult([*results, *(Refused(event.id, error) for event in waiting)])
        done = next((n for n, one in enumerate(found) if isinstance(one, Refused) and one.error.retryable), len(found))
        tries = tries + 1 if done == 0 else 0
        stuck = found[done] if done < len(found) else None
        results += found[:done]
        waiting = waiting[done:]
        if not isinstance(stuck, Refused):
            continue
        wait = policy.wait(tries, stuck.error.retry_after)
        if tries + 1 >= policy.max_attempts or wait >= deadline.left:
            return BatchResult([*results, *(Refused(event.id, stuck.error) for event in waiting)])
        yield Wait(wait)
    return BatchResult(results)


def _chunk(events: Sequence[NewEvent]) -> list[tuple[str, bytes]]:
    chunk: list[tuple[str, bytes]] = []
    size = 2
    for event in events[:MAX_EVENT_BATCH]:
        text = encode(event, f"the data of the event {event.id}")
        size += len(text) + 1
        if chunk and size > MAX_BATCH_BYTES:
            break
        chunk.append((event.id, text))
    return chunk


def _publish_chunk(chunk: Sequence[tuple[str, bytes]]) -> Call[list[Published | Refused]]:
    decoder = msgspec.json.Decoder(_Results)

    def parse(body: bytes) -> list[Published | Refused]:
        results = decoder.decode(body).results
        if len(results) != len(chunk):
            raise ValueError(f"{len(results)} results for {len(chunk)} events")
        return [_to_result(id, one) for (id, _), one in zip(chunk, results, strict=True)]

    return Call("POST", "/api/v1/events", parse, b"[%s]" % b",".join(text for _, text in chunk))


def _to_result(id: str, one: _Result) -> Published | Refused:
    if one.error is UNSET:
        return Published(
            id if one.id is UNSET else one.id,
            duplicate=one.duplicate,
            epoch=one.epoch,
            offset=one.offset,
            rev=one.rev,
        )
    refusal = one.error
    error = api_error(refusal.code, refusal.message, retryable=refusal.retryable, details=refusal.details, event_id=id)
    return Refused(id, error)


# --- reading ----------------------------------------------------------------------------------------------------------


def channels(prefix: str = "", *, limit: int = 100) -> Call[ChannelList]:
    """Lists channels with subscribers, history or state."""
    return Call("GET", f"/api/v1/channels{_query(prefix=prefix or None, limit=limit)}", _reader(ChannelList))


def channel_info(channel: str) -> Call[ChannelInfo]:
    """Shows one channel."""
    return Call("GET", _channel(channel), _reader(ChannelInfo))


def history(channel: str, *, after: int | None = None, before: int | None = None, limit: int = 50) -> Call[History]:
    """Reads a page of durable events."""
    query = _query(after=after, before=before, limit=limit)
    return Call("GET", f"{_channel(channel)}/history{query}", _reader(History))


def history_page(address: str) -> Call[HistoryPage]:
    """Reads a page that caches may keep."""
    if not address.startswith("/history/"):
        raise ConfigurationError("a page's address is `older` or `newer` of a history")
    return Call("GET", address, _reader(HistoryPage), credential=Credential.NONE)


def state(channel: str, *, after: int | None = None, limit: int = 1000) -> Call[State]:
    """Reads the newest event of every key."""
    return Call("GET", f"{_channel(channel)}/state{_query(after=after, limit=limit)}", _reader(State))


class _PresenceReply(msgspec.Struct):
    presence: Presence


class _Count(msgspec.Struct):
    channel: str
    count: int


class _Counts(msgspec.Struct):
    counts: list[_Count]


def presence(channel: str) -> Call[Presence]:
    """Lists who is in the channel."""
    decoder = msgspec.json.Decoder(_PresenceReply)
    return Call("GET", f"{_channel(channel)}/presence", lambda body: decoder.decode(body).presence)


def presence_counts(names: Sequence[str]) -> Call[dict[str, int]]:
    """Counts the users of up to 1000 channels."""
    if isinstance(names, str):
        raise ConfigurationError("channels is a list of names")
    decoder = msgspec.json.Decoder(_Counts)
    return Call(
        "POST",
        "/api/v1/presence/counts",
        lambda body: {one.channel: one.count for one in decoder.decode(body).counts},
        encode({"channels": list(names)}),
    )


def asyncapi() -> Call[dict[str, Any]]:
    """Returns the contract as an AsyncAPI document."""
    return Call("GET", "/api/v1/asyncapi.json", _reader(dict[str, Any]))


def openapi() -> Call[dict[str, Any]]:
    """Returns the description of the backend API."""
    return Call("GET", "/api/v1/openapi.json", _reader(dict[str, Any]), credential=Credential.NONE)


# --- taking back ------------------------------------------------------------------------------------------------------


def remove_event(channel: str, id: str, *, offset: int | None = None) -> Call[EventRemoved]:
    """Takes back one durable event, or the value that it has set."""
    path = f"{_channel(channel)}/events/{path_segment(id)}{_query(offset=offset)}"
    return Call("DELETE", path, _reader(EventRemoved))


def purge(channel: str) -> Call[Purged]:
    """Drops a channel's history and state."""
    return Call("DELETE", f"{_channel(channel)}/history", _reader(Purged))


def erase_user(user: str, policy: RetryPolicy, deadline: Deadline, cursor: str | None = None) -> Flow[Erased]:
    """Takes back what a user has published, page by page. The error of an interrupted erasure has `details["cursor"]`."""
    decode = _reader(ErasedPage)
    removed = examined = 0
    while True:
        call = Call("DELETE", f"{_user(user)}{_query(cursor=cursor)}", decode)
        # A page is one request: each has the whole time.
        try:
            page = yield from attempts(call, policy, Deadline(deadline.seconds, deadline.now))
        except TidewireError as error:
            if cursor is not None:
                error.details = {**error.details, "cursor": cursor}
            raise
        removed, examined = removed + page.removed, examined + page.channels
        if page.cursor is None:
            return Erased(removed, examined)
        cursor = page.cursor


# --- users ------------------------------------------------------------------------------------------------------------


def disconnect_user(user: str, *, reason: str | None = None) -> Call[Disconnected]:
    """Closes the user's connections."""
    return Call("POST", f"{_user(user)}/disconnect", _reader(Disconnected), encode(_given(reason=reason)))


def subscribe_user(user: str, channel: str, *, rights: Sequence[str] | None = None) -> Call[Subscriptions]:
    """Subscribes the user's open connections to a channel."""
    body = _given(channel=channel, rights=None if rights is None else list(rights))
    return Call("POST", f"{_user(user)}/subscribe", _reader(Subscriptions), encode(body))


def unsubscribe_user(user: str, channel: str) -> Call[Subscriptions]:
    """Ends the user's subscriptions to a channel."""
    return Call("POST", f"{_user(user)}/unsubscribe", _reader(Subscriptions), encode({"channel": channel}))


def revoke_user(user: str, *, before: float | None = None, reason: str | None = None) -> Call[UserRevoked]:
    """Revokes the user's tokens."""
    return Call("POST", f"{_user(user)}/revoke", _reader(UserRevoked), encode(_given(before=before, reason=reason)))


def revoke_token(jti: str, *, reason: str | None = None) -> Call[TokenRevoked]:
    """Revokes one token."""
    return Call("POST", "/api/v1/tokens/revoke", _reader(TokenRevoked), encode(_given(jti=jti, reason=reason)))


def ticket(channels: Sequence[str] | None = None) -> Call[Ticket]:
    """Gets a ticket for an address: of a WebSocket, or with channels of a stream."""
    body: Mapping[str, Any] | None = None if channels is None else {"channels": list(channels)}
    return Call(
        "POST",
        "/tickets",
        _reader(Ticket),
        None if body is None else encode(body),
        credential=Credential.TOKEN,
    )


# --- webhooks ---------------------------------------------------------------------------------------------------------


def _webhook(endpoint: str) -> str:
    if not endpoint:
        raise ConfigurationError("an endpoint has a name")
    return f"/api/v1/webhooks/{path_segment(endpoint)}"


def _ids(ids: Sequence[str] | None) -> list[str] | None:
    if isinstance(ids, str):
        raise ConfigurationError("ids is a list")
    return None if ids is None else list(ids)


def webhooks() -> Call[WebhookList]:
    """Lists the endpoints of webhooks, with the status of their queues."""
    return Call("GET", "/api/v1/webhooks", _reader(WebhookList))


def webhook_entries(
    endpoint: str, queue: int = 0, *, after: str | None = None, since: int | None = None, limit: int = 100
) -> Call[WebhookEntries]:
    """Reads a page of one queue."""
    query = _query(queue=queue, after=after, since=since, limit=limit)
    return Call("GET", f"{_webhook(endpoint)}/entries{query}", _reader(WebhookEntries))


def webhook_dead_letters(endpoint: str, *, after: int | None = None, limit: int = 50) -> Call[WebhookDeadLetters]:
    """Reads a page of dead letters."""
    query = _query(after=after, limit=limit)
    return Call("GET", f"{_webhook(endpoint)}/dead-letters{query}", _reader(WebhookDeadLetters))


class _Replayed(msgspec.Struct):
    replayed: int


class _Dropped(msgspec.Struct):
    dropped: int


def replay_webhooks(
    endpoint: str, *, ids: Sequence[str] | None = None, since: int | None = None, dead_letters: bool = False
) -> Call[int]:
    """Tells an endpoint entries again."""
    body = _given(ids=_ids(ids), since=since, dead_letters=dead_letters or None)
    if len(body) != 1:
        raise ConfigurationError("replay_webhooks needs one of ids, since and dead_letters")
    decoder = msgspec.json.Decoder(_Replayed)
    return Call("POST", f"{_webhook(endpoint)}/replay", lambda text: decoder.decode(text).replayed, encode(body))


def drop_webhooks(endpoint: str, *, ids: Sequence[str] | None = None, dead_letters: bool = False) -> Call[int]:
    """Drops dead letters."""
    body = _given(ids=_ids(ids), dead_letters=dead_letters or None)
    if len(body) != 1:
        raise ConfigurationError("drop_webhooks needs one of ids and dead_letters")
    decoder = msgspec.json.Decoder(_Dropped)
    return Call("POST", f"{_webhook(endpoint)}/drop", lambda text: decoder.decode(text).dropped, encode(body))
