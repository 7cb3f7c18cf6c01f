"""The OpenAPI description, checked against the running service with schemathesis."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis import checks
from schemathesis.generation.case import Case

from service.core.channel import NAME, check_name
from service.errors import ServiceError
from service.web.api import openapi
from service.web.api import routes as api
from service.web.api.call import is_valid_user
from service.web.api.messages import CHANNEL_SCHEMA, USER_SCHEMA
from service.web.api.operation import Operation
from tests.support.harness import API_KEY, DEADLINE, Running, serving
from tests.support.webhook_api import QUIET

pytestmark = pytest.mark.slow

DESCRIPTION = openapi.describe(api.OPERATIONS)
AUTHORIZED = {"Authorization": f"Bearer {API_KEY}"}
schema = schemathesis.openapi.from_dict(json.loads(json.dumps(DESCRIPTION)))
# The key is always sent, so no generated request fails for its lack; `ignored_auth` tries that separately.
schema.config.generation.update(with_security_parameters=False, deterministic=True)


class Background:
    """A service on an event loop in a thread, because schemathesis sends requests synchronously."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="service")
        self.url = ""

    def __enter__(self) -> str:
        self._thread.start()
        assert self._started.wait(DEADLINE)
        return self.url

    def __exit__(self, *exception: object) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        # It repeats every case without a key.
        limits = {"api_rate_per_ip": {"per_second": 1e9, "burst": 10**6}}
        async with serving(limits=limits, webhooks={"endpoints": [QUIET]}) as server:
            self.url = server.url
            self._started.set()
            await self._stop.wait()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with Background() as url:
        yield url


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


EXCLUDED = {
    # The contract can refuse an event that fits the description. An array's events succeed or fail one by one, so a
    # wrong one among them is a 200 that says so.
    "publishToChannel": [checks.positive_data_acceptance, checks.negative_data_rejection],
    "publish": [checks.negative_data_rejection],
    # schemathesis generates from ranges that contain a class such as \p{S}, so also outside of it. The tests below
    # compare the patterns with the service's checks.
    "disconnectUser": [checks.positive_data_acceptance],
    "subscribeUser": [checks.positive_data_acceptance],
    "unsubscribeUser": [checks.positive_data_acceptance],
    "revokeUser": [checks.positive_data_acceptance],
    # Exactly one field has to be there, which a schema of a Struct does not say.
    "replayWebhooks": [checks.positive_data_acceptance],
    "dropWebhooks": [checks.positive_data_acceptance],
    # A reason's limit is in bytes, which JSON Schema cannot express.
    "revokeToken": [checks.positive_data_acceptance],
}


def _sent_is_no_name(case: Case[Any]) -> bool:
    """Whether schemathesis sends another channel than it generated: it takes `%3C` in a name for an encoded character."""
    sent = unquote(str((case.path_parameters or {}).get("channel", "room:1")))
    return re.fullmatch(NAME, sent) is None


@schema.parametrize()
@settings(max_examples=25, deadline=None, derandomize=True)
def test_running_service_matches_its_description(case: Case[Any], url: str, session: requests.Session) -> None:
    name = case.operation.definition.raw["operationId"]
    excluded = [*EXCLUDED.get(name, []), *([checks.positive_data_acceptance] if _sent_is_no_name(case) else [])]
    response = case.call_and_validate(base_url=url, session=session, headers=AUTHORIZED, excluded_checks=excluded)
    if name.startswith("publish") and response.status_code == 200 and isinstance(case.body, list):
        assert len(response.json()["results"]) == len(case.body)


EVENT: dict[str, Any] = {"type": "chat.message", "id": "m-1", "from": "ann", "data": {"text": "hi"}}
PIN: dict[str, Any] = {"type": "chat.pinned", "data": {"slot": "top", "text": "x"}}
ARCHIVE = {"endpoint": "archive"}
ANSWERS: list[tuple[str, str, dict[str, Any]]] = [
    ("publishToChannel", "one", {"path_parameters": {"channel": "room:1"}, "body": EVENT}),
    (
        "publishToChannel",
        "several",
        {
            "path_parameters": {"channel": "room:1"},
            "body": [EVENT, PIN, {"type": "chat.typing", "data": {}}, {"type": "no.such", "data": 1}, 7],
            "headers": {"Idempotency-Key": "k"},
        },
    ),
    ("publish", "several", {"body": [{**EVENT, "channel": "room:2"}, {**PIN, "channel": "nowhere:1"}]}),
    ("listChannels", "prefix", {"query": {"prefix": "room:", "limit": 1}}),
    ("getChannel", "with everything", {"path_parameters": {"channel": "room:1"}}),
    ("getChannel", "without history", {"path_parameters": {"channel": "board:main"}}),
    ("getHistory", "page", {"path_parameters": {"channel": "room:1"}, "query": {"after": 0, "limit": 1}}),
    ("getState", "page", {"path_parameters": {"channel": "room:1"}, "query": {"limit": 1}}),
    ("removeEvent", "any", {"path_parameters": {"channel": "room:1", "id": "m-1"}}),
    ("purgeChannel", "empty", {"path_parameters": {"channel": "room:9"}}),
    ("eraseUser", "first page", {"path_parameters": {"user": "nobody"}}),
    ("eraseUser", "next page", {"path_parameters": {"user": "nobody"}, "query": {"cursor": "room:1/7"}}),
    ("getPresence", "nobody", {"path_parameters": {"channel": "room:1"}}),
    ("countPresence", "nobody", {"body": {"channels": ["room:1", "room:2"]}}),
    ("disconnectUser", "reason", {"path_parameters": {"user": "ann"}, "body": {"reason": "moved"}}),
    ("subscribeUser", "channel", {"path_parameters": {"user": "ann"}, "body": {"channel": "room:1"}}),
    ("unsubscribeUser", "channel", {"path_parameters": {"user": "ann"}, "body": {"channel": "room:1"}}),
    ("revokeUser", "nothing", {"path_parameters": {"user": "zoe"}}),
    ("revokeUser", "moment", {"path_parameters": {"user": "zoe"}, "body": {"before": 5, "reason": "lost"}}),
    ("revokeToken", "token", {"body": {"jti": "t-1"}}),
    ("listWebhooks", "whole", {}),
    ("getWebhookEntries", "page", {"path_parameters": ARCHIVE, "query": {"queue": 3, "limit": 1}}),
    ("getWebhookDeadLetters", "page", {"path_parameters": ARCHIVE, "query": {"after": 7, "limit": 1}}),
    ("replayWebhooks", "since", {"path_parameters": ARCHIVE, "body": {"since": 1795374000000}}),
    ("replayWebhooks", "ids", {"path_parameters": ARCHIVE, "body": {"ids": ["wh_Zm9vYmFyYmF6cXV4"]}}),
    ("dropWebhooks", "dead letters", {"path_parameters": ARCHIVE, "body": {"dead_letters": True}}),
    ("getContract", "whole", {}),
    ("getDescription", "itself", {}),
]


@pytest.mark.parametrize(("operation", "case", "parts"), ANSWERS, ids=[f"{name} {what}" for name, what, _ in ANSWERS])
def test_responses_with_content_match_the_description(
    url: str, session: requests.Session, operation: str, case: str, parts: dict[str, Any]
) -> None:
    session.post(f"{url}/api/v1/channels/room:1/events", json=[EVENT, PIN], headers=AUTHORIZED, timeout=DEADLINE)
    found = schema.find_operation_by_id(operation)
    media: dict[str, Any] = {"media_type": "application/json"} if "body" in parts else {}
    response = found.Case(**parts, **media).call_and_validate(base_url=url, session=session, headers=AUTHORIZED)
    assert response.status_code == 200


def test_schemathesis_tries_every_operation() -> None:
    assert {name for name, _, _ in ANSWERS} == {operation.name for operation in api.OPERATIONS} | {"getDescription"}


async def test_description_is_served_without_a_key(server: Running) -> None:
    async with server.http.get(f"{server.url}{openapi.PATH}") as response:
        assert response.status == 200
        assert await response.json() == json.loads(json.dumps(DESCRIPTION))


def test_description_covers_every_route() -> None:
    routes = {(route.path, route.method.lower()) for route in api.routes()}
    assert routes == {(path, method) for path, methods in DESCRIPTION["paths"].items() for method in methods}


def test_description_has_no_dangling_reference() -> None:
    text = json.dumps(DESCRIPTION)
    named = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert named == set(DESCRIPTION["components"]["schemas"])


@pytest.mark.parametrize("name", sorted(DESCRIPTION["components"]["schemas"]))
def test_description_components_are_valid_schemas(name: str) -> None:
    jsonschema_rs.meta.validate(
        {"$schema": "https://json-schema.org/draft/2020-12/schema", **DESCRIPTION["components"]["schemas"][name]}
    )


@pytest.mark.parametrize("operation", api.OPERATIONS, ids=lambda operation: operation.name)
def test_description_lists_every_refusal_under_its_status(operation: Operation) -> None:
    responses = DESCRIPTION["paths"][operation.path][operation.method.lower()]["responses"]
    for code in operation.all_refusals:
        response = responses[str(code.status)]
        assert f"`{code.code}`" in response["description"]
        assert list(response["content"]) == ["application/problem+json"]


@pytest.mark.parametrize("operation", api.OPERATIONS, ids=lambda operation: operation.name)
def test_description_examples_match_their_schemas(operation: Operation) -> None:
    described = DESCRIPTION["paths"][operation.path][operation.method.lower()]
    for content in described.get("requestBody", {}).get("content", {}).values():
        validator = jsonschema_rs.Draft202012Validator(
            {**content["schema"], "components": DESCRIPTION["components"]}, validate_formats=True
        )
        for example in content["examples"].values():
            validator.validate(example["value"])


# Python's Unicode version and the checker's can differ.
_KNOWN = st.characters(exclude_categories=("Cs", "Cn"))
USERS = st.one_of(
    st.text(_KNOWN, max_size=130),
    st.text(st.sampled_from("a ü\u00a0\u200b\u2028\x7f\n\t\U0001f600é"), max_size=6),
)


@given(USERS)
def test_pattern_of_users_agrees_with_the_service(name: str) -> None:
    assert jsonschema_rs.is_valid(dict(USER_SCHEMA), name) == is_valid_user(name)


@given(st.one_of(st.text(max_size=130), st.text(st.sampled_from("aZ0_.@~=+-:%*ü \n"), max_size=8)))
def test_pattern_of_channels_agrees_with_the_service(name: str) -> None:
    try:
        checked = check_name(name, encoded=True) == name
    except ServiceError:
        checked = False
    assert jsonschema_rs.is_valid(dict(CHANNEL_SCHEMA), name) == checked
