"""Every door asks who comes: each route and each command is in a matrix here. Floods of the doors are bounded and counted."""

from __future__ import annotations

from typing import Any

import pytest

from service.protocol import messages
from service.realtime.session.commands import HANDLERS
from tests.support.harness import API_KEY, Running, serving, token
from tests.support.raw import connected
from tests.support.streams import Poller, authorization, refusal, stream, stream_ticket

OPEN = "nobody has to say who they are"
USER = "a token of a user"
KEY = "an API key"
ADDRESS = "the signed address of a page"
DOORS = {
    ("GET", "/ws"): OPEN,  # a client may authenticate by `hello`
    ("POST", "/stream"): USER,
    ("GET", "/sse"): USER,
    ("POST", "/poll"): USER,
    ("POST", "/emit"): USER,
    ("POST", "/call"): USER,
    ("GET", "/history"): USER,
    ("GET", "/history/{address}"): ADDRESS,
    ("POST", "/tickets"): USER,
    ("GET", "/api/v1/openapi.json"): OPEN,
    ("GET", "/api/v1/asyncapi.json"): KEY,
    ("POST", "/api/v1/events"): KEY,
    ("POST", "/api/v1/channels/{channel}/events"): KEY,
    ("DELETE", "/api/v1/channels/{channel}/events/{id}"): KEY,
    ("GET", "/api/v1/channels"): KEY,
    ("GET", "/api/v1/channels/{channel}"): KEY,
    ("GET", "/api/v1/channels/{channel}/history"): KEY,
    ("GET", "/api/v1/channels/{channel}/state"): KEY,
    ("DELETE", "/api/v1/channels/{channel}/history"): KEY,
    ("GET", "/api/v1/channels/{channel}/presence"): KEY,
    ("POST", "/api/v1/presence/counts"): KEY,
    ("POST", "/api/v1/users/{user}/disconnect"): KEY,
    ("POST", "/api/v1/users/{user}/unsubscribe"): KEY,
    ("POST", "/api/v1/users/{user}/subscribe"): KEY,
    ("POST", "/api/v1/users/{user}/revoke"): KEY,
    ("DELETE", "/api/v1/users/{user}"): KEY,
    ("POST", "/api/v1/tokens/revoke"): KEY,
    ("GET", "/api/v1/webhooks"): KEY,
    ("GET", "/api/v1/webhooks/{endpoint}/entries"): KEY,
    ("GET", "/api/v1/webhooks/{endpoint}/dead-letters"): KEY,
    ("POST", "/api/v1/webhooks/{endpoint}/replay"): KEY,
    ("POST", "/api/v1/webhooks/{endpoint}/drop"): KEY,
}
"""Who is let in at each route of the public listener."""
FORBIDDEN: dict[type[messages.Command], tuple[dict[str, Any], str]] = {
    messages.Hello: ({"type": "hello"}, "invalid_message"),
    messages.Subscribe: ({"type": "subscribe", "channel": "room:1"}, "forbidden"),
    messages.Unsubscribe: ({"type": "unsubscribe", "channel": "room:1"}, "not_subscribed"),
    messages.History: ({"type": "history", "channel": "room:1"}, "forbidden"),
    messages.Presence: ({"type": "presence", "channel": "room:1"}, "forbidden"),
    messages.PresenceUpdate: ({"type": "presence.update", "channel": "shelf:1", "data": {}}, "forbidden"),
    messages.Refresh: ({"type": "refresh", "token": "forged"}, "invalid_token"),
    messages.Call: ({"type": "call", "call": "order.quote", "data": {}}, "unknown_call"),
    messages.Publish: ({"type": "chat.message", "channel": "room:1", "data": {"text": "x"}}, "forbidden"),
    messages.Remove: ({"type": "chat.pinned", "channel": "room:1", "key": "a", "removed": True}, "forbidden"),
}
"""What a client without rights gets for each command that needs one."""
HARMLESS = {messages.Ready, messages.Ping}


def routes(server: Running) -> set[tuple[str, str]]:
    return {
        (route.method, route.resource.canonical)
        for route in server.service.public.router.routes()
        if route.method not in ("OPTIONS", "HEAD") and route.resource is not None
    }


async def test_every_route_is_in_the_matrix_and_asks_for_its_credentials(server: Running) -> None:
    assert routes(server) == DOORS.keys()
    offers = {OPEN: {}, USER: authorization(), KEY: {"Authorization": f"Bearer {API_KEY}"}}
    for (method, path), wanted in DOORS.items():
        if wanted is OPEN:
            continue
        address = path.format(channel="room:1", id="e", user="ann", address="forged", endpoint="archive")
        for offered in offers:
            if offered is wanted:
                continue
            status, problem = await refusal(server, method, address, headers=offers[offered], json={})
            codes = {"unauthenticated", "invalid_token", "invalid_api_key"}
            expected = (403, {"invalid_address"}) if wanted is ADDRESS else (401, codes)
            assert (status, problem["code"] in expected[1]) == (expected[0], True), (
                method,
                path,
                offered,
                problem,
            )


async def test_every_command_is_in_the_matrix_and_asks_for_its_right(server: Running) -> None:
    assert FORBIDDEN.keys() | HARMLESS == HANDLERS.keys()
    async with server.client("ann", grants=[]) as ann:
        for number, (command, code) in enumerate(FORBIDDEN.values()):
            await ann.send(**{**command, "id": f"c-{number}"})
            reply = await ann.until("error", id=f"c-{number}")
            assert reply["code"] == code, (command, reply)


@pytest.mark.parametrize("path", ["/stream", "/poll", "/emit", "/call", "/tickets"])
async def test_slow_body_is_not_awaited_before_the_credentials_and_only_for_a_time_after_them(path: str) -> None:
    async with serving(deadlines={"body": 0.2}, outbox={"close_grace": 0.1}) as server:
        for headers, status in (("", 401), (f"Authorization: Bearer {token()}\r\n", 408)):
            async with connected(server) as raw:
                head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/json\r\n"
                raw.write(f"{head}Content-Length: 1000\r\n\r\n ".encode())
                assert (await raw.answer()).status == status
                await raw.gone()
        await server.at_rest()


async def test_forged_expired_and_foreign_receipts_are_counted_and_leave_nothing(server: Running) -> None:
    foreign = Poller(headers=authorization(tenant="other"))
    await foreign.poll(server, "room:1")
    other = Poller("ben")
    await other.poll(server, "room:1")
    receipts = [foreign.receipt, other.receipt, "v1.e30=.forged", "x" * 10_000]
    event = {"type": "chat.message", "channel": "room:1", "id": "m", "data": {"text": "x"}}
    for number in range(20):
        receipt = receipts[number % len(receipts)]
        for path, body in (("/poll", {"receipt": receipt}), ("/emit", {**event, "receipt": receipt})):
            status, problem = await refusal(server, "POST", path, json=body, headers=authorization())
            assert (status, problem["code"]) == (403, "invalid_receipt")
    for door in ("poll", "emit"):
        labels = {"cause": "client", "door": door, "reason": "invalid_receipt"}
        assert await server.metric("upgrade_refusals_total", **labels) == 20
    assert await server.metric("connections") == await server.metric("poll_sessions") == 2
    assert await foreign.poll(server, wait=0) == await other.poll(server, wait=0) == []


async def test_flood_of_receipts_and_tickets_costs_only_the_flooder() -> None:
    rate = {"per_second": 0.1, "burst": 20}
    limits = {"user_rate": rate, "connect_rate_per_ip": {"per_second": 0.1, "burst": 10}}
    async with serving(limits=limits, proxy={"hops": 1}) as server:
        far, near = {"X-Forwarded-For": "192.0.2.1"}, {"X-Forwarded-For": "192.0.2.2"}
        codes: list[str] = []
        for _ in range(25):
            body = {"receipt": "forged"}
            _, problem = await refusal(server, "POST", "/poll", json=body, headers=authorization() | far)
            codes.append(problem["code"])
        assert codes == ["invalid_receipt"] * 20 + ["rate_limited"] * 5
        codes.clear()
        for number in range(15):
            _, problem = await refusal(server, "GET", f"/sse?ticket=forged-{number}", headers=far)
            codes.append(problem["code"])
        assert (codes[0], codes[-1]) == ("invalid_ticket", "rate_limited")
        poller = Poller("ben", authorization("ben") | near)
        await poller.poll(server, "room:1")
        assert await poller.poll(server, wait=0) == []
        assert await server.metric("connections") == 1


async def test_streams_polls_and_sockets_of_a_user_share_one_cap() -> None:
    async with serving(limits={"connections_per_user": 3}) as server:
        poller = Poller()
        await poller.poll(server, "room:1")
        async with stream(server, "room:1"), server.client("ann"):
            body = {"subscriptions": [{"channel": "room:1"}]}
            for method, path, content in (
                ("POST", "/stream", body),
                ("POST", "/poll", body),
                ("GET", "/sse?channels=room:1", None),
            ):
                status, problem = await refusal(server, method, path, json=content, headers=authorization())
                assert (status, problem["code"]) == (429, "too_many_connections"), path
            ticket = await stream_ticket(server, "room:1")
            status, problem = await refusal(server, "GET", f"/sse?ticket={ticket}")
            assert (status, problem["code"]) == (429, "too_many_connections")
            async with stream(server, "room:1", user="ben"):
                assert await poller.poll(server, wait=0) == []
        assert await server.metric("limit_hits_total", limit="connections_per_user") == 4
