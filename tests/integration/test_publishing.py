"""Publishing over a connection: the gate, acks, idempotency, errors that name the place."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.support.harness import DEADLINE, Running


async def test_publish_repeated_with_its_id_is_accepted_once(server: Running) -> None:
    async with server.client() as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        message = {"type": "chat.message", "id": "m-1", "channel": "room:1", "data": {"text": "once"}}
        await ann.send(**message)
        assert await ann.until("ack") == {"type": "ack", "id": "m-1", "offset": 1}
        await ann.send(**message)
        assert await ann.until("ack") == {"type": "ack", "id": "m-1", "offset": 1, "duplicate": True}
        await ben.until("chat.message", id="m-1")
        await ben.silence()


async def test_publish_with_the_id_of_another_user_is_another_event(server: Running) -> None:
    async with server.client() as ann, server.client("ben") as ben:
        for client in (ann, ben):
            await client.subscribe("room:1")
            await client.send(type="chat.message", id="m-1", channel="room:1", data={"text": "x"})
        assert (await ben.until("ack"))["offset"] == 2


@pytest.mark.parametrize(
    ("message", "code", "path"),
    [
        ({"channel": "room:1", "type": "chat.message", "data": {"text": 1}}, "invalid_data", "$.data.text"),
        ({"channel": "room:1", "type": "chat.message", "data": {}}, "invalid_data", "$.data"),
        ({"channel": "room:1", "type": "chat.message", "data": {"text": "x", "y": 1}}, "invalid_data", "$.data"),
        ({"channel": "room:1", "type": "chat.mesage", "data": {}}, "unknown_event", "$.type"),
        ({"channel": "room:1", "type": "chat.pinned", "data": {"slot": "a", "text": "b"}}, "forbidden", None),
        ({"channel": "room:2", "type": "chat.message", "data": {"text": "x"}}, "not_subscribed", "$.channel"),
        ({"channel": "nowhere:1", "type": "chat.message", "data": {}}, "unknown_channel", "$.channel"),
        ({"channel": "room:1", "type": "chat.typing", "data": {}, "key": "k"}, "invalid_key", "$.key"),
        ({"channel": "room:1", "type": "chat.message"}, "invalid_message", "$.data"),
        ({"channel": "wall:1", "type": "wall.note", "data": {}}, "forbidden", None),
    ],
)
async def test_refusal_has_its_code_and_path(
    server: Running, message: dict[str, Any], code: str, path: str | None
) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        await ann.send(**message, id="bad")
        error = await ann.until("error")
        assert (error["id"], error["code"]) == ("bad", code)
        if path is not None:
            assert error["details"]["path"] == path
        await ann.silence()


async def test_batch_messages_are_accepted_one_by_one(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        good = {"type": "chat.message", "channel": "room:1", "data": {"text": "x"}}
        batch = [{**good, "id": "1"}, {"type": "nonsense", "id": "2"}, 3, {**good, "id": "4"}]
        await ann.raw(json.dumps(batch))
        replies: list[tuple[str | None, int | None, str | None]] = []
        while len(replies) < 4:
            message = await ann.receive()
            if message["type"] in ("ack", "error"):
                replies.append((message.get("id"), message.get("offset"), message.get("code")))
        assert replies == [("1", 1, None), ("2", None, "unknown_type"), (None, None, "invalid_message"), ("4", 2, None)]


async def test_binary_frame_is_refused_and_the_connection_stays(server: Running) -> None:
    async with server.client() as ann:
        await ann.ws.send_bytes(b"\x00\x01")
        assert (await ann.expect("error"))["code"] == "binary_refused"
        await ann.subscribe("room:1")


@pytest.mark.parametrize("frame", ["", "{", "[", "[1,", '"text"', "null", '{"type":"ping"} x', "[" * 3000])
async def test_invalid_message_gets_an_error(server: Running, frame: str) -> None:
    async with server.client() as ann:
        await ann.raw(frame)
        error = await ann.expect("error")
        assert error["code"] in ("malformed", "invalid_message")
        assert error["details"]["path"].startswith("$")
        await ann.silence()


async def test_events_of_one_publisher_have_dense_offsets_in_order(server: Running) -> None:
    async with server.client() as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        for start in range(0, 40, 8):
            await ben.raw(
                json.dumps(
                    [
                        {"type": "chat.message", "channel": "room:1", "data": {"text": str(number)}}
                        for number in range(start, start + 8)
                    ]
                )
            )
        got: list[tuple[int, str]] = []
        async with asyncio.timeout(DEADLINE):
            while len(got) < 40:
                event = await ann.until("chat.message")
                got.append((event["offset"], event["data"]["text"]))
        assert got == [(number + 1, str(number)) for number in range(40)]


async def test_ephemeral_events_have_neither_offset_nor_history(server: Running) -> None:
    async with server.client() as ann, server.client("ben") as ben:
        await ann.subscribe("room:1")
        await ben.subscribe("room:1")
        ack = await ben.ask("chat.typing", channel="room:1", data={})
        assert ack == {"type": "ack", "id": ack["id"]}
        event = await ann.until("chat.typing")
        assert not {"offset", "rev"} & event.keys()
        page = await ann.ask("history", channel="room:1")
        assert page["events"] == []


async def test_inbox_is_readable_by_its_owner_only(server: Running) -> None:
    async with server.client("ann") as ann, server.client("ben") as ben:
        await ann.subscribe("inbox:ann")
        assert (await ben.ask("subscribe", channel="inbox:ann"))["code"] == "forbidden"
        await server.publish("inbox:ann", {"type": "inbox.item", "data": {"n": 1}})
        assert (await ann.expect("inbox.item"))["from"] is None
