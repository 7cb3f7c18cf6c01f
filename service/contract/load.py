"""Loads a contract file, and reports all of its faults with file and line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from jsonschema_rs import Draft202012Validator

from service.contract import duration, pointer
from service.contract.document import Document, Fault, Faults, Place, did_you_mean, read
from service.contract.model import DEFAULT_STATE, CallSpec, ChannelSpec, Contract, DataSpec, EventSpec
from service.contract.schemas import Schemas
from service.core.access import CallRule, PublishRule, SubscribeRule
from service.core.channel import OWNER_PARAMETER, ChannelPattern
from service.core.event import Delivery, Retention
from service.core.hooks import Hook
from service.core.presence import PRESENCE_PREFIX, PRESENCE_UPDATE
from service.core.removal import REMOVED_TYPE
from service.core.webhooks import ChannelChange, ChannelWebhook
from service.protocol.messages import MAX_CALL_NAME

MAX_WINDOW = 1.0
"""Maximum `window` in seconds. Users would notice a longer delay."""
MAX_ENTRIES = 1_000_000
MIN_TTL, MAX_TTL = 1.0, 366 * 86_400.0
MIN_VALUE_TTL = 0.1
"""Minimum `ttl` of a latest value in seconds. A shorter one would end on the way to a client."""
MIN_RECHECK, MAX_RECHECK = 10.0, 86_400.0
"""Seconds between two questions about a subscription that goes on."""
MIN_CALL_TIMEOUT, MAX_CALL_TIMEOUT = 0.1, 30.0
"""Seconds that a call may take. Proxies cut a response without data after 30 s or more."""
MAX_TYPE = 64
HASH_LENGTH = 16
"""Hexadecimal digits of a contract's hash: enough to tell versions apart, and short in an address."""

_TYPE = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)+")
_Rule = TypeVar("_Rule", bound=Enum)
_Parsed = TypeVar("_Parsed")


class WithoutAnswer(Enum):
    """What happens to what a hook is asked about, if it gives no answer."""

    DENY = "deny"
    ALLOW = "allow"


class ContractFaults(Faults):
    """All faults of a contract that cannot be used."""


def load(path: Path) -> Contract:
    """Loads and checks a contract.

    Raises ContractFaults.
    """
    faults: list[Fault] = []
    document = read(path, faults)
    schemas = Schemas(path, faults)
    reader = _Reader(document, schemas, faults) if document else None
    channels = reader.channels() if reader else []
    calls = reader.calls() if reader else {}
    if faults or document is None or reader is None:
        raise ContractFaults(faults)
    files = schemas.files()
    return Contract(channels, _hash(document.value, files), files, reader.endpoints, calls, reader.webhook_endpoints)


def _hash(contract: Any, files: Mapping[str, Any]) -> str:
    content = json.dumps([contract, files], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(content.encode()).hexdigest()[:HASH_LENGTH]


class _Reader:
    """Reads the document once. A wrong value adds a fault and becomes None, and the reader continues."""

    def __init__(self, document: Document, schemas: Schemas, faults: list[Fault]) -> None:
        self._document = document
        self._schemas = schemas
        self._faults = faults
        self.endpoints: dict[str, Fault] = {}
        """The endpoints of hooks that were read, each with the fault to report if the settings do not have it."""
        self.webhook_endpoints: dict[str, Fault] = {}
        """The same for the endpoints of webhooks."""

    def channels(self) -> list[ChannelSpec]:
        place: Place = ("channels",)
        top = self._mapping(self._document.value, (), ("channels", "calls"))
        if top is None:
            return []
        declared = self._mapping(top.get("channels", {}), place)
        if declared == {} and not top.get("calls"):
            self._fault(place, "declares no channels")
        patterns: dict[tuple[str, ...], str] = {}
        specs = [self._channel(text, value, (*place, text), patterns) for text, value in (declared or {}).items()]
        return [spec for spec in specs if spec is not None]

    def calls(self) -> dict[str, CallSpec]:
        """Reads `calls`. Call `channels` first, which reports the faults of the whole document."""
        top = self._document.value
        if not isinstance(top, dict) or "calls" not in top:
            return {}
        place: Place = ("calls",)
        declared = self._mapping(top["calls"], place) or {}
        specs = [self._call(name, value, (*place, name)) for name, value in declared.items()]
        return {spec.name: spec for spec in specs if spec is not None}

    def _call(self, name: str, value: Any, place: Place) -> CallSpec | None:
        """Reads `{endpoint: …, request: …, reply: …, who: everyone|authenticated, timeout: 5s}`."""
        if reason := _bad_call(name):
            self._fault(place, reason)
        fields = self._mapping(value, place, ("endpoint", "request", "reply", "who", "timeout"))
        if fields is None:
            return None
        endpoint = self._endpoint(fields, place)
        who = self._rule(CallRule, {"who": "authenticated", **fields}, "who", place)
        timeout = self._call_timeout(fields, place)
        request, reply = (
            DataSpec(f"{name}.{side}", self._check(fields, place, side), fields.get(side))
            for side in ("request", "reply")
        )
        if endpoint is None or who is None:
            return None
        return CallSpec(name, Hook(endpoint, timeout=timeout), who, request, reply)

    def _call_timeout(self, fields: Mapping[str, Any], place: Place) -> float | None:
        if "timeout" not in fields:
            return None
        at = (*place, "timeout")
        timeout = self._try(duration.seconds, fields["timeout"], at)
        if timeout is not None and not MIN_CALL_TIMEOUT <= timeout <= MAX_CALL_TIMEOUT:
            self._fault(at, f"timeout is from 100ms to {MAX_CALL_TIMEOUT:g}s: proxies cut longer requests")
        return timeout

    def _channel(self, text: str, value: Any, place: Place, patterns: dict[tuple[str, ...], str]) -> ChannelSpec | None:
        pattern = self._pattern(text, place, patterns)
        fields = self._mapping(
            value, place, ("subscribe", "presence", "history", "state", "events", "hook", "when_empty", "webhook")
        )
        if fields is None:
            return None
        subscribe = self._rule(SubscribeRule, fields, "subscribe", place)
        self._check_owner(subscribe is SubscribeRule.OWNER, pattern, (*place, "subscribe"))
        presence, update = self._presence(fields, place, pattern)
        history = self._retention(fields, "history", place, "events", None, "cacheable")
        state = self._retention(fields, "state", place, "keys", DEFAULT_STATE)
        state_ttl = (state or DEFAULT_STATE).ttl
        events = self._events(fields, place, pattern, state_ttl)
        hook = self._hook(fields, place, may_recheck=True)
        when_empty = self._hook(fields, place, "when_empty")
        if when_empty is not None and not any(one.delivery is not Delivery.EPHEMERAL for one in events.values()):
            self._fault((*place, "when_empty"), "the channel keeps nothing: it has neither durable nor latest events")
        webhook = self._channel_webhook(fields, place, has_presence=presence)
        if pattern is None or subscribe is None:
            return None
        is_cacheable = history is not None and self._is_cacheable(fields, place)
        return ChannelSpec(
            pattern,
            subscribe,
            events,
            presence,
            history,
            state or DEFAULT_STATE,
            update,
            is_cacheable,
            hook,
            when_empty,
            webhook,
        )

    def _is_cacheable(self, fields: Mapping[str, Any], place: Place) -> bool:
        return self._boolean(fields["history"], "cacheable", (*place, "history")) or False

    def _pattern(self, text: str, place: Place, seen: dict[tuple[str, ...], str]) -> ChannelPattern | None:
        try:
            pattern = ChannelPattern(text)
        except ValueError as error:
            self._fault(place, f"{text!r} is not a channel pattern: {error}")
            return None
        if first := seen.get(pattern.shape):
            line = self._document.line(("channels", first))
            self._fault(place, f"{text!r} matches the same channels as {first!r} in line {line}")
        seen.setdefault(pattern.shape, text)
        return pattern

    def _presence(
        self, fields: Mapping[str, Any], place: Place, pattern: ChannelPattern | None
    ) -> tuple[bool, EventSpec | None]:
        """Reads `true`, `false` or `{update: {publish: …, schema: …}}`: whether there is presence, and who may set their info."""
        if not isinstance(fields.get("presence"), dict):
            return self._boolean(fields, "presence", place) or False, None
        found = self._mapping(fields["presence"], (*place, "presence"), ("update",)) or {}
        at = (*place, "presence", "update")
        update = self._mapping(found["update"], at, ("publish", "schema")) if "update" in found else None
        if update is None:
            return True, None
        publish = self._rule(PublishRule, update, "publish", at)
        self._check_owner(publish is PublishRule.OWNER, pattern, (*at, "publish"))
        if publish is PublishRule.SERVER:
            self._fault((*at, "publish"), "presence shows only users, so the backend sends no updates")
        if "schema" not in update:
            self._fault(at, "update lacks schema, which says what a user may show of itself")
        check = self._check(update, at)
        if publish is None:
            return True, None
        return True, EventSpec(PRESENCE_UPDATE, publish, Delivery.EPHEMERAL, check, schema=update.get("schema"))

    def _events(
        self, fields: Mapping[str, Any], place: Place, pattern: ChannelPattern | None, state_ttl: float
    ) -> dict[str, EventSpec]:
        at = (*place, "events")
        declared = self._mapping(fields.get("events", {}), at) or {}
        specs = [
            self._event(type_, value, (*at, type_), fields, pattern, state_ttl) for type_, value in declared.items()
        ]
        return {spec.type: spec for spec in specs if spec is not None}

    def _event(
        self,
        type_: str,
        value: Any,
        place: Place,
        channel: Mapping[str, Any],
        pattern: ChannelPattern | None,
        state_ttl: float,
    ) -> EventSpec | None:
        if reason := _bad_type(type_):
            self._fault(place, reason)
        fields = self._mapping(
            value,
            place,
            (
                "publish",
                "delivery",
                "schema",
                "key",
                "window",
                "compress",
                "ttl",
                "removable",
                "echo",
                "hook",
                "webhook",
            ),
        )
        if fields is None:
            return None
        publish = self._rule(PublishRule, fields, "publish", place)
        self._check_owner(publish is PublishRule.OWNER, pattern, (*place, "publish"))
        delivery = self._rule(Delivery, fields, "delivery", place)
        if delivery is Delivery.DURABLE and "history" not in channel:
            self._fault((*place, "delivery"), f"{type_} is durable, but its channel has no history to keep it in")
        key = self._key(fields, place, delivery)
        window = self._window(fields, place)
        compress = self._boolean(fields, "compress", place)
        check = self._check(fields, place)
        ttl = self._value_ttl(fields, place, delivery, state_ttl)
        removable = self._boolean(fields, "removable", place) or False
        if removable and delivery not in (Delivery.LATEST, None):
            self._fault((*place, "removable"), f"only latest events are removable; this one is {delivery.value}")
        echo = self._boolean(fields, "echo", place) is not False
        hook = self._hook(fields, place)
        if hook is not None and publish is PublishRule.SERVER:
            self._fault(
                (*place, "hook"),
                "only the backend publishes this event, and it is not asked about its own",
            )
        webhook = self._webhook(fields, place, ("endpoint",))
        if webhook is not None and delivery is Delivery.EPHEMERAL:
            self._fault(
                (*place, "webhook"),
                f"{type_} is ephemeral, and only durable and latest events have webhooks: no store knows about others",
            )
        if publish is None or delivery is None:
            return None
        schema = fields.get("schema")
        endpoint = None if webhook is None else webhook["endpoint"]
        return EventSpec(
            type_, publish, delivery, check, key, window, compress, ttl, removable, echo, schema, hook, endpoint
        )

    def _webhook(self, fields: Mapping[str, Any], place: Place, names: Iterable[str]) -> dict[str, Any] | None:
        """Reads `{endpoint: …}` with further fields. Returns None if there is no endpoint."""
        if "webhook" not in fields:
            return None
        at = (*place, "webhook")
        found = self._mapping(fields["webhook"], at, names)
        if found is None:
            return None
        endpoint = found.get("endpoint")
        if not isinstance(endpoint, str) or not endpoint:
            self._fault((*at, "endpoint"), "endpoint is the name of one of webhooks.endpoints in the settings")
            return None
        reason = f"the settings have no endpoint {endpoint!r} in webhooks.endpoints"
        self.webhook_endpoints.setdefault(endpoint, self._document.fault((*at, "endpoint"), reason))
        return found

    def _channel_webhook(self, fields: Mapping[str, Any], place: Place, *, has_presence: bool) -> ChannelWebhook | None:
        """Reads `{endpoint: …, tell: [occupied, vacated, joined, left]}`."""
        found = self._webhook(fields, place, ("endpoint", "tell"))
        if found is None:
            return None
        at = (*place, "webhook", "tell")
        known = [change.value for change in ChannelChange]
        given = found.get("tell")
        if not isinstance(given, list) or not given:
            self._fault(at, f"tell is a list of what the endpoint is told: {', '.join(known)}")
            return None
        for index, value in enumerate(given):
            if value not in known:
                hint = did_you_mean(str(value), known)
                self._fault((*at, index), f"tell has {value!r}, which is none of {', '.join(known)}{hint}")
            elif value in given[:index]:
                self._fault((*at, index), f"tell has {value} twice")
        tell = frozenset(ChannelChange(value) for value in given if value in known)
        users = [change.value for change in (ChannelChange.JOINED, ChannelChange.LEFT) if change in tell]
        if users and not has_presence:
            self._fault(at, f"{' and '.join(users)} need presence: declare presence: true for the channel")
        return ChannelWebhook(found["endpoint"], tell)

    def _hook(
        self, fields: Mapping[str, Any], place: Place, key: str = "hook", *, may_recheck: bool = False
    ) -> Hook | None:
        """Reads `{endpoint: …, without_answer: deny|allow, recheck: 10m}`."""
        if key not in fields:
            return None
        at = (*place, key)
        names = ("endpoint", "without_answer", "recheck") if may_recheck else ("endpoint", "without_answer")
        found = self._mapping(fields[key], at, names)
        if found is None:
            return None
        endpoint = self._endpoint(found, at)
        if endpoint is None:
            return None
        rule = self._rule(WithoutAnswer, {"without_answer": "deny", **found}, "without_answer", at)
        return Hook(endpoint, fails_open=rule is WithoutAnswer.ALLOW, recheck=self._recheck(found, at))

    def _endpoint(self, found: Mapping[str, Any], place: Place) -> str | None:
        endpoint, at = found.get("endpoint"), (*place, "endpoint")
        if not isinstance(endpoint, str) or not endpoint:
            self._fault(at, "endpoint is the name of one of hooks.endpoints in the settings")
            return None
        reason = f"the settings have no endpoint {endpoint!r} in hooks.endpoints"
        self.endpoints.setdefault(endpoint, self._document.fault(at, reason))
        return endpoint

    def _recheck(self, found: Mapping[str, Any], place: Place) -> float:
        at = (*place, "recheck")
        recheck = self._try(duration.seconds, found["recheck"], at) if "recheck" in found else None
        if recheck is None:
            return 0.0
        if not MIN_RECHECK <= recheck <= MAX_RECHECK:
            self._fault(
                at, f"recheck is {MIN_RECHECK:g} s to {MAX_RECHECK / 86_400:g} d: each subscription costs a question"
            )
        return recheck

    def _check(self, fields: Mapping[str, Any], place: Place, key: str = "schema") -> Draft202012Validator | None:
        return self._schemas.compile(self._document, (*place, key)) if key in fields else None

    def _key(self, fields: Mapping[str, Any], place: Place, delivery: Delivery | None) -> pointer.Pointer | None:
        at = (*place, "key")
        if "key" not in fields:
            if delivery is Delivery.LATEST:
                self._fault((*place, "delivery"), "latest needs a key: a JSON Pointer into data, such as key: /symbol")
            return None
        if delivery not in (Delivery.LATEST, None):
            self._fault(at, f"only latest events have a key; this one is {delivery.value}")
        if not isinstance(fields["key"], str):
            self._fault(at, "key is a JSON Pointer into data, such as /symbol")
            return None
        return self._try(pointer.parse, fields["key"], at)

    def _window(self, fields: Mapping[str, Any], place: Place) -> float:
        at = (*place, "window")
        window = self._try(duration.seconds, fields.get("window", 0), at) or 0.0
        if window > MAX_WINDOW:
            self._fault(at, f"window is at most {MAX_WINDOW:g}s: it delays every event that it joins")
        return window

    def _value_ttl(
        self, fields: Mapping[str, Any], place: Place, delivery: Delivery | None, state_ttl: float
    ) -> int | None:
        """Reads the `ttl` of an event type, in milliseconds."""
        if "ttl" not in fields:
            return None
        at = (*place, "ttl")
        if delivery not in (Delivery.LATEST, None):
            self._fault(at, f"only latest events have a ttl; this one is {delivery.value}")
        ttl = self._try(duration.seconds, fields["ttl"], at)
        if ttl is None:
            return None
        if not MIN_VALUE_TTL <= ttl <= state_ttl:
            self._fault(at, f"ttl is from 100ms to the ttl of the channel's state, which is {state_ttl:g}s")
        return round(ttl * 1000)

    def _retention(
        self,
        fields: Mapping[str, Any],
        name: str,
        place: Place,
        entries: str,
        default: Retention | None,
        *others: str,
    ) -> Retention | None:
        """Reads `{events|keys: …, ttl: …}`. With a default, each of the two fields is optional. `others`: further fields."""
        at = (*place, name)
        found = self._mapping(fields[name], at, (entries, "ttl", *others)) if name in fields else None
        if found is None:
            return default
        for missing in (entries, "ttl"):
            if missing not in found and default is None:
                self._fault(at, f"{name} lacks {missing}, as in {name}: {{{entries}: 500, ttl: 24h}}")
        count = self._count(found, entries, at) if entries in found else getattr(default, "entries", None)
        ttl = self._ttl(found, at) if "ttl" in found else getattr(default, "ttl", None)
        return default if count is None or ttl is None else Retention(count, ttl)

    def _count(self, fields: Mapping[str, Any], name: str, place: Place) -> int | None:
        value = fields[name]
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_ENTRIES:
            return value
        self._fault((*place, name), f"{name} is a whole number from 1 to {MAX_ENTRIES}")
        return None

    def _ttl(self, fields: Mapping[str, Any], place: Place) -> float | None:
        at = (*place, "ttl")
        ttl = self._try(duration.seconds, fields["ttl"], at)
        if ttl is not None and not MIN_TTL <= ttl <= MAX_TTL:
            self._fault(at, "ttl is from 1s to 366d")
        return ttl

    def _boolean(self, fields: Mapping[str, Any], name: str, place: Place) -> bool | None:
        value = fields.get(name)
        if name in fields and not isinstance(value, bool):
            self._fault((*place, name), f"{name} is true or false")
            return None
        return value

    def _rule(self, kind: type[_Rule], fields: Mapping[str, Any], name: str, place: Place) -> _Rule | None:
        known = [rule.value for rule in kind]
        if name not in fields:
            self._fault(place, f"{name} is missing: one of {', '.join(known)}")
            return None
        value = fields[name]
        if value in known:
            return kind(value)
        self._fault((*place, name), f"{name} is one of {', '.join(known)}{did_you_mean(str(value), known)}")
        return None

    def _check_owner(self, is_owner: bool, pattern: ChannelPattern | None, place: Place) -> None:
        if is_owner and pattern is not None and OWNER_PARAMETER not in pattern.parameters:
            self._fault(place, f"owner is the user named by {{{OWNER_PARAMETER}}}, which {pattern.text!r} has not")

    def _mapping(self, value: Any, place: Place, known: Iterable[Any] = ()) -> dict[str, Any] | None:
        """Returns the known fields of a mapping (all, without `known`); None for another value."""
        if not isinstance(value, dict):
            self._fault(place, f"{place[-1] if place else 'a contract'} is a mapping of names to values")
            return None
        names = tuple(known) or tuple(value)
        for name in value:
            if name not in names:
                hint = did_you_mean(name, names) or f"; known here: {', '.join(names)}"
                self._fault((*place, name), f"unknown key {name!r}{hint}")
        return {name: found for name, found in value.items() if name in names}

    def _try(self, parse: Callable[[Any], _Parsed], value: Any, place: Place) -> _Parsed | None:
        try:
            return parse(value)
        except ValueError as error:
            self._fault(place, str(error))
            return None

    def _fault(self, place: Place, reason: str) -> None:
        self._faults.append(self._document.fault(place, reason))


def _bad_type(type_: str) -> str | None:
    if type_.startswith(PRESENCE_PREFIX):
        return f"event types that start with {PRESENCE_PREFIX!r} belong to the service"
    if type_ == REMOVED_TYPE:
        return f"the event type {REMOVED_TYPE!r} belongs to the service"
    if "." not in type_:
        return f"event type {type_!r} has no dot; system messages have none, events always do, such as chat.message"
    if not _TYPE.fullmatch(type_) or len(type_) > MAX_TYPE:
        return f"event type {type_!r} is not words of a-z, 0-9, _ and - joined by dots, at most {MAX_TYPE} characters"
    return None


def _bad_call(name: str) -> str | None:
    if _TYPE.fullmatch(name) and len(name) <= MAX_CALL_NAME:
        return None
    return (
        f"the call {name!r} is not words of a-z, 0-9, _ and - joined by dots, at most {MAX_CALL_NAME} characters, such as "
        "order.quote"
    )
