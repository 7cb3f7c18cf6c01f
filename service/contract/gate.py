"""The gate: checks every publish and every read against the contract and the identity's rights."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any

import msgspec
from jsonschema_rs import Draft202012Validator, ValidationError
from msgspec import Raw
from msgspec.structs import replace

from service.contract import pointer
from service.contract.document import did_you_mean
from service.contract.model import CallSpec, ChannelSpec, Contract, DataSpec, EventSpec, Resolved
from service.contract.text import shorten
from service.core.access import PublishRule, SubscribeRule, may_call, may_describe, may_publish, may_read, may_remove
from service.core.channel import OWNER_PARAMETER, ChannelKey
from service.core.event import Delivery, Publication, Retention
from service.core.hooks import Hook
from service.core.identity import Identity, Right
from service.core.presence import PRESENCE_UPDATE
from service.core.session import Subscription
from service.core.webhooks import ChannelWebhook
from service.errors import ErrorCode, ServiceError
from service.protocol import unique_keys
from service.protocol.json_path import json_path
from service.protocol.messages import MAX_KEY

MAX_ERRORS = 20
"""Faults listed in one refusal."""
MAX_VALUES_FOR_ALL_FAULTS = 200
"""For `data` with about this many values or fewer, all faults are listed; for more, only the first. 30 000 faults take a quarter
of a second."""
MAX_DEPTH = 128
"""Levels of nesting in `data`. The schema validator and the JSON parsers of clients support many more."""

_EPHEMERAL = Delivery.EPHEMERAL
_decode = msgspec.json.Decoder().decode
# Exceptions of msgspec (NaN, numbers out of range, lone surrogates), of invalid UTF-8, and of nesting deeper than the stack.
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Gate:
    """Accepts what the contract declares and the identity may do; refuses the rest with a reason."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract

    @property
    def contract_hash(self) -> str:
        """The hash of the contract (`Contract.hash`)."""
        return self._contract.hash

    def authorise(self, identity: Identity, channel: str, right: Right) -> Resolved:
        """Checks whether the identity may subscribe, read history or see presence.

        Raises ServiceError, the first that applies: INVALID_CHANNEL, UNKNOWN_CHANNEL, FORBIDDEN, NO_HISTORY (for HISTORY),
        NO_PRESENCE (for PRESENCE).
        """
        if right is Right.PUBLISH:
            raise ValueError("use validate for publishing: it depends on the event's type")
        resolved = self._contract.resolve(channel)
        spec, parameters = resolved
        if not may_read(spec.subscribe, right, identity, channel, parameters):
            raise ServiceError(ErrorCode.FORBIDDEN, _WHO_READS[spec.subscribe], path="$.channel", right=right.value)
        if right is Right.HISTORY and spec.history is None:
            raise ServiceError(ErrorCode.NO_HISTORY, f"{spec.pattern.text} keeps no history", path="$.channel")
        if right is Right.PRESENCE and not spec.presence:
            raise ServiceError(ErrorCode.NO_PRESENCE, f"{spec.pattern.text} keeps no presence", path="$.channel")
        return resolved

    def allows(self, identity: Identity, channel: str, right: Right) -> bool:
        """True if `authorise` would succeed. For commands that omit what the identity may not see.

        Raises ServiceError: INVALID_CHANNEL or UNKNOWN_CHANNEL.
        """
        spec, parameters = self._contract.resolve(channel)
        is_kept = (right is not Right.HISTORY or spec.history is not None) and (
            right is not Right.PRESENCE or spec.presence
        )
        return is_kept and may_read(spec.subscribe, right, identity, channel, parameters)

    def authorise_page(self, channel: str) -> None:
        """Checks whether the signed address of a history page counts in a channel: whoever got it had the right to history.

        Raises ServiceError: INVALID_CHANNEL, UNKNOWN_CHANNEL, FORBIDDEN (caches may keep no history of the channel).
        """
        spec = self._contract.resolve(channel).spec
        if not spec.is_cacheable:
            raise ServiceError(ErrorCode.FORBIDDEN, f"the history of {spec.pattern.text} is not cacheable")

    def authorise_removal(self, identity: Identity, channel: str) -> Resolved:
        """Checks whether the identity may take back events of a channel.

        Raises ServiceError, the first that applies: INVALID_CHANNEL, UNKNOWN_CHANNEL, FORBIDDEN.
        """
        resolved = self._contract.resolve(channel)
        self.authorise_erasure(identity)
        return resolved

    def authorise_erasure(self, identity: Identity) -> None:
        """Checks whether the identity may take back events of all channels of its tenant. Raises ServiceError(FORBIDDEN)."""
        if not may_remove(identity):
            raise ServiceError(ErrorCode.FORBIDDEN, "only the backend takes back events")

    def authorise_description(self, identity: Identity) -> Contract:
        """Returns the contract, if the identity may read all of it. Raises ServiceError(FORBIDDEN)."""
        if not may_describe(identity):
            raise ServiceError(ErrorCode.FORBIDDEN, "only the backend reads the contract")
        return self._contract

    @property
    def has_read_hooks(self) -> bool:
        """True if the contract names hooks for reads."""
        return self._contract.has_read_hooks

    @property
    def has_content_hooks(self) -> bool:
        """True if the contract names hooks for empty channels."""
        return self._contract.has_content_hooks

    def read_hook_of(self, channel: str) -> Hook | None:
        """Returns the hook that decides about a read which `authorise` has allowed; None if there is none."""
        return self._contract.resolve(channel).spec.hook

    @property
    def has_hooks(self) -> bool:
        """True if the contract names hooks for publishes."""
        return self._contract.has_hooks

    def hook_of(self, channel: str, type: str) -> Hook | None:
        """Returns the hook that decides about a publish which `validate` has accepted; None if there is none."""
        return self._contract.resolve(channel).spec.events[type].hook

    @property
    def call_names(self) -> Collection[str]:
        """The names of the calls that the contract declares."""
        return self._contract.calls.keys()

    def validate_call(self, identity: Identity, name: str, data: bytes | Raw) -> CallSpec:
        """Checks one call to the backend.

        Raises ServiceError, the first that applies: UNKNOWN_CALL, FORBIDDEN, MALFORMED (a duplicate key), INVALID_DATA
        (details.path and details.errors say where and why).
        """
        spec = self._contract.calls.get(name)
        if spec is None:
            hint = did_you_mean(name, self._contract.calls)
            raise ServiceError(ErrorCode.UNKNOWN_CALL, f"the contract declares no call {name!r}{hint}", path="$.call")
        if not may_call(spec.who, identity):
            raise ServiceError(ErrorCode.FORBIDDEN, f"only authenticated users call {name}", path="$.call")
        _check_data(spec.request, bytes(data))
        return spec

    def validate_reply(self, spec: CallSpec, data: bytes | Raw) -> None:
        """Checks what the backend answers to a call. Raises ServiceError(MALFORMED or INVALID_DATA)."""
        _check_data(spec.reply, bytes(data))

    @property
    def has_event_webhooks(self) -> bool:
        """True if the contract names an endpoint that is told of published events."""
        return self._contract.has_event_webhooks

    @property
    def has_channel_webhooks(self) -> bool:
        """True if the contract names an endpoint that is told who is in some channels."""
        return self._contract.has_channel_webhooks

    def channel_webhook_of(self, channel: str) -> ChannelWebhook | None:
        """Returns who is told who is in a channel that `authorise` has allowed; None if nobody is."""
        return self._contract.resolve(channel).spec.webhook

    def webhook_of(self, channel: str, type: str) -> str | None:
        """Returns the endpoint that is told of an event which `validate` has accepted; None if there is none."""
        return self._contract.resolve(channel).spec.events[type].webhook

    def webhook_of_stored(self, channel: str, type: str) -> str | None:
        """Does the same for an event in the store, whose type or channel the contract may not declare any more."""
        try:
            event = self._contract.resolve(channel).spec.events.get(type)
        except ServiceError:
            return None
        return None if event is None else event.webhook

    def retention_of(self, channel: str, delivery: Delivery) -> Retention | None:
        """Returns the retention in a channel of the store; None if the contract declares none, or not the channel."""
        try:
            return self._contract.resolve(channel).spec.retention(delivery)
        except ServiceError:
            return None

    def validate(
        self,
        identity: Identity,
        channel: str,
        type: str,
        data: bytes | Raw,
        id: str,
        key: str | None,
        sender: str | None,
        at: int,
        subscription: Subscription | None = None,
        connection: str | None = None,
        exclude: str | None = None,
    ) -> Publication:
        """Checks one publish. `subscription`: that of the publishing connection to the channel, if it has one. `connection`: the
        id of the publishing connection, for a type without echo. `exclude`: the id of another one that does not get the event.

        Raises ServiceError, the first that applies: INVALID_CHANNEL, UNKNOWN_CHANNEL, UNKNOWN_EVENT, NOT_SUBSCRIBED (if the
        identity may subscribe), FORBIDDEN, MALFORMED (a duplicate key), INVALID_DATA (details.path and details.errors say where
        and why), INVALID_KEY.
        """
        resolved = self._contract.resolve(channel)
        spec, parameters = resolved
        event = spec.events.get(type)
        is_subscribed = subscription is not None
        if event is None or not may_publish(event.publish, identity, channel, parameters, subscribed=is_subscribed):
            event = _authorise_by_grant(identity, channel, type, event, resolved, subscription)
        raw = bytes(data)
        value = _read(raw)
        unique_keys.check_value(raw, value, "$.data")
        if event.check is not None and not event.check.is_valid(value):
            raise _invalid_data(event, raw, value)
        if event.key is not None or key is not None:
            key = _key(event, value, key)
        delivery = event.delivery
        retention = None if delivery is _EPHEMERAL else spec.retention(delivery)
        channel_key = ChannelKey(identity.tenant, channel) if subscription is None else subscription.channel
        if not event.echo and exclude is None:
            exclude = connection
        # By position: names would take as long again.
        return Publication(
            channel_key, type, id, delivery, raw, sender, at, key, retention, event.ttl, False, None, exclude
        )

    def validate_removal(
        self,
        identity: Identity,
        channel: str,
        type: str,
        id: str,
        key: str | None,
        sender: str | None,
        at: int,
        subscription: Subscription | None = None,
    ) -> Publication:
        """Checks the removal of a value. Who may publish the event type may remove its values, if it is `removable`.

        Raises ServiceError, the first that applies: those of `validate` up to FORBIDDEN, FORBIDDEN (the type is not removable),
        INVALID_KEY (no key).
        """
        resolved = self._contract.resolve(channel)
        spec, parameters = resolved
        event = spec.events.get(type)
        is_subscribed = subscription is not None
        if event is None or not may_publish(event.publish, identity, channel, parameters, subscribed=is_subscribed):
            event = _authorise_by_grant(identity, channel, type, event, resolved, subscription)
        if not event.removable:
            raise ServiceError(ErrorCode.FORBIDDEN, f"values of {type} are not removable", path="$.removed")
        if key is None:
            raise ServiceError(ErrorCode.INVALID_KEY, "a removal needs the key of the value", path="$.key")
        key_of_channel = ChannelKey(identity.tenant, channel)
        return Publication(key_of_channel, type, id, event.delivery, b"", sender, at, key, spec.state, removed=True)

    def require_version(self, publication: Publication, if_rev: int) -> Publication:
        """Makes a checked publish conditional. Raises ServiceError(INVALID_MESSAGE) if it is not that of a latest event."""
        if publication.delivery is not Delivery.LATEST:
            raise ServiceError(
                ErrorCode.INVALID_MESSAGE,
                f"only latest events have a rev; {publication.type} is {publication.delivery.value}",
                path="$.if_rev",
            )
        return replace(publication, if_version=if_rev)

    def validate_presence_update(
        self, identity: Identity, channel: str, data: bytes | Raw, subscription: Subscription | None
    ) -> tuple[ChannelKey, bytes]:
        """Checks a `presence.update`. `subscription`: that of the client to the channel, if it has one.

        Returns the channel, and the info as JSON. Raises ServiceError, the first that applies: INVALID_CHANNEL, UNKNOWN_CHANNEL,
        UNKNOWN_EVENT (the contract lets nobody set the info), NOT_SUBSCRIBED, FORBIDDEN, MALFORMED (a duplicate key),
        INVALID_DATA.
        """
        resolved = self._contract.resolve(channel)
        event = resolved.spec.presence_update
        if event is not None and (identity.is_anonymous or identity.is_backend):
            raise ServiceError(ErrorCode.FORBIDDEN, "presence shows only users", path="$.type")
        is_subscribed = subscription is not None
        if event is None or not may_publish(
            event.publish, identity, channel, resolved.parameters, subscribed=is_subscribed
        ):
            event = _authorise_by_grant(identity, channel, PRESENCE_UPDATE, event, resolved, subscription)
        if subscription is None:
            raise ServiceError(
                ErrorCode.NOT_SUBSCRIBED, f"subscribe to the channel before {PRESENCE_UPDATE}", path="$.channel"
            )
        raw = bytes(data)
        value = _read(raw)
        unique_keys.check_value(raw, value, "$.data")
        if event.check is not None and not event.check.is_valid(value):
            raise _invalid_data(event, raw, value)
        return subscription.channel, raw


_WHO_READS = {
    SubscribeRule.EVERYONE: "everyone may read this channel",
    SubscribeRule.AUTHENTICATED: "only authenticated users may read this channel",
    SubscribeRule.GRANT: "the token grants no such right in this channel",
    SubscribeRule.OWNER: f"only the user named by {{{OWNER_PARAMETER}}} in the channel's pattern may read it",
}
_WHO_PUBLISHES = {
    PublishRule.SERVER: "only the backend publishes this event",
    PublishRule.SUBSCRIBER: "only those who may subscribe to the channel publish this event",
    PublishRule.AUTHENTICATED: "only authenticated users publish this event",
    PublishRule.GRANT: "the token does not grant publishing in this channel",
    PublishRule.OWNER: f"only the user named by {{{OWNER_PARAMETER}}} in the channel's pattern publishes this event",
}


def _unknown_event(spec: ChannelSpec, type_: str) -> ServiceError:
    shown = type_[:64]
    return ServiceError(
        ErrorCode.UNKNOWN_EVENT,
        f"{spec.pattern.text} declares no event {shown!r}{did_you_mean(shown, spec.events)}",
        path="$.type",
        known=sorted(spec.events)[:MAX_ERRORS],
    )


def _authorise_by_grant(
    identity: Identity,
    channel: str,
    type_: str,
    event: EventSpec | None,
    resolved: Resolved,
    subscription: Subscription | None,
) -> EventSpec:
    """Returns the event if the subscription's own rights allow the publish. Raises ServiceError otherwise."""
    grant = None if subscription is None else subscription.grant
    if event is not None and grant is not None:
        granted = identity.with_grants(grant)
        if may_publish(event.publish, granted, channel, resolved.parameters, subscribed=True):
            return event
    raise _refuse_publish(identity, channel, type_, event, resolved)


def _refuse_publish(
    identity: Identity, channel: str, type_: str, event: EventSpec | None, resolved: Resolved
) -> ServiceError:
    spec, parameters = resolved
    if event is None:
        return _unknown_event(spec, type_)
    if event.publish is PublishRule.SUBSCRIBER and may_read(
        spec.subscribe, Right.SUBSCRIBE, identity, channel, parameters
    ):
        return ServiceError(
            ErrorCode.NOT_SUBSCRIBED, f"subscribe to the channel before publishing {event.type}", path="$.channel"
        )
    return ServiceError(ErrorCode.FORBIDDEN, _WHO_PUBLISHES[event.publish], path="$.type", right=Right.PUBLISH.value)


def _read(raw: bytes) -> Any:
    try:
        value = _decode(raw)
    except _UNREADABLE as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else _sentence(error)
        raise _refuse_data(f"data is not JSON: {reason}", "$.data", reason) from error
    # The number of brackets is fast to count. The depth cannot exceed it, and it is nearly always below the limit. A level
    # takes two bytes.
    if len(raw) > 2 * MAX_DEPTH and raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        reason = f"nested more than {MAX_DEPTH} deep"
        raise _refuse_data(f"data is {reason}", "$.data", reason)
    return value


def _sentence(error: Exception) -> str:
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else shorten(str(error))


def _is_deeper(value: Any, max_depth: int) -> bool:
    """True if lists and objects are nested deeper than `max_depth`. Goes level by level, without recursion."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [value for value in level if isinstance(value, dict | list)]
        if not level:
            return False
        level = [child for value in level for child in (value.values() if isinstance(value, dict) else value)]
    return True


def _check_data(spec: DataSpec, raw: bytes) -> None:
    value = _read(raw)
    unique_keys.check_value(raw, value, "$.data")
    if spec.check is not None and not spec.check.is_valid(value):
        raise _invalid_data(spec, raw, value)


def _invalid_data(event: EventSpec | DataSpec, raw: bytes, value: Any) -> ServiceError:
    """Builds the refusal. Faults are listed only for refused events, and at most MAX_ERRORS."""
    assert event.check is not None  # noqa: S101  # it has just refused the value
    found = islice(_errors(event.check, raw, value), MAX_ERRORS)
    errors = [{"path": json_path("$.data", error.instance_path), "message": shorten(error.message)} for error in found]
    return ServiceError(
        ErrorCode.INVALID_DATA,
        f"data does not match the schema of {event.type}",
        path=errors[0]["path"],
        errors=errors,
    )


def _errors(check: Draft202012Validator, raw: bytes, value: Any) -> Iterable[ValidationError]:
    """Returns every fault, or only the first one of large data: the validator collects all faults before it yields one."""
    if raw.count(b",") <= MAX_VALUES_FOR_ALL_FAULTS:
        return check.iter_errors(value)
    try:
        check.validate(value)
    except ValidationError as error:
        return (error,)
    raise AssertionError("the schema refused the value before")


def _refuse_data(message: str, path: str, reason: str) -> ServiceError:
    return ServiceError(ErrorCode.INVALID_DATA, message, path=path, errors=[{"path": path, "message": reason}])


def _key(event: EventSpec, value: Any, given: str | None) -> str:
    """Returns the key of a latest event, from the contract's pointer into its data."""
    if event.key is None:
        raise ServiceError(
            ErrorCode.INVALID_KEY,
            f"only latest events have a key; {event.type} is {event.delivery.value}",
            path="$.key",
        )
    path = json_path("$.data", event.key)
    try:
        found = pointer.find(value, event.key)
    except LookupError as error:
        raise ServiceError(ErrorCode.INVALID_KEY, f"data has no {path}, the key of {event.type}", path=path) from error
    key = _as_text(found)
    if key is None or not 1 <= len(key) <= MAX_KEY:
        raise ServiceError(
            ErrorCode.INVALID_KEY,
            f"the key of {event.type} is text, a whole number or a truth value of 1 to {MAX_KEY} characters",
            path=path,
        )
    if given is not None and given != key:
        raise ServiceError(ErrorCode.INVALID_KEY, f"key is not the value of {path}", path="$.key")
    return key


def _as_text(value: Any) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else None
