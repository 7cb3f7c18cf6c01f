"""Describes a contract as an AsyncAPI 3.0 document, from the view of a client.

A client receives events, and sends those that it may publish. The payload of a message is the `data` of an event. What AsyncAPI
has no field for is in extensions `x-tidewire`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from service.contract import pointer
from service.contract.export.bundle import Bundle
from service.contract.export.names import Names
from service.contract.model import CallSpec, ChannelSpec, Contract, DataSpec, EventSpec
from service.contract.schemas import DIALECT
from service.core.access import CallRule, PublishRule, SubscribeRule
from service.core.channel import MAX_CHANNEL_BYTES, OWNER_PARAMETER
from service.core.event import Delivery, Retention
from service.core.webhooks import ChannelWebhook

VERSION = "3.0.0"
EXTENSION = "x-tidewire"
JSON = "application/json"
DEFAULT_HOST = "127.0.0.1:8080"
"""The host of the description if none is given. It is a variable there, so readers can set it."""

_READERS = {
    SubscribeRule.EVERYONE: "Everyone",
    SubscribeRule.AUTHENTICATED: "Authenticated users",
    SubscribeRule.GRANT: "Users whose token grants the channel",
    SubscribeRule.OWNER: f"Only the user named by {{{OWNER_PARAMETER}}}",
}
_PUBLISHERS = {
    PublishRule.SERVER: "Only the backend",
    PublishRule.SUBSCRIBER: "Users with a subscription to the channel",
    PublishRule.AUTHENTICATED: "Authenticated users",
    PublishRule.GRANT: "Users whose token grants publishing in the channel",
    PublishRule.OWNER: f"Only the user named by {{{OWNER_PARAMETER}}}",
}

_CALLERS = {CallRule.EVERYONE: "Everyone", CallRule.AUTHENTICATED: "Authenticated users"}


@dataclass(frozen=True, slots=True)
class Server:
    """Where clients connect."""

    protocol: str
    host: str
    path: str

    @classmethod
    def parse(cls, url: str) -> Server:
        """Parses an address such as `wss://example.com/ws`. Raises ValueError with a sentence."""
        parts = urlsplit(url)
        if (
            parts.scheme not in ("ws", "wss")
            or not parts.hostname
            or parts.query
            or parts.fragment
            or "@" in parts.netloc
        ):
            raise ValueError(f"{url[:100]!r} is not the address of a server, such as wss://example.com/ws")
        return cls(parts.scheme, parts.netloc, parts.path or "/ws")


def describe(contract: Contract, server: Server | None = None) -> dict[str, Any]:
    """Returns the document. It depends only on what the contract's hash depends on, and on the server."""
    return _Description(contract).document(server)


class _Description:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._bundle = Bundle(contract)
        self._channels: dict[str, Any] = {}
        self._operations: dict[str, Any] = {}
        self._messages: dict[str, Any] = {}
        self._channel_names, self._message_names, self._operation_names = Names(), Names(), Names()

    def document(self, server: Server | None) -> dict[str, Any]:
        for spec in sorted(self._contract.channels, key=lambda spec: spec.pattern.text):
            self._add_channel(spec)
        for name in sorted(self._contract.calls):
            self._add_call(self._contract.calls[name])
        return {
            "asyncapi": VERSION,
            "info": {
                "title": "Tidewire contract",
                "version": self._contract.hash or "unknown",
                "description": "The events that clients receive and send, and their calls. A payload is the `data` of one.",
                EXTENSION: {"contract": self._contract.hash, "dialect": DIALECT},
            },
            "defaultContentType": JSON,
            "servers": {"tidewire": _describe_server(server)},
            "channels": self._channels,
            "operations": self._operations,
            "components": {
                "messages": self._messages,
                "schemas": self._bundle.components,
                "securitySchemes": {
                    "token": {
                        "type": "http",
                        "scheme": "bearer",
                        "bearerFormat": "JWT",
                        "description": "A user's token.",
                    }
                },
            },
        }

    def _add_channel(self, spec: ChannelSpec) -> None:
        pattern = spec.pattern.text
        name = self._channel_names.give(pattern.replace("{", "").replace("}", "").replace(":", "."))
        messages: dict[str, Any] = {}
        self._channels[name] = {
            "address": _address(spec),
            "title": pattern,
            "messages": messages,
            **({"parameters": parameters} if (parameters := _describe_parameters(spec)) else {}),
            EXTENSION: self._declare_channel(spec),
        }
        for type_ in sorted(spec.events):
            self._add_event(spec, name, spec.events[type_], messages)
        update = spec.presence_update
        if update is not None:
            self._add_event(spec, name, update, messages)
        received = [{"$ref": f"#/channels/{name}/messages/{type_}"} for type_ in sorted(spec.events)]
        self._operations[self._operation_names.give(f"receive.{name}")] = {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": f"{_READERS[spec.subscribe]} may subscribe",
            "messages": received,
            **_security(is_open=spec.subscribe is SubscribeRule.EVERYONE),
            EXTENSION: {"subscribe": spec.subscribe.value, "right": "subscribe"},
        }

    def _declare_channel(self, spec: ChannelSpec) -> dict[str, Any]:
        return {
            "subscribe": spec.subscribe.value,
            "presence": self._declare_presence(spec),
            **({"history": _declare_history(spec, spec.history)} if spec.history is not None else {}),
            **({"state": _declare_retention(spec.state, "keys")} if spec.has_state else {}),
            **({"hook": spec.hook.endpoint} if spec.hook is not None else {}),
            **({"when_empty": spec.when_empty.endpoint} if spec.when_empty is not None else {}),
            **({"webhook": _declare_webhook(spec.webhook)} if spec.webhook is not None else {}),
        }

    def _declare_presence(self, spec: ChannelSpec) -> Any:
        update = spec.presence_update
        if update is None:
            return spec.presence
        return {"update": {"publish": update.publish.value, "schema": self._bundle.reference(update)}}

    def _add_event(self, spec: ChannelSpec, channel: str, event: EventSpec, messages: dict[str, Any]) -> None:
        message = self._message_names.give(f"{channel}.{event.type}")
        self._messages[message] = self._describe_message(event, _declare_event(event))
        messages[event.type] = {"$ref": f"#/components/messages/{message}"}
        if event.publish is PublishRule.SERVER:
            return
        is_open = event.publish is PublishRule.SUBSCRIBER and spec.subscribe is SubscribeRule.EVERYONE
        self._operations[self._operation_names.give(f"send.{message}")] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{channel}"},
            "summary": f"{_PUBLISHERS[event.publish]} may publish {event.type}",
            "messages": [{"$ref": f"#/channels/{channel}/messages/{event.type}"}],
            **_security(is_open=is_open),
            EXTENSION: {"publish": event.publish.value, "right": "publish"},
        }

    def _add_call(self, call: CallSpec) -> None:
        """A call is a channel without an address, with a request and its reply."""
        channel = self._channel_names.give(f"call.{call.name}")
        messages: dict[str, Any] = {}
        for side, spec in (("request", call.request), ("reply", call.reply)):
            message = self._message_names.give(f"{channel}.{side}")
            self._messages[message] = self._describe_message(spec, {})
            messages[side] = {"$ref": f"#/components/messages/{message}"}
        declared = {
            "call": call.name,
            "who": call.who.value,
            "endpoint": call.hook.endpoint,
            "timeout": call.hook.timeout,
        }
        self._channels[channel] = {
            "address": None,
            "title": call.name,
            "messages": messages,
            EXTENSION: {name: value for name, value in declared.items() if value is not None},
        }
        place = {"$ref": f"#/channels/{channel}"}
        self._operations[self._operation_names.give(channel)] = {
            "action": "send",
            "channel": place,
            "summary": f"{_CALLERS[call.who]} may call {call.name}",
            "messages": [{"$ref": f"#/channels/{channel}/messages/request"}],
            "reply": {"channel": place, "messages": [{"$ref": f"#/channels/{channel}/messages/reply"}]},
            **_security(is_open=call.who is CallRule.EVERYONE),
            EXTENSION: {"call": call.name, "who": call.who.value},
        }

    def _describe_message(self, spec: EventSpec | DataSpec, declared: dict[str, Any]) -> dict[str, Any]:
        reference = self._bundle.reference(spec)
        schema = self._resolve(reference)
        texts = {"title": schema.get("title"), "description": schema.get("description")}
        return {
            "name": spec.type,
            **{name: text for name, text in texts.items() if isinstance(text, str) and text},
            "contentType": JSON,
            "payload": reference if reference is not None else {},
            EXTENSION: {**declared, **({"deprecated": True} if schema.get("deprecated") is True else {})},
        }

    def _resolve(self, reference: Mapping[str, str] | None) -> Mapping[str, Any]:
        """Returns the component that a reference names; empty for a part of a component."""
        name = reference["$ref"].rpartition("/")[2] if reference is not None else ""
        found = self._bundle.components.get(name, {})
        return found if isinstance(found, dict) else {}


def _describe_server(server: Server | None) -> dict[str, Any]:
    common = {"description": "Every node of the service."}
    if server is not None:
        return {"host": server.host, "protocol": server.protocol, "pathname": server.path, **common}
    variable = {"default": DEFAULT_HOST, "description": "Host and port of the service."}
    return {"host": "{host}", "protocol": "wss", "pathname": "/ws", "variables": {"host": variable}, **common}


def _describe_parameters(spec: ChannelSpec) -> dict[str, Any]:
    text = f"One segment of the name. A name has at most {MAX_CHANNEL_BYTES} bytes."
    owner = f"A user, percent-encoded where a name does not allow a character. {text}"
    return {
        _parameter(name): {"description": owner if name == OWNER_PARAMETER else text}
        for name in spec.pattern.parameters
    }


def _address(spec: ChannelSpec) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: f"{{{_parameter(found[1])}}}", spec.pattern.text)


def _parameter(name: str) -> str:
    """Returns the name of a parameter. Most readers in JavaScript take __proto__ for an object's prototype."""
    return "proto" if name == "__proto__" else name


def _declare_history(spec: ChannelSpec, history: Retention) -> dict[str, Any]:
    return {**_declare_retention(history, "events"), **({"cacheable": True} if spec.is_cacheable else {})}


def _declare_retention(retention: Retention, entries: str) -> dict[str, Any]:
    return {entries: retention.entries, "ttl": retention.ttl}


def _declare_webhook(webhook: ChannelWebhook) -> dict[str, Any]:
    return {"endpoint": webhook.endpoint, "tell": sorted(change.value for change in webhook.tell)}


def _declare_event(event: EventSpec) -> dict[str, Any]:
    declared = {
        "publish": event.publish.value,
        "delivery": event.delivery.value,
        "key": pointer.text_of(event.key) if event.key is not None else None,
        "ttl": event.ttl / 1000 if event.ttl is not None else None,
        "window": event.window or None,
        "compress": event.compress,
        "removable": event.removable if event.delivery is Delivery.LATEST else None,
        "echo": event.echo,
        "hook": event.hook.endpoint if event.hook is not None else None,
        "webhook": event.webhook,
    }
    return {name: value for name, value in declared.items() if value is not None}


def _security(*, is_open: bool) -> dict[str, Any]:
    return {} if is_open else {"security": [{"$ref": "#/components/securitySchemes/token"}]}
