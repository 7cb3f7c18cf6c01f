"""The backend API through the clients: against a real service, and against one that fails as networks and proxies do."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import pickle
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from python_client_script import Losing
from service.errors import ErrorCode
from service.web.api.routes import OPERATIONS
from tests.support.examples import examples
from tests.support.harness import API_KEY, DEADLINE, SECRET, Running, serving, token
from tests.support.proxy import Proxy
from tests.support.webhook_api import QUIET, say, telling

import tidewire
from tidewire import (
    AsyncTidewire,
    AuthenticationError,
    ConfigurationError,
    ConflictError,
    ConnectionFailedError,
    DeadlineExceededError,
    ForbiddenError,
    InvalidRequestError,
    NewEvent,
    NotFoundError,
    Published,
    RateLimitedError,
    Refused,
    RetryPolicy,
    Tidewire,
    TidewireError,
    TokenSigner,
    TooManyWaitingError,
    UnexpectedResponseError,
)
from tidewire.codes import ERROR_CODES
from tidewire.errors import _HELP
from tidewire.http.flow import Deadline, Response, refusal

AT_ONCE = RetryPolicy(max_attempts=5, base=0.0)
HI = {"text": "hi"}


# --- every operation, against the real service ----------------------------------------------------------------------------


class _Recorder(httpx.AsyncHTTPTransport):
    """Notes which operations were called."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append((request.method, request.url.path))
        return await super().handle_async_request(request)


async def test_every_operation_of_the_api_has_a_method_with_a_typed_result() -> None:
    recorder = _Recorder()
    async with (
        serving(webhooks={"endpoints": [QUIET]}) as server,
        AsyncTidewire(server.url, api_key=API_KEY, token=token("ann"), transport=recorder) as client,
    ):
        first = await client.publish("room:1", "chat.message", HI, id="m-1", sender="ann")
        assert (first.id, first.offset, first.duplicate) == ("m-1", 1, False)
        assert (await client.publish("room:1", "chat.message", HI, id="m-1", sender="ann")).duplicate
        batch = await client.publish_many(
            [NewEvent("room:1", "chat.message", HI), NewEvent("no:1", "chat.message", HI)]
        )
        assert isinstance(batch[0], Published)
        assert isinstance(batch[1], Refused)
        assert batch[1].error.code == "unknown_channel"
        with pytest.raises(NotFoundError):
            batch.raise_for_refused()

        page = await client.history("room:1", after=0, limit=1)
        assert (page.events[0].id, page.events[0].sender, page.events[0].data) == ("m-1", "ann", HI)
        assert page.more
        assert page.position.offset == 2
        assert [event.offset async for event in client.iter_history("room:1", page=1)] == [1, 2]
        assert page.events[0].time.year >= 2026

        cursor = {"user": "ann"}
        value = await client.publish("doc:1", "doc.cursor", cursor, if_rev=0)
        with pytest.raises(ConflictError) as conflict:
            await client.publish("doc:1", "doc.cursor", cursor, if_rev=0)
        assert conflict.value.rev == value.rev
        state = await client.state("doc:1")
        assert [(event.key, event.rev, event.data) for event in state.state] == [("ann", value.rev, cursor)]
        removed = await client.remove_value("doc:1", "doc.cursor", "ann", if_rev=value.rev)
        assert removed.rev == (value.rev or 0) + 1

        async with server.client("ann") as ann:
            await ann.subscribe("room:1")
            presence = await client.presence("room:1")
            assert (presence.count, [member.user for member in presence.members or []]) == (1, ["ann"])
            assert await client.presence_counts(["room:1", "room:2"]) == {"room:1": 1, "room:2": 0}
            listed = await client.channels("room:")
            assert [(one.channel, one.subscribers) for one in listed.channels] == [("room:1", 1)]
            assert (await client.channel_info("room:1")).contract["presence"] is True
            assert (await client.subscribe_user("ann", "board:1")).subscriptions == 1
            assert (await client.unsubscribe_user("ann", "board:1")).subscriptions == 1
            assert (await client.disconnect_user("ann", reason="enough")).connections == 1
            assert await ann.closed() == 4403

        assert (await client.ticket()).ticket
        assert (await client.ticket(["room:1"], token=token("ben"))).expires_in > 0
        assert (await client.remove_event("room:1", "m-1")).offset == 1
        assert (await client.purge("room:1")).offset >= 2
        assert (await client.erase_user("ann")).removed == 0
        assert (await client.revoke_user("ann")).until > time.time()
        assert (await client.revoke_token("some-jti")).until > time.time()
        [endpoint] = (await client.webhooks()).endpoints
        assert (endpoint.endpoint, endpoint.sends, endpoint.queues[0].waiting) == ("archive", False, 0)
        assert (await client.webhook_entries("archive", 3)).entries == []
        assert (await client.webhook_dead_letters("archive")).dead_letters == []
        assert await client.replay_webhooks("archive", dead_letters=True) == 0
        assert await client.drop_webhooks("archive", dead_letters=True) == 0
        assert (await client.asyncapi())["asyncapi"].startswith("3.")
        assert (await client.openapi())["openapi"].startswith("3.")

    def fits(method: str, path: str, operation: str) -> bool:
        pattern, parts = operation.split("/"), path.split("/")
        return len(pattern) == len(parts) and all(
            want.startswith("{") or want == part for want, part in zip(pattern, parts, strict=True)
        )

    called = {(one.method, one.path) for one in OPERATIONS for request in recorder.requests
              if request[0] == one.method and fits(*request, one.path)}  # fmt: skip
    assert {(one.method, one.path) for one in OPERATIONS} == called


async def test_webhooks_are_read_and_replayed_page_by_page() -> None:
    async with telling(queues=1) as server, AsyncTidewire(server.url, api_key=API_KEY) as client:
        await say(server, "room:1", "a", "b", "c")
        found: list[str] = []
        after = None
        while len(found) < 3:
            page = await client.webhook_entries("archive", after=after, limit=2)
            found += [entry["event"]["data"]["text"] for entry in page.entries]
            after = page.next
        assert found == ["a", "b", "c"]
        at = (await client.webhooks()).at
        assert await client.replay_webhooks("archive", since=at + 60_000) == 0
        with pytest.raises(NotFoundError):
            await client.webhook_entries("none")
        with pytest.raises(InvalidRequestError):
            await client.webhook_entries("archive", after="yesterday")


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.replay_webhooks("archive"),
        lambda client: client.replay_webhooks("archive", since=1, dead_letters=True),
        lambda client: client.replay_webhooks("archive", ids="wh_q2V0pYH3c0Zl1cXo"),
        lambda client: client.drop_webhooks("archive"),
        lambda client: client.webhook_entries(""),
    ],
)
def test_webhooks_call_that_does_not_say_what_is_refused_before_it_is_sent(call: Callable[[Tidewire], Any]) -> None:
    with Tidewire("http://127.0.0.1:1", api_key=API_KEY) as client, pytest.raises(ConfigurationError):
        call(client)


async def test_signed_page_of_history_is_read_without_a_key(server: Running, client: AsyncTidewire) -> None:
    await client.publish_many([NewEvent("log:1", "log.entry", n) for n in range(150)])
    history = await client.history("log:1", limit=50)
    assert history.older is not None
    async with AsyncTidewire(server.url) as reader:
        page = await reader.history_page(history.older)
    assert (page.events[0].offset, len(page.events)) == (1, 100)
    with pytest.raises(ConfigurationError):
        await client.history_page("/api/v1/channels")


def test_both_clients_have_the_same_methods() -> None:
    def described(client: type) -> dict[str, Any]:
        return {
            name: (inspect.getdoc(method), list(inspect.signature(method).parameters))
            for name, method in vars(client).items()
            if callable(method) and not name.startswith("_")
        }

    assert described(Tidewire) == described(AsyncTidewire)


@pytest.mark.parametrize(
    ("call", "kind", "code"),
    [
        (lambda c: c.publish("nope:1", "chat.message", HI), NotFoundError, "unknown_channel"),
        (lambda c: c.publish("room:1", "chat.message", {"text": 5}), InvalidRequestError, "invalid_data"),
        (lambda c: c.publish("room 1", "chat.message", HI), InvalidRequestError, "invalid_channel"),
        (lambda c: c.remove_value("room:1", "chat.pinned", "a"), ForbiddenError, "forbidden"),
        (lambda c: c.history("board:1"), ConflictError, "no_history"),
        (lambda c: c.ticket(token="forged"), AuthenticationError, "invalid_token"),
    ],
)
async def test_refusal_is_an_error_with_code_status_and_help(
    client: AsyncTidewire, call: Callable[[AsyncTidewire], Any], kind: type[TidewireError], code: str
) -> None:
    with pytest.raises(kind) as refused:
        await call(client)
    assert isinstance(refused.value, tidewire.ApiError)
    assert (refused.value.code, refused.value.status) == (code, ERROR_CODES[code].status)
    assert refused.value.help.endswith(".")
    assert not refused.value.retryable
    again = pickle.loads(pickle.dumps(refused.value))
    assert (type(again), str(again), again.details) == (kind, str(refused.value), refused.value.details)


async def test_wrong_key_is_an_authentication_error(server: Running) -> None:
    async with AsyncTidewire(server.url, api_key="another-key-that-nobody-knows") as stranger:
        with pytest.raises(AuthenticationError) as refused:
            await stranger.channels()
    assert refused.value.code == "invalid_api_key"
    assert "api.key" in refused.value.help


def test_every_code_of_the_service_is_known_and_has_help() -> None:
    assert ERROR_CODES.keys() == {code.code for code in ErrorCode}
    own = {"connection_failed", "deadline_exceeded", "too_many_waiting", "unexpected_response", "events_missed"}
    assert _HELP.keys() - ERROR_CODES.keys() - own == {"no_calls", "not_connected"}
    for code in ERROR_CODES:
        assert TidewireError(code, "").help


# --- faults -------------------------------------------------------------------------------------------------------------


class Scripted(httpx.AsyncBaseTransport, httpx.BaseTransport):
    """Answers each request with the next of its answers: a response, or an exception. `requests` has what came."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        return self.handle_request(request)

    def sent(self) -> list[Any]:
        """The bodies."""
        return [json.loads(request.read()) for request in self.requests]


def problem(status: int, code: str, *, retryable: bool = False, **details: Any) -> httpx.Response:
    body = {"code": code, "detail": "because", "status": status, "retryable": retryable, "details": details}
    return httpx.Response(status, json=body, headers={"Content-Type": "application/problem+json"})


def accepted(id: str = "m", **fields: Any) -> httpx.Response:
    return httpx.Response(200, json={"id": id, "duplicate": False, "epoch": "e", "offset": 1, **fields})


def scripted(*answers: httpx.Response | Exception, **given: Any) -> tuple[Tidewire, Scripted]:
    transport = Scripted(*answers)
    options: dict[str, Any] = {"api_key": API_KEY, "retries": AT_ONCE, "transport": transport, **given}
    return Tidewire("http://service.test", **options), transport


def test_retries_send_the_same_id_and_end_with_the_first_success() -> None:
    client, transport = scripted(
        httpx.ConnectError("refused"),
        httpx.ReadError("cut"),
        problem(503, "broker_unavailable", retryable=True),
        httpx.Response(502, text="<html>bad gateway</html>"),
        accepted(),
    )
    assert client.publish("room:1", "chat.message", HI).offset == 1
    sent = transport.sent()
    assert len(sent) == 5
    assert all(body == sent[0] for body in sent)


def test_attempts_are_bounded_and_the_last_error_has_the_id_to_publish_again() -> None:
    client, transport = scripted(*[httpx.ReadError("cut")] * 9)
    with pytest.raises(ConnectionFailedError) as failed:
        client.publish("room:1", "chat.message", HI)
    assert len(transport.requests) == 5
    assert failed.value.event_id == transport.sent()[0]["id"]


def test_refusal_that_does_not_pass_is_not_repeated() -> None:
    client, transport = scripted(problem(403, "forbidden"))
    with pytest.raises(ForbiddenError):
        client.publish("room:1", "chat.message", HI)
    assert len(transport.requests) == 1


@pytest.mark.parametrize("retries", [1, AT_ONCE])
def test_retry_after_beyond_the_deadline_fails_at_once(retries: Any) -> None:
    limited = problem(429, "rate_limited", retryable=True, retry_after=3600.0)
    client, transport = scripted(limited, retries=retries)
    started = time.monotonic()
    with pytest.raises(RateLimitedError) as refused:
        client.channels()
    assert refused.value.retry_after == 3600.0
    assert time.monotonic() - started < 5
    assert len(transport.requests) == 1


def test_retry_after_within_the_deadline_is_waited_for() -> None:
    client, _ = scripted(problem(429, "rate_limited", retryable=True, retry_after=0.2), accepted())
    started = time.monotonic()
    client.publish("room:1", "chat.message", HI)
    assert time.monotonic() - started >= 0.2


@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("", None), ("-1", None), ("soon", None), ("9" * 400, None), ("٣", None)]
)
def test_retry_after_header_is_read_if_it_is_a_number(header: str, seconds: float | None) -> None:
    error = refusal(Response(503, {"retry-after": header}, b"no"))
    assert (error.retry_after, error.retryable) == (seconds, True)


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'{"id": 5}', b"\xff", b"null"])
def test_response_of_another_program_is_an_unexpected_response(body: bytes) -> None:
    client, transport = scripted(httpx.Response(200, content=body))
    with pytest.raises(UnexpectedResponseError, match="not that of a Tidewire service"):
        client.publish("room:1", "chat.message", HI)
    assert len(transport.requests) == 1


def test_redirect_is_not_followed() -> None:
    client, transport = scripted(httpx.Response(301, headers={"Location": "http://elsewhere.test/"}))
    with pytest.raises(UnexpectedResponseError, match="301"):
        client.channels()
    assert len(transport.requests) == 1


def test_response_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidewire.http.transport.MAX_RESPONSE_BYTES", 100)
    client, _ = scripted(httpx.Response(200, stream=httpx.ByteStream(b"x" * 200)))
    with pytest.raises(UnexpectedResponseError, match="more than 100 bytes"):
        client.channels()


@asynccontextmanager
async def silent_service() -> AsyncIterator[str]:
    """Accepts requests, and does not answer."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()


async def publish_late(kind: str, url: str) -> None:
    if kind == "sync":
        with Tidewire(url, api_key=API_KEY) as client:
            await asyncio.to_thread(client.publish, "room:1", "chat.message", HI, deadline=0.3)
    else:
        async with AsyncTidewire(url, api_key=API_KEY) as other:
            await other.publish("room:1", "chat.message", HI, deadline=0.3)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_call_without_an_answer_ends_at_its_deadline(kind: str) -> None:
    async with silent_service() as url:
        started = time.monotonic()
        with pytest.raises(DeadlineExceededError) as late:
            await publish_late(kind, url)
        assert time.monotonic() - started < DEADLINE / 2
        assert late.value.event_id
        assert late.value.retryable


async def test_connection_without_a_peer_does_not_use_up_the_deadline(server: Running) -> None:
    proxy = Proxy(int(server.url.rpartition(":")[2]))
    url = f"http://127.0.0.1:{await proxy.start()}"
    retries = RetryPolicy(1000, base=0.01, max_wait=0.01, attempt_timeout=0.2)
    async with AsyncTidewire(url, api_key=API_KEY, retries=retries) as client:
        await client.publish("room:1", "chat.message", HI)
        proxy.half_open("client")
        assert (await client.publish("room:1", "chat.message", HI, deadline=DEADLINE)).offset == 2
    await proxy.close()


async def test_calls_above_the_bound_fail_at_once() -> None:
    async with silent_service() as url, AsyncTidewire(url, api_key=API_KEY, max_waiting=3) as client:
        calls = [asyncio.create_task(client.channels(deadline=0.5)) for _ in range(5)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        kinds = sorted(type(result).__name__ for result in results)
        assert kinds == ["DeadlineExceededError"] * 3 + ["TooManyWaitingError"] * 2
        with pytest.raises(DeadlineExceededError):  # the places are free again
            await client.channels(deadline=0.1)
    assert issubclass(TooManyWaitingError, TidewireError)


# --- batches ------------------------------------------------------------------------------------------------------------


def results(*entries: str) -> httpx.Response:
    """`ok`, or the code of a refusal, for each event."""
    refusals = [
        {"error": {"code": entry, "message": "no", "details": {}, "retryable": ERROR_CODES[entry].retryable}}
        if entry != "ok" else {"id": "x", "duplicate": False}
        for entry in entries
    ]  # fmt: skip
    return httpx.Response(200, json={"results": refusals})


def batch(size: int) -> list[NewEvent]:
    return [NewEvent("room:1", "chat.message", {"text": str(n)}, id=f"m-{n}") for n in range(size)]


def test_batch_after_a_retryable_refusal_continues_there_in_order() -> None:
    client, transport = scripted(
        results("ok", "invalid_data", "broker_unavailable", "broker_unavailable"),
        httpx.ReadError("the reply is lost"),
        results("ok", "ok"),
    )
    found = client.publish_many(batch(4))
    assert [type(one).__name__ for one in found] == ["Published", "Refused", "Published", "Published"]
    assert [[event["id"] for event in body] for body in transport.sent()] == [
        ["m-0", "m-1", "m-2", "m-3"], ["m-2", "m-3"], ["m-2", "m-3"],
    ]  # fmt: skip
    assert repr(found) == "<BatchResult: 3 published, 1 refused>"


def test_batch_that_fails_on_the_way_tells_what_was_accepted() -> None:
    client, _ = scripted(results("ok", "broker_unavailable"), *[httpx.ReadError("cut")] * 5)
    found = client.publish_many(batch(2))
    assert [one.id for one in found.published] == ["x"]
    assert [(one.id, one.error.code) for one in found.refused] == [("m-1", "connection_failed")]
    client, _ = scripted(*[results("broker_unavailable")] * 9)
    assert [one.error.code for one in client.publish_many(batch(1)).refused] == ["broker_unavailable"]
    client, _ = scripted(*[httpx.ReadError("cut")] * 5)
    with pytest.raises(ConnectionFailedError):
        client.publish_many(batch(2))


def test_batch_is_split_by_number_and_by_size() -> None:
    client, transport = scripted(results(*["ok"] * 1000), results("ok"))
    assert len(client.publish_many(batch(1001)).published) == 1001
    large = [NewEvent("room:1", "chat.message", {"text": "x" * 400_000}) for _ in range(3)]
    client, transport = scripted(results("ok", "ok"), results("ok"))
    assert len(client.publish_many(large).published) == 3
    assert [len(body) for body in transport.sent()] == [2, 1]
    assert len(client.publish_many([])) == 0


def test_event_without_data_or_with_both_is_refused_before_it_is_sent() -> None:
    for wrong in ({}, {"data": 1, "removed": True}, {"removed": False}):
        with pytest.raises(ValueError, match="removed"):
            NewEvent("room:1", "chat.message", **wrong)
    assert NewEvent("doc:1", "doc.cursor", key="ann", removed=True).id
    assert NewEvent("room:1", "chat.message", None).data is None
    client, transport = scripted()
    with pytest.raises(ConfigurationError, match="cannot be encoded as JSON"):
        client.publish("room:1", "chat.message", {"text": object()})
    assert transport.requests == []


# --- secrets, options ---------------------------------------------------------------------------------------------------


async def test_no_secret_is_in_a_repr_a_log_or_an_error(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    user_token = token("ann")
    async with AsyncTidewire(server.url, api_key=API_KEY, token=user_token) as client:
        await client.publish("room:1", "chat.message", HI)
        ticket = await client.ticket()
        with pytest.raises(TidewireError) as refused:
            await client.publish("nope:1", "chat.message", HI)
        seen = [repr(client), repr(client._http.options), repr(vars(refused.value)), repr(ticket), caplog.text]
        seen.append(repr(TokenSigner(SECRET)))
    for text in seen:
        for secret in (API_KEY, user_token, ticket.ticket, SECRET):
            assert secret not in text
    with pytest.raises(ConfigurationError) as wrong:
        Tidewire("https://ann:a-password@events.test")
    assert "a-password" not in str(wrong.value)


@pytest.mark.parametrize(
    ("url", "http"),
    [
        ("https://events.test", "https://events.test"),
        ("wss://events.test/ws", "https://events.test"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("http://events.test/base/", "http://events.test/base"),
    ],
)
def test_url_of_every_form_is_understood(url: str, http: str) -> None:
    assert repr(Tidewire(url)) == f"Tidewire({http!r})"


@pytest.mark.parametrize(
    "url", ["", "events.test", "ftp://x", "http://", "http://x:99999", "http://x?a=1", "http://x#a"]
)
def test_wrong_url_is_refused_with_a_sentence(url: str) -> None:
    with pytest.raises(ConfigurationError, match="URL"):
        Tidewire(url)


@pytest.mark.parametrize(
    "options", [{"api_key": ""}, {"api_key": "a\nb"}, {"retries": -1}, {"deadline": 0}, {"max_waiting": 0}]
)
def test_wrong_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Tidewire("http://events.test", **options)


def test_missing_credential_is_a_configuration_error() -> None:
    with Tidewire("http://events.test") as client:
        with pytest.raises(ConfigurationError, match="api_key"):
            client.channels()
        with pytest.raises(ConfigurationError, match="token"):
            client.ticket()
    keyed = Tidewire("http://events.test", api_key=API_KEY)
    keyed.close()
    with pytest.raises(ConfigurationError, match="closed"):
        keyed.channels()


def test_environment_names_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.test:3128")
    monkeypatch.setenv("no_proxy", "inside.test")
    assert Tidewire("https://events.test")._http.options.proxy == "http://proxy.test:3128"
    monkeypatch.setenv("http_proxy", "http://proxy.test:3128")
    for url in ("https://inside.test", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost:8080"):
        assert Tidewire(url)._http.options.proxy is None
    assert Tidewire("https://events.test", trust_env=False)._http.options.proxy is None


# --- tokens -------------------------------------------------------------------------------------------------------------


async def test_signed_tokens_are_accepted_with_their_grants(server: Running) -> None:
    signer = TokenSigner(SECRET)
    signed = signer.token(
        "ann", grants=["room:1"], info={"name": "Ann"}, channels=["room:1"], jti="j-1", claims={"x": 1}
    )
    claims = jwt.decode(signed, SECRET, algorithms=["HS256"], audience="tidewire")
    assert (claims["jti"], claims["x"], claims["channels"]) == ("j-1", 1, ["room:1"])
    async with server.client(token_=signed) as ann:
        assert (await ann.until("subscribed"))["channel"] == "room:1"
        assert (await ann.ask("subscribe", channel="room:2"))["code"] == "forbidden"
        granted = signer.subscription_token("ann", "room:2", rights=["subscribe"])
        assert (await ann.ask("subscribe", channel="room:2", token=granted))["type"] == "subscribed"
        assert (await ann.ask("history", channel="room:2"))["code"] == "forbidden"


def test_token_that_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="32 bytes"):
        TokenSigner("short")
    wrongs: tuple[dict[str, Any], ...] = ({"grants": "room:*"}, {"channels": "room:1"})
    for wrong in wrongs:
        with pytest.raises(ConfigurationError, match="lists"):
            TokenSigner(SECRET).token("ann", **wrong)
    with pytest.raises(ConfigurationError, match="user"):
        TokenSigner(SECRET).token("")


# --- properties ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200), st.integers(300, 599), st.dictionaries(st.just("retry-after"), st.text(max_size=8)))
@settings(max_examples=examples(200))
def test_any_refusal_becomes_an_error(body: bytes, status: int, headers: dict[str, str]) -> None:
    error = refusal(Response(status, headers, body))
    assert isinstance(error, TidewireError)
    assert error.retry_after is None or error.retry_after >= 0


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 100), st.none() | st.floats(0, 1e6))
@settings(max_examples=examples(200))
def test_wait_is_bounded_and_never_shorter_than_asked(random: float, attempt: int, asked: float | None) -> None:
    wait = RetryPolicy(random=lambda: random).wait(attempt, asked)
    assert 0 <= wait <= 5.0 if asked is None else asked <= wait <= asked + 1.0


def test_deadline_counts_down() -> None:
    now = 5.0
    deadline = Deadline(2.0, lambda: now)
    now = 6.5
    assert deadline.left == 0.5


# --- together: nothing lost, nothing twice ------------------------------------------------------------------------------


async def test_sync_client_in_ten_threads_with_cuts_and_lost_replies_loses_and_repeats_nothing(server: Running) -> None:
    proxy = Proxy(int(server.url.rpartition(":")[2]))
    url = f"http://127.0.0.1:{await proxy.start()}"

    def work(client: Tidewire, thread: int) -> list[str]:
        return [client.publish("news:1", "news.flash", n, id=f"{thread}.{n}", deadline=DEADLINE).id for n in range(20)]

    try:
        retries = RetryPolicy(100, base=0.01, max_wait=0.05)
        with (
            Tidewire(url, api_key=API_KEY, retries=retries, transport=Losing()) as client,
            ThreadPoolExecutor(10) as pool,
        ):
            running = [asyncio.wrap_future(pool.submit(work, client, thread)) for thread in range(10)]
            async with asyncio.timeout(DEADLINE * 2):
                while not all(one.done() for one in running):
                    proxy.cut()
                    proxy.heal()
                    await asyncio.wait(running, timeout=0.03)
            found = await asyncio.gather(*running)
    finally:
        await proxy.close()
    assert found == [[f"{thread}.{n}" for n in range(20)] for thread in range(10)]
    async with AsyncTidewire(server.url, api_key=API_KEY) as reader:
        assert (await reader.channel_info("news:1")).offset == 200, "each event is stored once"
