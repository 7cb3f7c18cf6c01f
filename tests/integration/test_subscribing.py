"""Joining, leaving, ready, resuming, history."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.harness import API_KEY, Running, serving, token


def texts(messages: list[dict[str, Any]]) -> list[str]:
    return [message["data"]["text"] for message in messages]


async def say(server: Running, *lines: str, channel: str = "room:1") -> list[dict[str, Any]]:
    answer = await server.publish(channel, [{"type": "chat.message", "data": {"text": line}} for line in lines])
    return list(answer["results"])


async def test_subscriber_gets_events_published_after_subscribed(server: Running) -> None:
    async with server.client("ann") as ann, server.client("ben") as ben:
        reply = await ann.subscribe("room:1")
        assert (reply["offset"], reply["events"], reply["state"]) == (0, [], [])
        assert "last" not in reply
        assert "recovered" not in reply
        await ben.subscribe("room:1")
        ack = await ben.ask("chat.message", channel="room:1", data={"text": "hi"})
        assert ack == {"type": "ack", "id": ack["id"], "offset": 1}
        event = await ann.until("chat.message")
        assert event | {"at": 0} == {
            "type": "chat.message",
            "channel": "room:1",
            "id": ack["id"],
            "at": 0,
            "from": "ben",
            "data": {"text": "hi"},
            "offset": 1,
        }
        assert event["at"] > 1_700_000_000_000


async def test_publisher_gets_its_own_events(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        await ann.send(type="chat.message", channel="room:1", data={"text": "me"})
        assert (await ann.until("chat.message"))["from"] == "ann"


async def test_no_event_follows_unsubscribed(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        reply = await ann.ask("unsubscribe", channel="room:1")
        assert reply == {"type": "unsubscribed", "channel": "room:1", "code": "requested", "id": reply["id"]}
        await say(server, "unheard")
        await ann.silence()
        again = await ann.ask("unsubscribe", channel="room:1")
        assert (again["type"], again["code"]) == ("error", "not_subscribed")


@pytest.mark.parametrize(
    ("channel", "code"),
    [
        ("room:*", "invalid_channel"),
        ("room:1\r\nx", "invalid_channel"),
        ("room:", "invalid_channel"),
        ("x" * 200, "invalid_channel"),
        ("nowhere:1", "unknown_channel"),
        ("room:1:2", "unknown_channel"),
        ("inbox:ben", "forbidden"),
    ],
)
async def test_refused_subscribe_has_a_code_and_changes_nothing(server: Running, channel: str, code: str) -> None:
    async with server.client() as ann:
        reply = await ann.ask("subscribe", channel=channel)
        assert (reply["type"], reply["code"], reply["retryable"]) == ("error", code, False)
        await ann.subscribe("room:1")


@pytest.mark.parametrize(
    ("channel", "suggestion"),
    [
        ("romm:1", "room:{room}"),
        ("room", "room:{room}"),
        ("room:1:2", "room:{room}"),
        ("nowhere:1", None),
        ("r" * 60 + ":1", None),
    ],
)
async def test_unknown_channel_suggests_the_pattern_with_a_like_name(
    server: Running, channel: str, suggestion: str | None
) -> None:
    async with server.client() as ann:
        reply = await ann.ask("subscribe", channel=channel)
        assert (reply["code"], reply["details"].get("suggestion")) == ("unknown_channel", suggestion)


async def test_subscribing_twice_is_refused(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        reply = await ann.ask("subscribe", channel="room:1")
        assert reply["code"] == "already_subscribed"
        await say(server, "once")
        assert (await ann.until("chat.message"))["offset"] == 1
        await ann.silence()


class TestReady:
    async def test_pending_subscription_gets_all_events_after_ready(self, server: Running) -> None:
        await say(server, "before")
        async with server.client(ready=False) as ann:
            await ann.send(type="subscribe", id="s", channel="room:1")
            await ann.silence()
            await say(server, "one", "two")
            await ann.silence()
            await ann.send(type="ready")
            reply = await ann.expect("subscribed", id="s")
            assert texts(reply["events"]) == ["one", "two"], "what came since the join, not the history"
            assert (reply["offset"], reply["recovered"]) == (3, True)
            await say(server, "three")
            assert (await ann.until("chat.message"))["offset"] == 4

    async def test_pending_subscription_beside_a_live_member_misses_no_event(self, server: Running) -> None:
        async with server.client() as ann, server.client(ready=False) as ben:
            await ann.subscribe("news:1")
            await ben.send(type="subscribe", id="s", channel="news:1")
            await ben.silence()
            await server.publish("news:1", {"type": "news.flash", "data": {}})
            await ann.expect("news.flash", offset=1)
            await ben.send(type="ready")
            reply = await ben.expect("subscribed", id="s")
            assert [event["offset"] for event in reply["events"]] == [1]

    async def test_refusal_is_sent_before_ready(self, server: Running) -> None:
        async with server.client(ready=False) as ann:
            assert (await ann.ask("subscribe", channel="nowhere:1"))["code"] == "unknown_channel"

    async def test_channels_in_the_address_are_pending_until_ready(self, server: Running) -> None:
        ticket = await _ticket(server)
        query = f"?ticket={ticket}&channels=room:1,board:main"
        async with server.client(hello=False, ready=False, query=query) as ann:
            await say(server, "one")
            await server.publish("board:main", {"type": "ticker.price", "data": {"symbol": "A", "price": 1}})
            await ann.silence()
            await ann.send(type="ready")
            room = await ann.expect("subscribed", channel="room:1", id=None)
            assert texts(room["events"]) == ["one"]
            board = await ann.expect("subscribed", channel="board:main")
            assert [event["data"] for event in board["state"]] == [{"symbol": "A", "price": 1}]

    async def test_gap_larger_than_the_stream_is_not_recovered(self, server: Running) -> None:
        async with server.client(ready=False) as ann:
            await ann.send(type="subscribe", id="s", channel="room:1")
            await ann.silence()
            await say(server, *(str(number) for number in range(60)))
            await ann.send(type="ready")
            reply = await ann.expect("subscribed", id="s")
            assert (reply["recovered"], reply["events"], reply["offset"]) == (False, [], 60)

    async def test_second_ready_changes_nothing(self, server: Running) -> None:
        async with server.client() as ann:
            await ann.subscribe("room:1")
            await ann.send(type="ready")
            await ann.silence()


async def _ticket(server: Running) -> str:
    headers = {"Authorization": f"Bearer {token()}"}
    async with server.http.post(f"{server.url}/tickets", headers=headers) as response:
        assert response.status == 201
        return str((await response.json())["ticket"])


class TestResume:
    async def test_resume_delivers_missed_events_once_in_order(self, server: Running) -> None:
        async with server.client() as ann:
            epoch = (await ann.subscribe("room:1"))["epoch"]
        sent = await say(server, "one", "two", "three")
        async with server.client() as ann:
            since = {"epoch": epoch, "offset": 1, "id": sent[0]["id"]}
            reply = await ann.subscribe("room:1", since=since)
            assert (reply["recovered"], texts(reply["events"])) == (True, ["two", "three"])
            assert (reply["offset"], reply["last"]) == (3, sent[2]["id"])
            await say(server, "four")
            assert (await ann.until("chat.message"))["offset"] == 4

    async def test_resume_from_offset_zero_replays_everything(self, server: Running) -> None:
        async with server.client() as ann:
            epoch = (await ann.subscribe("room:1"))["epoch"]
            await say(server, "one")
            reply = await ann.ask("unsubscribe", channel="room:1")
            assert reply["type"] == "unsubscribed"
            reply = await ann.subscribe("room:1", since={"epoch": epoch, "offset": 0})
            assert (reply["recovered"], texts(reply["events"])) == (True, ["one"])

    async def test_resume_at_the_head_replays_nothing(self, server: Running) -> None:
        sent = await say(server, "one")
        async with server.client() as ann:
            since = {"epoch": sent[0]["epoch"], "offset": 1, "id": sent[0]["id"]}
            reply = await ann.subscribe("room:1", since=since)
            assert (reply["recovered"], reply["events"]) == (True, [])

    @pytest.mark.parametrize("change", [{"epoch": "another"}, {"id": "another"}, {"offset": 9}])
    async def test_position_of_another_stream_is_not_recovered(self, server: Running, change: dict[str, Any]) -> None:
        sent = await say(server, "one", "two")
        since = {"epoch": sent[0]["epoch"], "offset": 1, "id": sent[0]["id"]} | change
        async with server.client() as ann:
            reply = await ann.subscribe("room:1", since=since)
            assert (reply["recovered"], reply["events"], reply["offset"]) == (False, [], 2)

    async def test_gap_larger_than_a_reply_is_not_recovered_and_can_be_paged(self) -> None:
        async with serving(outbox={"recovery_bytes": 1024}) as server:
            sent = await say(server, "first", *["x" * 400] * 5)
            async with server.client() as ann:
                since = {"epoch": sent[0]["epoch"], "offset": 1, "id": sent[0]["id"]}
                reply = await ann.subscribe("room:1", since=since)
                assert reply["recovered"] is False
                got: list[int] = []
                more = True
                while more:
                    page = await ann.ask("history", channel="room:1", after=got[-1] if got else 1)
                    got += [event["offset"] for event in page["events"]]
                    more = page["more"]
                assert got == [2, 3, 4, 5, 6]


class TestHistory:
    async def test_history_pages_in_both_directions(self, server: Running) -> None:
        await say(server, *(str(number) for number in range(1, 11)))

        async with server.client() as ann:

            async def page(**query: int) -> tuple[list[int], bool]:
                reply = await ann.ask("history", channel="room:1", **query)
                assert (reply["type"], reply["offset"]) == ("history", 10)
                return [event["offset"] for event in reply["events"]], reply["more"]

            assert await page(limit=3) == ([8, 9, 10], True)
            assert await page(limit=3, before=3) == ([1, 2], False)
            assert await page(limit=3, after=2) == ([3, 4, 5], True)
            assert await page(after=8) == ([9, 10], False)
            assert await page(after=2, before=5) == ([3, 4], False)

    async def test_history_needs_the_right_and_a_channel_with_history(self, server: Running) -> None:
        grants = [{"channel": "room:*", "rights": ["subscribe"]}]
        async with server.client(grants=grants) as ann:
            await ann.subscribe("room:1")
            assert (await ann.ask("history", channel="room:1"))["code"] == "forbidden"
            assert (await ann.ask("presence", channel="room:1"))["code"] == "forbidden"
            assert (await ann.ask("history", channel="board:1"))["code"] == "no_history"
            assert (await ann.ask("presence", channel="board:1"))["code"] == "no_presence"


async def test_latest_events_are_sent_as_snapshot_then_changes(server: Running) -> None:
    async def price(symbol: str, value: float) -> None:
        await server.publish("board:1", {"type": "ticker.price", "data": {"symbol": symbol, "price": value}})

    await price("A", 1)
    await price("B", 1)
    await price("A", 2)
    async with server.client() as ann:
        reply = await ann.subscribe("board:1")
        assert [(event["key"], event["rev"], event["data"]["price"]) for event in reply["state"]] == [
            ("B", 2, 1),
            ("A", 3, 2),
        ]
        await price("B", 5)
        event = await ann.expect("ticker.price", key="B", rev=4)
        assert "offset" not in event


async def test_changes_within_a_window_are_one_frame(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("board:1")
        events = [
            {"type": "ticker.price", "data": {"symbol": s, "price": p}} for s, p in [("A", 1), ("B", 2), ("A", 3)]
        ]
        await server.publish("board:1", events)  # the first goes at once or takes the others of its tick along
        seen: dict[str, float] = {}
        while seen != {"A": 3, "B": 2}:
            event = await ann.expect("ticker.price")
            seen[event["key"]] = event["data"]["price"]
        await ann.silence()


async def test_backend_unsubscribes_a_user(server: Running) -> None:
    async with server.client() as ann:
        await ann.subscribe("room:1")
        async with server.http.post(
            f"{server.url}/api/v1/users/ann/unsubscribe",
            json={"channel": "room:1"},
            headers={"Authorization": f"Bearer {API_KEY}"},
        ) as response:
            assert response.status == 200
        await ann.expect("unsubscribed", channel="room:1", code="removed")
        await say(server, "unheard")
        await ann.silence()
