"""Operations on webhooks: what endpoints wait for, what they were told, and what they did not accept (docs/webhooks.md)."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw

from service.core.webhooks import Cursor, Entry, QueueStatus, Webhooks, encode_entry
from service.errors import ErrorCode, ServiceError
from service.web.api.call import Call
from service.web.api.messages import (
    DeadLettersQuery,
    DropWebhooks,
    EntriesQuery,
    NoQuery,
    ReplayWebhooks,
    WebhookDeadLetter,
    WebhookDeadLetters,
    WebhookEntries,
    WebhookList,
    WebhookQueue,
    WebhooksDropped,
    WebhooksReplayed,
    WebhookStatus,
)
from service.web.body import decode

_replay_decoder = msgspec.json.Decoder(ReplayWebhooks)
_drop_decoder = msgspec.json.Decoder(DropWebhooks)


async def list_webhooks(call: Call, query: NoQuery) -> WebhookList:
    """Lists the endpoints of the tenant, with the status of their queues."""
    tenant, webhooks = call.identity.tenant, call.node.webhooks
    found = [] if webhooks is None else webhooks.endpoints(tenant)
    return WebhookList(
        tenant=tenant,
        at=int(call.node.cluster.clock.wall() * 1000),
        endpoints=[
            WebhookStatus(
                endpoint=endpoint.name,
                sends=endpoint.sends,
                queues=[_show_queue(status) for status in await webhooks.status(endpoint.name, tenant)],
            )
            for endpoint in found
            if webhooks is not None
        ],
    )


async def read_entries(call: Call, query: EntriesQuery) -> WebhookEntries:
    """Reads entries of one queue, delivered or not. Changes nothing."""
    endpoint, webhooks = _endpoint(call)
    after = None
    if query.after is not UNSET:
        try:
            after = Cursor.parse(query.after)
        except ValueError as error:
            message = "a cursor is `next` of the page before"
            raise ServiceError(ErrorCode.INVALID_REQUEST, message, parameter="after") from error
    since = query.since if query.since is not UNSET else None
    try:
        page = await webhooks.read(endpoint, call.identity.tenant, query.queue, after, query.limit, since)
    except ServiceError as error:
        if error.code is ErrorCode.NOT_FOUND:
            raise ServiceError(error.code, error.message, parameter="queue") from error
        raise
    call.charge_read(len(page.entries))
    return WebhookEntries(
        endpoint=endpoint,
        queue=query.queue,
        entries=[_encode(entry) for entry in page.entries],
        next=str(page.next),
        more=page.has_more,
    )


async def list_dead_letters(call: Call, query: DeadLettersQuery) -> WebhookDeadLetters:
    """Reads a page of the entries that an endpoint did not accept, oldest first."""
    endpoint, webhooks = _endpoint(call)
    after = query.after if query.after is not UNSET else None
    page = await webhooks.dead_letters(endpoint, call.identity.tenant, after, query.limit)
    call.charge_read(len(page.letters))
    return WebhookDeadLetters(
        endpoint=endpoint,
        dead_letters=[
            WebhookDeadLetter(entry=_encode(letter.entry), queue=letter.queue, reason=letter.reason, at=letter.at)
            for letter in page.letters
        ],
        next=page.next if page.next is not None else UNSET,
    )


async def replay(call: Call, query: NoQuery) -> WebhooksReplayed:
    """Appends entries to their queues again, with the same ids."""
    endpoint, webhooks = _endpoint(call)
    body = decode(await call.body(), _replay_decoder)
    if (body.ids is not UNSET) + (body.since is not UNSET) + (body.dead_letters is not UNSET) != 1:
        raise ServiceError(ErrorCode.INVALID_MESSAGE, "needs one of ids, since and dead_letters", path="$")
    call.log_command("replay_webhooks", endpoint=endpoint)
    replayed = await webhooks.replay(
        endpoint,
        call.identity.tenant,
        ids=body.ids if body.ids is not UNSET else (),
        since=body.since if body.since is not UNSET else None,
        dead_letters=body.dead_letters is not UNSET,
    )
    call.charge_read(replayed)
    return WebhooksReplayed(endpoint=endpoint, replayed=replayed)


async def drop(call: Call, query: NoQuery) -> WebhooksDropped:
    """Drops dead letters."""
    endpoint, webhooks = _endpoint(call)
    body = decode(await call.body(), _drop_decoder)
    if (body.ids is not UNSET) + (body.dead_letters is not UNSET) != 1:
        raise ServiceError(ErrorCode.INVALID_MESSAGE, "needs one of ids and dead_letters", path="$")
    call.log_command("drop_webhooks", endpoint=endpoint)
    dropped = await webhooks.drop(
        endpoint,
        call.identity.tenant,
        ids=body.ids if body.ids is not UNSET else (),
        dead_letters=body.dead_letters is not UNSET,
    )
    call.charge_read(dropped)
    return WebhooksDropped(endpoint=endpoint, dropped=dropped)


def _endpoint(call: Call) -> tuple[str, Webhooks]:
    """The path's endpoint, and what serves it. Raises ServiceError(NOT_FOUND) if the tenant has none of this name."""
    name, webhooks = call.path_parameter("endpoint"), call.node.webhooks
    if webhooks is None or all(endpoint.name != name for endpoint in webhooks.endpoints(call.identity.tenant)):
        message = "webhooks.endpoints has no endpoint of this name for the tenant"
        raise ServiceError(ErrorCode.NOT_FOUND, message, parameter="endpoint")
    return name, webhooks


def _encode(entry: Entry) -> Raw:
    return Raw(encode_entry(entry))


def _show_queue(status: QueueStatus) -> WebhookQueue:
    return WebhookQueue(
        queue=status.queue,
        waiting=status.waiting,
        oldest_at=status.oldest_at if status.oldest_at is not None else UNSET,
        owner=status.owner if status.owner is not None else UNSET,
        failure=status.failure if status.failure is not None else UNSET,
    )
