"""The operations of the backend API (docs/http-api.md)."""

from __future__ import annotations

from functools import cache, lru_cache

import msgspec
from aiohttp import web
from msgspec import UNSET

from service.contract import pointer
from service.contract.export import asyncapi
from service.contract.model import ChannelSpec, Contract
from service.core.identity import Grant, Identity, Right
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.realtime.cluster import messages as cluster
from service.realtime.cluster.revocations import MAX_AHEAD
from service.realtime.remover import MAX_SEARCHED
from service.realtime.streams.history_reader import encode_page
from service.web.api import openapi, publish, webhooks
from service.web.api.call import Call, check_address_rate
from service.web.api.messages import (
    MAX_REASON_BYTES,
    AddressedEvent,
    AsyncApi,
    ChannelCount,
    ChannelList,
    ChannelsQuery,
    ChannelView,
    CountPresence,
    DeadLettersQuery,
    Declared,
    DeclaredEvent,
    Disconnect,
    Disconnected,
    DropWebhooks,
    EntriesQuery,
    EraseQuery,
    EventRemoved,
    Events,
    History,
    HistoryQuery,
    KeptEvents,
    KeptKeys,
    ListedChannel,
    NewEvent,
    NoQuery,
    Presence,
    PresenceCounts,
    Published,
    Purged,
    RemoveQuery,
    ReplayWebhooks,
    Results,
    RevokeToken,
    RevokeUser,
    State,
    StateQuery,
    Subscribe,
    Subscribed,
    TokenRevoked,
    Unsubscribe,
    Unsubscribed,
    UserErased,
    UserRevoked,
    WebhookDeadLetters,
    WebhookEntries,
    WebhookList,
    WebhooksDropped,
    WebhooksReplayed,
)
from service.web.api.operation import CHANNEL_REFUSALS, Operation
from service.web.body import decode

_count_presence_decoder = msgspec.json.Decoder(CountPresence)
_disconnect_decoder = msgspec.json.Decoder(Disconnect)
_revoke_user_decoder = msgspec.json.Decoder(RevokeUser)
_revoke_token_decoder = msgspec.json.Decoder(RevokeToken)
_subscribe_decoder = msgspec.json.Decoder(Subscribe)
_unsubscribe_decoder = msgspec.json.Decoder(Unsubscribe)


async def list_channels(call: Call, query: ChannelsQuery) -> ChannelList:
    """Lists channels with subscribers, history or state."""
    found = await call.node.broker.list_channels(call.identity.tenant, query.prefix, query.limit + 1)
    listed = found[: query.limit]
    aggregate = await call.node.cluster.requests.send(
        cluster.CountSubscribers(tenant=call.identity.tenant, channels=[info.name for info in listed])
    )
    views = [
        ListedChannel(
            channel=info.name,
            epoch=info.position.epoch,
            offset=info.position.offset,
            last=_last_id(info.position),
            subscribers=subscribers,
        )
        for info, subscribers in zip(listed, aggregate.counts, strict=True)
    ]
    return ChannelList(channels=views, more=len(found) > query.limit, complete=aggregate.is_complete)


async def show_channel(call: Call, query: NoQuery) -> ChannelView:
    """Shows one channel, even if nothing has happened in it."""
    channel, (spec, _) = call.channel()
    snapshot = await call.node.broker.snapshot(call.channel_key(channel), None, 0, 0)
    aggregate = await call.node.cluster.requests.send(
        cluster.CountSubscribers(tenant=call.identity.tenant, channels=[channel])
    )
    return ChannelView(
        channel=channel,
        epoch=snapshot.position.epoch,
        offset=snapshot.position.offset,
        last=_last_id(snapshot.position),
        subscribers=aggregate.counts[0],
        complete=aggregate.is_complete,
        contract=_declare(spec),
    )


async def read_history(call: Call, query: HistoryQuery) -> History:
    """Reads a page of at most outbox.recovery_bytes; `more` tells whether another page follows."""
    channel, resolved = call.channel(Right.HISTORY)
    after = query.after if query.after is not UNSET else None
    before = query.before if query.before is not UNSET else None
    part = await call.node.streams.history.read(call.channel_key(channel), resolved.spec, after, before, query.limit)
    return History(
        channel=channel,
        epoch=part.position.epoch,
        offset=part.position.offset,
        last=_last_id(part.position),
        events=part.events,
        more=part.has_more,
        older=part.older if part.older is not None else UNSET,
        newer=part.newer if part.newer is not None else UNSET,
    )


async def read_state(call: Call, query: StateQuery) -> State:
    """Reads a page ordered by state version. A value that changes meanwhile moves to a later page, so none is missed."""
    channel, _ = call.channel()
    snapshot = await call.node.broker.snapshot(call.channel_key(channel), None, 0, 0)
    after = query.after if query.after is not UNSET else 0
    remaining = [event for event in snapshot.state if (event.state_version or 0) > after]
    state = encode_page(remaining[: query.limit], call.node.bounds.outbox.recovery_bytes, newest_first=False)
    return State(
        channel=channel,
        epoch=snapshot.position.epoch,
        offset=snapshot.position.offset,
        last=_last_id(snapshot.position),
        state=state,
        more=len(state) < len(remaining),
    )


async def read_presence(call: Call, query: NoQuery) -> Presence:
    """Lists the members; in a large channel only their number."""
    channel, _ = call.channel(Right.PRESENCE)
    return Presence(channel=channel, presence=await call.node.streams.presence.view(call.channel_key(channel)))


async def count_presence(call: Call, query: NoQuery) -> PresenceCounts:
    """Counts the users of many channels, in one read of the store."""
    channels = decode(await call.body(), _count_presence_decoder).channels
    for index, channel in enumerate(channels):
        try:
            call.node.gate.authorise(call.identity, channel, Right.PRESENCE)
        except ServiceError as error:
            raise ServiceError(error.code, error.message, path=f"$.channels[{index}]") from error
    call.charge_read(len(channels))
    counts = await call.node.streams.presence.counts([call.channel_key(channel) for channel in channels])
    return PresenceCounts(
        counts=[ChannelCount(channel=channel, count=count) for channel, count in zip(channels, counts, strict=True)]
    )


async def remove_event(call: Call, query: RemoveQuery) -> EventRemoved:
    """Takes back one event, and tells subscribers."""
    channel, _ = call.channel()
    id = call.event_id()
    offset = query.offset if query.offset is not UNSET else None
    call.log_command("remove_event", channel=channel, id=id)
    removal = await call.node.remover.remove(call.identity, channel, id, offset)
    call.charge_read(removal.searched)
    if (event := removal.event) is None:
        hint = "" if offset is not None else f"; without `offset`, the newest {MAX_SEARCHED} events are searched"
        raise ServiceError(ErrorCode.NOT_FOUND, f"the channel keeps no such event{hint}", parameter="id")
    return EventRemoved(
        channel=channel,
        id=event.id,
        epoch=event.epoch,
        offset=event.offset if event.offset is not None else UNSET,
        rev=event.state_version if event.state_version is not None else UNSET,
    )


async def purge_channel(call: Call, query: NoQuery) -> Purged:
    """Drops a channel's history and state, under a new epoch."""
    channel, _ = call.channel()
    call.log_command("purge_channel", channel=channel)
    position = await call.node.remover.purge(call.identity, channel)
    if position is None:
        return Purged(channel=channel, offset=0)
    return Purged(channel=channel, epoch=position.epoch, offset=position.offset)


async def erase_user(call: Call, query: EraseQuery) -> UserErased:
    """Takes back a part of what a user has published."""
    user = call.user()
    cursor = query.cursor if query.cursor is not UNSET else None
    if cursor is None:
        call.log_command("erase_user", user=user)
    page = await call.node.remover.erase(call.identity, user, cursor)
    call.charge_read(page.examined)
    return UserErased(
        removed=page.events, channels=page.channels, cursor=page.cursor if page.cursor is not None else UNSET
    )


async def disconnect(call: Call, query: NoQuery) -> Disconnected:
    """Closes the user's connections with 4403."""
    user = call.user()
    body = await call.body()
    reason = _check_reason(decode(body, _disconnect_decoder).reason if body else "")
    call.log_command("disconnect", user=user)
    aggregate = await call.node.cluster.requests.send(
        cluster.Disconnect(tenant=call.identity.tenant, user=user, reason=reason or "disconnected by the backend")
    )
    return Disconnected(connections=aggregate.counts[0], nodes=aggregate.nodes, complete=aggregate.is_complete)


async def subscribe(call: Call, query: NoQuery) -> Subscribed:
    """Subscribes the user's connections to one channel."""
    user = call.user()
    body = decode(await call.body(), _subscribe_decoder)
    tenant, channel = call.identity.tenant, body.channel
    # A grant does not help where the contract asks for something else, such as the owner.
    granted = Identity(tenant, user, (Grant(channel, frozenset(body.rights)),))
    call.node.gate.authorise(call.identity, channel, Right.SUBSCRIBE)
    call.node.gate.authorise(granted, channel, Right.SUBSCRIBE)
    call.log_command("subscribe", user=user, channel=channel)
    aggregate = await call.node.cluster.requests.send(
        cluster.Subscribe(
            tenant=tenant,
            user=user,
            channel=channel,
            rights=sorted(right.value for right in body.rights),
            at=call.node.cluster.clock.wall(),
        )
    )
    return Subscribed(subscriptions=aggregate.counts[0], nodes=aggregate.nodes, complete=aggregate.is_complete)


async def unsubscribe(call: Call, query: NoQuery) -> Unsubscribed:
    """Ends the user's subscriptions to one channel."""
    user = call.user()
    channel = decode(await call.body(), _unsubscribe_decoder).channel
    call.node.gate.authorise(call.identity, channel, Right.SUBSCRIBE)
    call.log_command("unsubscribe", user=user, channel=channel)
    aggregate = await call.node.cluster.requests.send(
        cluster.Unsubscribe(tenant=call.identity.tenant, user=user, channel=channel)
    )
    return Unsubscribed(subscriptions=aggregate.counts[0], nodes=aggregate.nodes, complete=aggregate.is_complete)


async def revoke_user(call: Call, query: NoQuery) -> UserRevoked:
    """Revokes the user's tokens, and closes the connections that use them with 4401."""
    user = call.user()
    body = await call.body()
    revoke = decode(body, _revoke_user_decoder) if body else RevokeUser()
    now = call.node.cluster.clock.wall()
    before = revoke.before if revoke.before is not UNSET else now
    if before > now + MAX_AHEAD:  # it would refuse tokens that are not issued yet
        raise ServiceError(ErrorCode.INVALID_MESSAGE, "before is in the future", path="$.before")
    call.log_command("revoke_user", user=user)
    revocation = await call.node.cluster.revocations.revoke_user(
        call.identity.tenant, user, before, _check_reason(revoke.reason)
    )
    return UserRevoked(before=revocation.before or 0.0, until=revocation.until)


async def revoke_token(call: Call, query: NoQuery) -> TokenRevoked:
    """Revokes one token, and closes the connections that use it with 4401."""
    revoke = decode(await call.body(), _revoke_token_decoder)
    call.log_command("revoke_token")
    revocation = await call.node.cluster.revocations.revoke_token(
        call.identity.tenant, revoke.jti, _check_reason(revoke.reason)
    )
    return TokenRevoked(until=revocation.until)


async def describe_contract(call: Call, query: NoQuery) -> AsyncApi:
    """Returns the contract as an AsyncAPI document."""
    return _describe_contract(call.node.gate.authorise_description(call.identity))


@lru_cache(maxsize=1)
def _describe_contract(contract: Contract) -> AsyncApi:
    """Made at the first request: a node has one contract, which does not change."""
    return msgspec.convert(asyncapi.describe(contract), AsyncApi)


def _check_reason(reason: str) -> str:
    if len(reason.encode()) > MAX_REASON_BYTES:
        raise ServiceError(ErrorCode.INVALID_MESSAGE, f"a reason has at most {MAX_REASON_BYTES} bytes", path="$.reason")
    return reason


def _last_id(position: Position) -> str | msgspec.UnsetType:
    return position.id if position.id is not None else UNSET


def _declare(spec: ChannelSpec) -> Declared:
    history = spec.history
    return Declared(
        pattern=spec.pattern.text,
        subscribe=spec.subscribe,
        presence=spec.presence,
        presence_update=spec.presence_update.publish if spec.presence_update is not None else UNSET,
        history=KeptEvents(events=history.entries, ttl=history.ttl, cacheable=spec.is_cacheable or UNSET)
        if history is not None
        else UNSET,
        state=KeptKeys(keys=spec.state.entries, ttl=spec.state.ttl),
        events={
            event.type: DeclaredEvent(
                publish=event.publish,
                delivery=event.delivery,
                key=pointer.text_of(event.key) if event.key is not None else UNSET,
                window=event.window or UNSET,
                ttl=event.ttl / 1000 if event.ttl is not None else UNSET,
                removable=event.removable or UNSET,
            )
            for event in spec.events.values()
        },
    )


_CHANNEL = "/api/v1/channels/{channel}"
_USER = "/api/v1/users/{user}"
_WEBHOOK = "/api/v1/webhooks/{endpoint}"

OPERATIONS = (
    Operation(
        name="publishToChannel",
        method="POST",
        path=f"{_CHANNEL}/events",
        summary="Publishes one event (an object) or several (an array) in a channel",
        handle=publish.publish_to_channel,
        replies=(Published, Results),
        body=NewEvent | Events[NewEvent],
        idempotent=True,
        refusals=(
            *CHANNEL_REFUSALS,
            ErrorCode.UNKNOWN_EVENT,
            ErrorCode.FORBIDDEN,
            ErrorCode.INVALID_DATA,
            ErrorCode.INVALID_KEY,
            ErrorCode.CONFLICT,
        ),
    ),
    Operation(
        name="publish",
        method="POST",
        path="/api/v1/events",
        summary="Publishes several events, each in the channel that it names",
        handle=publish.publish_to_channels,
        replies=(Results,),
        body=Events[AddressedEvent],
        idempotent=True,
    ),
    Operation(
        name="listChannels",
        method="GET",
        path="/api/v1/channels",
        summary="Lists channels with subscribers, history or state, by name",
        handle=list_channels,
        replies=(ChannelList,),
        query=ChannelsQuery,
    ),
    Operation(
        name="getChannel",
        method="GET",
        path=_CHANNEL,
        summary="Shows a channel's position, subscribers and contract",
        handle=show_channel,
        replies=(ChannelView,),
        refusals=CHANNEL_REFUSALS,
    ),
    Operation(
        name="getHistory",
        method="GET",
        path=f"{_CHANNEL}/history",
        summary="Reads a page of a channel's durable events",
        handle=read_history,
        replies=(History,),
        query=HistoryQuery,
        refusals=(*CHANNEL_REFUSALS, ErrorCode.NO_HISTORY),
    ),
    Operation(
        name="removeEvent",
        method="DELETE",
        path=f"{_CHANNEL}/events/{{id}}",
        summary="Takes back one durable event, or the value of a key, and tells subscribers",
        handle=remove_event,
        replies=(EventRemoved,),
        query=RemoveQuery,
        refusals=CHANNEL_REFUSALS,
    ),
    Operation(
        name="purgeChannel",
        method="DELETE",
        path=f"{_CHANNEL}/history",
        summary="Drops a channel's history and state, and begins a new epoch",
        handle=purge_channel,
        replies=(Purged,),
        refusals=CHANNEL_REFUSALS,
    ),
    Operation(
        name="getState",
        method="GET",
        path=f"{_CHANNEL}/state",
        summary="Reads the newest event of every key",
        handle=read_state,
        replies=(State,),
        query=StateQuery,
        refusals=CHANNEL_REFUSALS,
    ),
    Operation(
        name="getPresence",
        method="GET",
        path=f"{_CHANNEL}/presence",
        summary="Lists who is in a channel",
        handle=read_presence,
        replies=(Presence,),
        refusals=(*CHANNEL_REFUSALS, ErrorCode.NO_PRESENCE),
    ),
    Operation(
        name="countPresence",
        method="POST",
        path="/api/v1/presence/counts",
        summary="Counts the users of many channels",
        handle=count_presence,
        replies=(PresenceCounts,),
        body=CountPresence,
        refusals=(ErrorCode.INVALID_CHANNEL, ErrorCode.UNKNOWN_CHANNEL, ErrorCode.NO_PRESENCE),
    ),
    Operation(
        name="disconnectUser",
        method="POST",
        path=f"{_USER}/disconnect",
        summary="Closes a user's connections with 4403",
        handle=disconnect,
        replies=(Disconnected,),
        body=Disconnect,
        body_required=False,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="eraseUser",
        method="DELETE",
        path=_USER,
        summary="Takes back what a user has published in all channels, page by page",
        handle=erase_user,
        replies=(UserErased,),
        query=EraseQuery,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="subscribeUser",
        method="POST",
        path=f"{_USER}/subscribe",
        summary="Subscribes a user's connections to a channel",
        handle=subscribe,
        replies=(Subscribed,),
        body=Subscribe,
        refusals=(*CHANNEL_REFUSALS, ErrorCode.FORBIDDEN),
    ),
    Operation(
        name="unsubscribeUser",
        method="POST",
        path=f"{_USER}/unsubscribe",
        summary="Ends a user's subscriptions to a channel",
        handle=unsubscribe,
        replies=(Unsubscribed,),
        body=Unsubscribe,
        refusals=CHANNEL_REFUSALS,
    ),
    Operation(
        name="revokeUser",
        method="POST",
        path=f"{_USER}/revoke",
        summary="Revokes a user's tokens, and closes the connections that use them with 4401",
        handle=revoke_user,
        replies=(UserRevoked,),
        body=RevokeUser,
        body_required=False,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="revokeToken",
        method="POST",
        path="/api/v1/tokens/revoke",
        summary="Revokes one token by its `jti`, and closes the connections that use it with 4401",
        handle=revoke_token,
        replies=(TokenRevoked,),
        body=RevokeToken,
    ),
    Operation(
        name="listWebhooks",
        method="GET",
        path="/api/v1/webhooks",
        summary="Lists the endpoints of webhooks, with the status of their queues",
        handle=webhooks.list_webhooks,
        replies=(WebhookList,),
    ),
    Operation(
        name="getWebhookEntries",
        method="GET",
        path=f"{_WEBHOOK}/entries",
        summary="Reads a page of what a webhook's endpoint is told, delivered or not",
        handle=webhooks.read_entries,
        replies=(WebhookEntries,),
        query=EntriesQuery,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="getWebhookDeadLetters",
        method="GET",
        path=f"{_WEBHOOK}/dead-letters",
        summary="Reads a page of the entries that a webhook's endpoint did not accept",
        handle=webhooks.list_dead_letters,
        replies=(WebhookDeadLetters,),
        query=DeadLettersQuery,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="replayWebhooks",
        method="POST",
        path=f"{_WEBHOOK}/replay",
        summary="Tells a webhook's endpoint entries again, with the same ids",
        handle=webhooks.replay,
        replies=(WebhooksReplayed,),
        body=ReplayWebhooks,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="dropWebhooks",
        method="POST",
        path=f"{_WEBHOOK}/drop",
        summary="Drops dead letters of a webhook's endpoint",
        handle=webhooks.drop,
        replies=(WebhooksDropped,),
        body=DropWebhooks,
        refusals=(ErrorCode.NOT_FOUND,),
    ),
    Operation(
        name="getContract",
        method="GET",
        path="/api/v1/asyncapi.json",
        summary="Returns the contract as an AsyncAPI 3.0 document",
        handle=describe_contract,
        replies=(AsyncApi,),
        refusals=(ErrorCode.FORBIDDEN,),
    ),
)


def routes() -> list[web.RouteDef]:
    """The API's routes, for an application with NODE, HTTP_CONFIG and the problem middleware."""
    return [*(operation.route() for operation in OPERATIONS), web.get(openapi.PATH, _describe)]


async def _describe(request: web.Request) -> web.Response:
    check_address_rate(request)
    return web.Response(body=_description(), content_type="application/json")


@cache
def _description() -> bytes:
    """The OpenAPI document. Made at the first request, because it takes as long as the rest of a node's start."""
    return msgspec.json.encode(openapi.describe(OPERATIONS))
