"""JSON with a key twice is refused behind every door, and nothing of it is done."""

from __future__ import annotations

import json
from typing import Any

import aiohttp
import pytest

from tests.support.harness import API_KEY, Running

TWICE = '{"text":"a","text":"b"}'
ESCAPED = '{"text":"a","\\u0074ext":"b"}'


async def ask(server: Running, path: str, body: str) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    async with server.http.post(f"{server.url}/api/v1{path}", data=body, headers=headers) as response:
        return response.status, await response.json(content_type=None)


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        (f'{{"type":"chat.message","id":"m","channel":"room:1","data":{TWICE}}}', "$.data.text"),
        (f'{{"type":"chat.message","id":"m","channel":"room:1","data":{ESCAPED}}}', "$.data.text"),
        (f'{{ "type":"chat.message","id":"m","channel":"room:1","data": {TWICE} }}', "$.data.text"),
        ('{"type":"chat.message","id":"m","channel":"room:1","data":{"text":"a"},"data":{"text":"b"}}', "$.data"),
        ('{"type":"chat.message","id":"m","channel":"room:2","channel":"room:1","data":{"text":"a"}}', "$.channel"),
        ('{"type":"history","id":"m","channel":"room:1","limit":1,"limit":2}', "$.limit"),
    ],
)
async def test_websocket_message_with_a_key_twice_is_refused(server: Running, frame: str, path: str) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        for sent in (frame, f"[{frame}]"):
            await ann.raw(sent)
            error = await ann.expect("error", id="m", code="malformed")
            assert error["details"]["path"] == path
        await ann.silence()
        published = await server.publish("room:1", {"type": "chat.message", "data": {"text": "x"}})
        assert published["offset"] == 1, "nothing was published before"


async def test_hello_with_a_key_twice_is_refused(server: Running) -> None:
    async with server.client(hello=False) as client:
        await client.raw('{"type":"hello","token":"a","token":"b"}')
        await client.expect("error", code="malformed")
        assert await client.closed() == 4400


@pytest.mark.parametrize(
    ("path", "body", "where"),
    [
        ("/channels/room:1/events", f'{{"type": "chat.message", "data": {TWICE}}}', "$.data.text"),
        ("/channels/room:1/events", '{"type": "chat.message", "type": "chat.typing", "data": {"text": "x"}}', "$.type"),
        ("/users/ann/disconnect", '{"reason": "a", "reason": "b"}', "$.reason"),
        ("/users/ann/subscribe", '{"channel": "room:1", "channel": "room:2"}', "$.channel"),
        ("/users/ann/unsubscribe", '{"channel": "room:1", "channel": "room:2"}', "$.channel"),
        ("/users/ann/revoke", '{"before": 1, "before": 2}', "$.before"),
        ("/users/ann/revoke", '{"nothing": 1, "nothing": 2}', "$.nothing"),
        ("/tokens/revoke", '{"jti": "a", "jt\\u0069": "b"}', "$.jti"),
    ],
)
async def test_http_body_with_a_key_twice_is_refused(server: Running, path: str, body: str, where: str) -> None:
    status, problem = await ask(server, path, body)
    assert (status, problem["code"], problem["details"]["path"]) == (400, "malformed", where)


@pytest.mark.parametrize("path", ["/events", "/channels/room:1/events"])
async def test_only_the_event_with_a_key_twice_is_refused_of_several(server: Running, path: str) -> None:
    channel = '"channel": "room:1", ' if path == "/events" else ""
    bodies = [
        f'{{{channel}"type": "chat.message", "data": {data}}}' for data in ('{"text": "x"}', TWICE, '{"text": "y"}')
    ]
    status, answer = await ask(server, path, f"[{','.join(bodies)}]")
    assert status == 200
    first, refused, last = answer["results"]
    assert (first["offset"], last["offset"]) == (1, 2)
    assert (refused["error"]["code"], refused["error"]["details"]) == ("malformed", {"path": "$.data.text"})


async def test_event_is_delivered_as_it_was_sent(server: Running) -> None:
    """What no key stands twice in goes out byte by byte, whatever its spelling."""
    async with server.client() as ann:
        await ann.subscribe("room:1")
        data = '{ "text" : "\\u0061\\"a\\":1 \u00e9" }'
        status, _ = await ask(server, "/channels/room:1/events", f'{{"type": "chat.message", "data": {data}}}')
        assert status == 200
        message = await ann.ws.receive()
        assert message.type is aiohttp.WSMsgType.TEXT
        assert data in message.data
        assert json.loads(data)["text"] == 'a"a":1 \u00e9'
