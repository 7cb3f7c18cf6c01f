"""The OpenAPI 3.1 document of the backend API, derived from its operations and Structs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from service.errors import ErrorCode
from service.protocol.messages import MAX_ID, Event
from service.web.api.messages import (
    CHANNEL_SCHEMA,
    USER_SCHEMA,
    IdempotencyKey,
    Problem,
    Published,
    Refused,
    WebhookEntry,
    ref,
)

if TYPE_CHECKING:
    from service.web.api.operation import Operation

PATH = "/api/v1/openapi.json"
VERSION = "1.0.0"
"""The version of the API; its first number is the one in the paths."""

_PARAMETER = re.compile(r"\{(?P<name>\w+)\}")
_PATH_PARAMETERS: Mapping[str, dict[str, Any]] = {
    "channel": {
        "name": "channel",
        "in": "path",
        "required": True,
        "description": "A channel name, percent-encoded once. In a user inside the name, characters other than letters, digits "
        "and _.@~=+- are percent-encoded before that. The channel `inbox:auth0%7Cann` is `inbox:auth0%257Cann` in the path.",
        "schema": CHANNEL_SCHEMA,
    },
    "endpoint": {
        "name": "endpoint",
        "in": "path",
        "required": True,
        "description": "The name of an endpoint in `webhooks.endpoints`, percent-encoded once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 256},
    },
    "id": {
        "name": "id",
        "in": "path",
        "required": True,
        "description": "The id of an event, percent-encoded once.",
        "schema": {"type": "string", "minLength": 1, "maxLength": MAX_ID, "pattern": r"^[\x21-\x7e]+(?!\n)$"},
    },
    "user": {
        "name": "user",
        "in": "path",
        "required": True,
        "description": "A user as in tokens, percent-encoded once.",
        "schema": USER_SCHEMA,
    },
}
_EVENT_EXAMPLE = {"type": "chat.message", "id": "m-1", "from": "ann", "data": {"text": "hi"}}
_BODY_EXAMPLES: Mapping[str, dict[str, Any]] = {
    "publishToChannel": {
        "one": {"summary": "One event", "value": _EVENT_EXAMPLE},
        "several": {"summary": "Several", "value": [_EVENT_EXAMPLE, {"type": "chat.typing", "data": {}}]},
    },
    "publish": {"several": {"summary": "In several channels", "value": [{**_EVENT_EXAMPLE, "channel": "room:42"}]}},
    "countPresence": {"channels": {"summary": "Two channels", "value": {"channels": ["room:42", "room:43"]}}},
    "disconnectUser": {"reason": {"summary": "With a reason", "value": {"reason": "the account was closed"}}},
    "revokeUser": {"before": {"summary": "All tokens up to a moment", "value": {"before": 1795374000}}},
    "revokeToken": {"jti": {"summary": "One token", "value": {"jti": "4f1c9a"}}},
    "subscribeUser": {"channel": {"summary": "To one channel", "value": {"channel": "room:42"}}},
    "unsubscribeUser": {"channel": {"summary": "From one channel", "value": {"channel": "room:42"}}},
    "replayWebhooks": {
        "ids": {"summary": "Two entries", "value": {"ids": ["wh_Zm9vYmFyYmF6cXV4", "wh_cXV4YmF6YmFyZm9v"]}},
        "since": {"summary": "Since a moment", "value": {"since": 1795374000000}},
        "dead letters": {"summary": "All dead letters", "value": {"dead_letters": True}},
    },
    "dropWebhooks": {"dead letters": {"summary": "All dead letters", "value": {"dead_letters": True}}},
}
_CHALLENGE = {"WWW-Authenticate": {"schema": {"type": "string"}, "description": "`Bearer`."}}
_RETRY_AFTER = {"Retry-After": {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait."}}


def describe(operations: Sequence[Operation]) -> dict[str, Any]:
    """The document. Its limits and patterns are the ones that the code checks."""
    bodies = [operation.body for operation in operations if operation.body is not None]
    replies = [reply for operation in operations for reply in operation.replies]
    schemas, components = msgspec.json.schema_components(
        [*bodies, *replies, Problem, Published, Refused, Event, WebhookEntry],
        ref_template="#/components/schemas/{name}",
    )
    body_schemas = iter(schemas)
    paths: dict[str, Any] = {}
    for operation in operations:
        body = next(body_schemas) if operation.body is not None else None
        paths.setdefault(operation.path, {})[operation.method.lower()] = _describe_operation(operation, body)
    paths[PATH] = {"get": _THIS_OPERATION}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidewire backend API",
            "version": VERSION,
            "description": "Publish events, inspect channels, close connections, revoke tokens. One tenant per API key.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key of the settings."}
            },
        },
    }


def _describe_operation(operation: Operation, body: dict[str, Any] | None) -> dict[str, Any]:
    description: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": _describe_parameters(operation),
        "responses": {"200": _describe_success(operation.replies), **_describe_refusals(operation.all_refusals)},
    }
    if body is not None:
        content = {"schema": body, "examples": _BODY_EXAMPLES[operation.name]}
        description["requestBody"] = {"required": operation.body_required, "content": {"application/json": content}}
    return description


def _describe_parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters = [_PATH_PARAMETERS[parameter["name"]] for parameter in _PARAMETER.finditer(operation.path)]
    _, components = msgspec.json.schema_components([operation.query])
    for name, schema in components[operation.query.__name__]["properties"].items():
        description = schema.pop("description", "")
        parameters.append({"name": name, "in": "query", "description": description, "schema": schema})
    if operation.idempotent:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "The id of a single event that has none. Among several, the n-th event (from 0) gets `<key>.<n>`.",
                "schema": msgspec.json.schema(IdempotencyKey),
            }
        )
    return parameters


def _describe_success(replies: Sequence[type[Struct]]) -> dict[str, Any]:
    schema = ref(replies[0]) if len(replies) == 1 else {"anyOf": [ref(reply) for reply in replies]}
    texts = [(reply.__doc__ or "").splitlines()[0] for reply in replies]
    return {"description": " Or: ".join(texts), "content": {"application/json": {"schema": schema}}}


def _describe_refusals(codes: Iterable[ErrorCode]) -> dict[str, Any]:
    """One response for each status, listing every code that it can carry."""
    by_status: dict[int, list[ErrorCode]] = {}
    for code in sorted(set(codes), key=lambda code: (code.status, code.code)):
        by_status.setdefault(code.status, []).append(code)
    return {str(status): _describe_refusal(status, codes_of_status) for status, codes_of_status in by_status.items()}


def _describe_refusal(status: int, codes: Sequence[ErrorCode]) -> dict[str, Any]:
    text = "\n".join(f"- `{code.code}`: {code.meaning}" for code in codes)
    response: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}\n\n{text}",
        "content": {"application/problem+json": {"schema": ref(Problem)}},
    }
    if status == HTTPStatus.UNAUTHORIZED:
        response["headers"] = _CHALLENGE
    elif any(code.retryable for code in codes):
        response["headers"] = _RETRY_AFTER
    return response


_THIS_OPERATION = {
    "operationId": "getDescription",
    "summary": "Returns this document; needs no key",
    "security": [],
    "responses": {
        "200": {"description": "OpenAPI 3.1", "content": {"application/json": {"schema": {"type": "object"}}}},
        **_describe_refusals([ErrorCode.RATE_LIMITED, ErrorCode.INTERNAL]),
    },
}
