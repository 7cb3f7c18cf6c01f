"""Publishing over HTTP: one or several events, retries, refusals, limits."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import pytest

from service.adapters.clock import SystemClock
from service.adapters.memory.broker import MemoryBroker
from service.core.broker import PublishResult
from service.core.event import Publication
from service.errors import ErrorCode, ServiceError
from service.web.problem import MAX_RETRY_AFTER
from tests.support.api_client import ask, get, head, post, raw, status_of
from tests.support.harness import API_KEY, DEADLINE, OTHER_API_KEY, Running, serving

EVENTS = "/channels/room:1/events"


def message(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"type": "chat.message", "data": {"text": text}, **more}


async def test_publish_reaches_subscribers_and_returns_the_position(server: Running) -> None:
    async with server.client() as ann:
        epoch = (await ann.subscribe("room:1"))["epoch"]
        published = await post(server, EVENTS, message(id="m-1"))
        assert published == {"id": "m-1", "epoch": epoch, "offset": 1, "duplicate": False}
        event = await ann.expect("chat.message", id="m-1", offset=1, data={"text": "hi"})
        assert event["from"] is None


async def test_publish_on_behalf_of_a_user(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        await post(server, EVENTS, message(**{"from": "Zoë of Ops"}))
        assert (await ann.until("chat.message"))["from"] == "Zoë of Ops"


async def test_publish_without_an_id_returns_a_new_one(server: Running) -> None:
    first, second = await post(server, EVENTS, message()), await post(server, EVENTS, message())
    assert first["id"] != second["id"]
    assert (first["offset"], second["offset"]) == (1, 2)


async def test_publish_of_latest_returns_rev_and_of_ephemeral_no_position(server: Running) -> None:
    pinned = await post(server, EVENTS, {"type": "chat.pinned", "data": {"slot": "top", "text": "x"}, "id": "p"})
    assert pinned == {"id": "p", "epoch": pinned["epoch"], "rev": 1, "duplicate": False}
    typing = await post(server, EVENTS, {"type": "chat.typing", "data": {}, "id": "t"})
    assert typing == {"id": "t", "duplicate": False}


async def test_publish_of_several_keeps_their_order(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        sent = [message(str(n)) for n in range(120)]
        sent[7] = {"type": "chat.message", "data": {"text": 1}}
        sent[8] = {"type": "chat.message"}
        results = (await post(server, EVENTS, sent))["results"]
        assert [result.get("offset") for result in results] == [*range(1, 8), None, None, *range(8, 119)]
        assert results[7]["error"]["code"] == "invalid_data"
        assert results[7]["error"]["details"]["path"] == "$.data.text"
        assert results[7]["error"]["retryable"] is False
        assert results[8]["error"]["code"] == "invalid_message"
        assert results[8]["error"]["details"]["path"] == "$.data"
        texts = [(await ann.until("chat.message"))["data"]["text"] for _ in range(118)]
        assert texts == [str(n) for n in range(120) if n not in (7, 8)]


async def test_publish_to_named_channels_reaches_each(server: Running) -> None:
    results = (
        await post(
            server,
            "/events",
            [
                message(channel="room:1"),
                message(channel="room:2"),
                message(),
                message(channel="nowhere:1"),
                message(channel="no such name"),
                {"type": "inbox.item", "channel": "inbox:ann", "data": None},
            ],
        )
    )["results"]
    assert [result.get("offset") for result in results] == [1, 1, None, None, None, 1]
    errors = [result["error"]["code"] for result in results if "error" in result]
    assert errors == ["invalid_message", "unknown_channel", "invalid_channel"]


async def test_publish_of_an_empty_array_succeeds(server: Running) -> None:
    assert await post(server, EVENTS, []) == {"results": []}
    assert await post(server, "/events", []) == {"results": []}


async def test_publish_with_leading_whitespace_succeeds(server: Running) -> None:
    answer = await ask(server, "POST", EVENTS, data=b'\r\n [{"type": "chat.typing", "data": {}}]')
    assert len(answer.body["results"]) == 1


# --- retries -----------------------------------------------------------------------------------------------------------


async def test_retry_after_a_lost_response_returns_the_first_result(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        body = json.dumps(message("once")).encode()
        async with raw(server) as (_, writer):
            writer.write(head(EVENTS, "Idempotency-Key: job-7", f"Content-Length: {len(body)}") + body)
            await ann.until("chat.message", id="job-7", offset=1)  # accepted; its response is never read
            writer.transport.abort()
        retried = await post(server, EVENTS, message("once"), idempotency_key="job-7")
        assert (retried["offset"], retried["duplicate"]) == (1, True)
        await ann.silence()


async def test_idempotency_key_numbers_several_events_from_0(server: Running) -> None:
    sent = [message("a"), message("b", id="own"), message("c")]
    first = (await post(server, EVENTS, sent, idempotency_key="k"))["results"]
    assert [result["id"] for result in first] == ["k.0", "own", "k.2"]
    again = (await post(server, EVENTS, sent, idempotency_key="k"))["results"]
    assert again == [{**result, "duplicate": True} for result in first]


async def test_longest_idempotency_key_fits_the_last_event(server: Running) -> None:
    sent = [{"type": "chat.typing", "data": {}}] * 1000
    results = (await post(server, EVENTS, sent, idempotency_key="k" * 60))["results"]
    assert results[-1] == {"id": f"{'k' * 60}.999", "duplicate": False}


async def test_id_is_a_duplicate_only_within_channel_and_sender(server: Running) -> None:
    await post(server, EVENTS, message(id="m"))
    for path, body, key in (
        ("/channels/room:2/events", message(id="m"), API_KEY),
        (EVENTS, message(id="m", **{"from": "ann"}), API_KEY),
        (EVENTS, message(id="m"), OTHER_API_KEY),
    ):
        assert (await post(server, path, body, key=key))["duplicate"] is False
    assert (await post(server, EVENTS, message(id="m")))["duplicate"] is True


@pytest.mark.parametrize("key", ["", "k" * 61, "a b", "ü"])
async def test_wrong_idempotency_key_is_refused(server: Running, key: str) -> None:
    answer = await ask(server, "POST", EVENTS, message(), headers={"Idempotency-Key": key})
    assert answer.refused(400, "invalid_request")["parameter"] == "Idempotency-Key"
    assert (await get(server, "/channels/room:1"))["offset"] == 0


async def test_two_idempotency_keys_are_refused(server: Running) -> None:
    async with raw(server) as (reader, writer):
        writer.write(head(EVENTS, "Idempotency-Key: a", "Idempotency-Key: b", "Content-Length: 2") + b"{}")
        assert await status_of(reader) == 400


class Flaky(MemoryBroker):
    """Refuses the publication of one id, once."""

    def __init__(self) -> None:
        super().__init__(
            SystemClock(), idempotency_window=300, idempotency_entries=1000, channels=100, max_bytes=1_000_000
        )
        self.refuse: str | None = None

    def start_publish(self, publication: Publication) -> Any:
        """Waits: None."""

    async def publish(self, publication: Publication) -> PublishResult:
        if publication.id == self.refuse:
            self.refuse = None
            raise ServiceError(ErrorCode.BROKER_UNAVAILABLE, "the broker does not answer")
        return await super().publish(publication)


async def test_publish_after_a_retryable_refusal_skips_the_rest() -> None:
    broker = Flaky()
    async with serving(broker=broker) as server:
        broker.refuse = "k.1"
        sent = [message(text) for text in "abc"]
        results = (await post(server, EVENTS, sent, idempotency_key="k"))["results"]
        assert results[0]["offset"] == 1
        assert [result["error"]["code"] for result in results[1:]] == ["broker_unavailable"] * 2
        assert all(result["error"]["retryable"] for result in results[1:])
        again = (await post(server, EVENTS, sent, idempotency_key="k"))["results"]
        assert [(result["offset"], result["duplicate"]) for result in again] == [(1, True), (2, False), (3, False)]
        events = (await get(server, "/channels/room:1/history"))["events"]
        assert [event["data"]["text"] for event in events] == ["a", "b", "c"]


async def test_publish_without_a_broker_answers_503_with_retry_after() -> None:
    broker = Flaky()
    async with serving(broker=broker) as server:
        broker.refuse = "m"
        answer = await ask(server, "POST", EVENTS, message(id="m"))
        answer.refused(503, "broker_unavailable")
        assert answer.body["retryable"] is True
        assert 1 <= int(answer.headers["Retry-After"]) <= MAX_RETRY_AFTER
        assert (await post(server, EVENTS, message(id="m")))["duplicate"] is False


# --- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "path"),
    [
        (b"", 400, "malformed", "$"),
        (b"{", 400, "malformed", "$"),
        (b'{"type": "chat.message", "data": {"text": "\xff"}}', 422, "invalid_data", "$.data"),
        (b'{"type": "chat.message", "data": NaN}', 400, "malformed", "$"),
        (b"[" * 100_000, 400, "malformed", "$"),
        (b'{"type": "chat.message", "data": ' + b"[" * 100_000, 400, "malformed", "$"),
        (b"7", 400, "invalid_message", "$"),
        (b"{}", 400, "invalid_message", "$.type"),
        (b'{"type": "chat.message"}', 400, "invalid_message", "$.data"),
        (b'{"type": 1, "data": {}}', 400, "invalid_message", "$.type"),
        (b'{"type": "chat.message", "data": {}, "dta": 1}', 400, "invalid_message", "$.dta"),
        (b'{"type": "chat.message", "data": {}, "channel": "room:2"}', 400, "invalid_message", "$.channel"),
        (b'{"type": "chat.message", "data": {}, "id": "a b"}', 400, "invalid_message", "$.id"),
        (b'{"type": "chat.message", "data": {}, "id": ""}', 400, "invalid_message", "$.id"),
        (b'{"type": "chat.message", "data": {"text": "x"}, "from": ""}', 400, "invalid_message", "$.from"),
        (b'{"type": "chat.message", "data": {"text": "x"}, "from": " a"}', 400, "invalid_message", "$.from"),
        (b'{"type": "chat.message", "data": {"text": "x"}, "from": "a\\nb"}', 400, "invalid_message", "$.from"),
        (b'{"type": "chat.nothing", "data": {}}', 404, "unknown_event", "$.type"),
        (b'{"type": "presence.joined", "data": {}}', 404, "unknown_event", "$.type"),
        (b'{"type": "chat.message", "data": {"text": 1}}', 422, "invalid_data", "$.data.text"),
        (b'{"type": "chat.message", "data": {"text": "\\ud800"}}', 400, "malformed", "$"),
        (b'{"type": "chat.pinned", "data": {"slot": "a", "text": "b"}, "key": "z"}', 422, "invalid_key", "$.key"),
        (b'{"type": "chat.typing", "data": {}, "key": "z"}', 422, "invalid_key", "$.key"),
    ],
)
async def test_publish_refusal_names_code_and_place(
    server: Running, body: bytes, status: int, code: str, path: str | None
) -> None:
    details = (await ask(server, "POST", EVENTS, data=body)).refused(status, code)
    if path is not None:
        assert details["path"] == path
    assert (await get(server, "/channels/room:1"))["offset"] == 0


async def test_publish_to_named_channels_takes_only_an_array(server: Running) -> None:
    (await ask(server, "POST", "/events", message(channel="room:1"))).refused(400, "invalid_message")


@pytest.mark.parametrize(
    ("channel", "status", "code"),
    [
        ("nowhere:1", 404, "unknown_channel"),
        ("room:*", 400, "invalid_channel"),
        ("room:%2A", 400, "invalid_channel"),
        ("room:1%0D%0AX", 400, "invalid_channel"),
        ("room:%C3%BC", 400, "invalid_channel"),
        ("room%253A1", 404, "unknown_channel"),  # a name encoded twice is one segment
        ("room:1%2Fevents", 400, "invalid_channel"),
        ("room:" + "x" * 200, 400, "invalid_channel"),
        ("room:%FF", 400, "invalid_request"),
    ],
)
async def test_publish_to_a_wrong_channel_refuses_the_whole_request(
    server: Running, channel: str, status: int, code: str
) -> None:
    answer = await ask(server, "POST", f"/channels/{channel}/events", [message()])
    assert answer.refused(status, code)["parameter"] == "channel"


async def test_channel_in_the_path_is_decoded_once(server: Running) -> None:
    await post(server, "/channels/room%3A1/events", message())
    assert (await get(server, "/channels/room:1"))["offset"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "nonsense"},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "deflate"},
    ],
)
async def test_publish_with_another_content_type_is_refused(server: Running, headers: dict[str, str]) -> None:
    body = json.dumps(message()).encode()
    named = {"Host": "tests", "Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json", **headers}
    lines = [f"POST /api/v1{EVENTS} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items())]
    async with raw(server) as (reader, writer):
        writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
        assert await status_of(reader) == 415
    assert (await get(server, "/channels/room:1"))["offset"] == 0


async def test_publish_with_a_charset_succeeds(server: Running) -> None:
    answer = await ask(server, "POST", EVENTS, message(), headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status == 200


async def test_publish_with_an_unknown_query_parameter_is_refused(server: Running) -> None:
    answer = await ask(server, "POST", f"{EVENTS}?idempotency_key=k", message())
    assert answer.refused(400, "invalid_request")["parameter"] == "idempotency_key"
    assert (await get(server, "/channels/room:1"))["offset"] == 0


# --- limits -----------------------------------------------------------------------------------------------------------


async def test_publish_of_more_than_1000_events_is_refused(server: Running) -> None:
    answer = await ask(server, "POST", EVENTS, [{"type": "chat.typing", "data": {}}] * 1001)
    assert answer.refused(400, "invalid_message")["limit"] == 1000
    assert (await server.metrics())['tidewire_limit_hits_total{limit="batch"}'] == 1


@pytest.mark.parametrize("chunked", [False, True])
async def test_publish_of_more_than_1_mib_is_refused(server: Running, chunked: bool) -> None:
    async def pieces() -> Any:
        for _ in range(17):
            yield b" " * 65_536

    async with server.http.post(
        f"{server.url}/api/v1{EVENTS}",
        data=pieces() if chunked else io.BytesIO(b" " * 1_048_577),
        headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
    ) as response:
        assert response.status == 413
        assert (await response.json(content_type=None))["code"] == "too_big"
    assert (await server.metrics())['tidewire_limit_hits_total{limit="message_bytes"}'] == 1


async def test_publish_of_exactly_1_mib_is_read(server: Running) -> None:
    body = json.dumps([message()]).encode()
    padded = b" " * (1_048_576 - len(body)) + body
    async with raw(server) as (reader, writer):
        writer.write(head(EVENTS, f"Content-Length: {len(padded)}") + padded)
        assert await status_of(reader) == 200
    assert (await get(server, "/channels/room:1"))["offset"] == 1


async def test_publish_of_data_above_message_bytes_is_refused() -> None:
    async with serving(limits={"message_bytes": 2048}) as server:
        details = (await ask(server, "POST", EVENTS, message("x" * 2048))).refused(413, "too_big")
        assert details == {"path": "$.data", "limit": 2048}
        assert (await post(server, EVENTS, message("x" * 2000)))["offset"] == 1


async def test_publish_with_a_late_body_answers_408() -> None:
    async with serving(deadlines={"body": 0.1}) as server:
        async with raw(server) as (reader, writer):
            writer.write(head(EVENTS, "Content-Length: 10") + b'{"type": ')
            assert await status_of(reader) == 408
            writer.write(b"}")  # otherwise aiohttp lingers for it
        assert (await server.metrics())['tidewire_limit_hits_total{limit="body_deadline"}'] == 1


async def test_publish_with_an_incomplete_body_publishes_nothing(server: Running) -> None:
    body = json.dumps(message()).encode()
    async with raw(server) as (_, writer):
        writer.write(head(EVENTS, f"Content-Length: {len(body)}") + body[:-1])
    name = 'tidewire_api_requests_total{method="POST",route="/api/v1/channels/{channel}/events",status="400"}'
    async with asyncio.timeout(DEADLINE):
        while name not in await server.metrics():
            pass  # a request gives the loop further iterations
    assert (await get(server, "/channels/room:1"))["offset"] == 0
