"""`GET /ws` before a WebSocket exists: every check, their order, the plain GET, and CORS."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pytest

from tests.support.harness import Running, serving, token
from tests.support.raw import HANDSHAKE, Answer, ask, bearer, connected, new_ticket, upgraded


@dataclass(frozen=True)
class Fault:
    """One fault of a request, and the refusal that it gets."""

    status: int
    code: str
    retryable: bool = False
    limits: dict[str, Any] = field(default_factory=dict)
    rollout: dict[str, Any] = field(default_factory=dict)
    headers: dict[str, str | None] = field(default_factory=dict)
    query: str = ""
    draining: bool = False
    full: bool = False


# In the order of docs/protocol.md. One connection of ann's is open already, and has used up the tight limits.
FAULTS = {
    "draining": Fault(503, "draining", retryable=True, draining=True),
    "outboxes full": Fault(503, "overloaded", retryable=True, full=True),
    "asked too often": Fault(
        429, "rate_limited", retryable=True, limits={"connect_rate_per_ip": {"per_second": 0.001, "burst": 1}}
    ),
    "node full": Fault(429, "too_many_connections", retryable=True, limits={"connections": 1}),
    "address full": Fault(429, "too_many_connections", retryable=True, limits={"connections_per_ip": 1}),
    "subprotocol": Fault(400, "unsupported_version", headers={"Sec-WebSocket-Protocol": "tidewire.v2, chat"}),
    "origin": Fault(403, "origin_refused", headers={"Origin": "https://evil.example"}),
    "accepted too many": Fault(
        503, "overloaded", retryable=True, rollout={"accept_rate": {"per_second": 0.001, "burst": 1}}
    ),
    "token": Fault(401, "invalid_token", headers={"Authorization": "Bearer x.y.z"}),
    "tenant full": Fault(429, "too_many_connections", retryable=True, limits={"connections_per_tenant": 1}),
    "user full": Fault(429, "too_many_connections", retryable=True, limits={"connections_per_user": 1}),
    "channel's name": Fault(400, "invalid_channel", query="?channels=room:1,room::1,nowhere:1"),
    "channel's pattern": Fault(404, "unknown_channel", query="?channels=room:1,nowhere:1,inbox:ben"),
    "channel's rule": Fault(403, "forbidden", query="?channels=room:1,inbox:ben"),
}
SCOPES = {
    "node full": "connections",
    "address full": "connections_per_ip",
    "tenant full": "connections_per_tenant",
    "user full": "connections_per_user",
}
SERVICES = ("node full", "tenant full", "accepted too many", "outboxes full")
"""Faults of the node, which no client can fix."""


@asynccontextmanager
async def faulty(*faults: Fault) -> AsyncIterator[tuple[Running, str, dict[str, str | None]]]:
    """A service, and a request (target and headers) with all these faults; of two that exclude each other, the first."""
    limits: dict[str, Any] = {}
    rollout: dict[str, Any] = {}
    headers: dict[str, str | None] = {}
    for fault in reversed(faults):
        limits |= fault.limits
        rollout |= fault.rollout
        headers |= fault.headers
    query = next((fault.query for fault in faults if fault.query), "")
    async with serving(limits=limits, rollout=rollout) as server, upgraded(server, "ann"):
        node = server.service.node
        node.admission.set_draining(draining=any(fault.draining for fault in faults))
        if any(fault.full for fault in faults):
            node.streams.budget.limit = 0
        yield server, f"/ws{query}", bearer() | headers
        node.admission.set_draining(draining=False)


@pytest.mark.parametrize("upgrade", [True, False], ids=["upgrade", "plain"])
@pytest.mark.parametrize("name", FAULTS)
async def test_upgrade_with_a_fault_gets_its_problem(name: str, upgrade: bool) -> None:
    fault = FAULTS[name]
    async with faulty(fault) as (server, target, headers):
        answer = await ask(server, target, headers, upgrade=upgrade)
        assert (answer.status, answer.code) == (fault.status, fault.code)
        problem = answer.problem
        assert set(problem) == {"type", "title", "status", "detail", "code", "details", "retryable"}
        assert problem["retryable"] is fault.retryable
        assert ("retry-after" in answer.headers) is fault.retryable
        if fault.retryable:
            assert int(answer.headers["retry-after"]) >= 1
        assert (answer.headers.get("www-authenticate") == "Bearer") is (fault.status == 401)
        if name in SCOPES:
            assert problem["details"]["scope"] == SCOPES[name]
            assert await server.metric("limit_hits_total", limit=SCOPES[name]) == 1
        if name == "outboxes full":
            assert await server.metric("limit_hits_total", limit="outbox_node") == 1
        if name == "accepted too many":
            assert await server.metric("limit_hits_total", limit="accept_rate") == 1
            assert 0 < problem["details"]["retry_after"] <= int(answer.headers["retry-after"]) <= 60
        if name == "asked too often":
            assert await server.metric("rate_limited_total", scope="connect") == 1
        cause = "draining" if fault.draining else "service" if name in SERVICES else "client"
        assert await server.metric("upgrade_refusals_total", reason=fault.code, cause=cause, door="upgrade") == 1
        assert await server.metric("refused_addresses") == (cause == "client")
        assert await server.metric("connections") == 1, "the connection that was there does not notice"


@pytest.mark.parametrize(("first", "second"), list(combinations(FAULTS, 2)))
async def test_upgrade_with_two_faults_gets_the_earlier_problem(first: str, second: str) -> None:
    """Every pair, as an upgrade and as a plain GET."""
    fault = FAULTS[first]
    async with faulty(fault, FAULTS[second]) as (server, target, headers):
        for upgrade in (True, False):
            answer = await ask(server, target, headers, upgrade=upgrade)
            assert (answer.status, answer.code) == (fault.status, fault.code)
            if first in SCOPES:
                assert answer.problem["details"]["scope"] == SCOPES[first]


async def test_upgrade_with_every_fault_gets_them_in_order() -> None:
    remaining = [fault for name, fault in FAULTS.items() if name not in ("channel's name", "channel's pattern")]
    while remaining:
        async with faulty(*remaining) as (server, target, headers):
            answer = await ask(server, target, headers)
        assert (answer.status, answer.code) == (remaining[0].status, remaining[0].code)
        remaining.pop(0)


@pytest.mark.parametrize(
    "credentials",
    [{"Authorization": "Basic YW5uOnB3"}, {"Authorization": "Bearer"}, {"Authorization": ""}],
    ids=["basic", "empty bearer", "empty"],
)
async def test_upgrade_with_another_authorization_scheme_is_refused(
    server: Running, credentials: dict[str, str | None]
) -> None:
    for upgrade in (True, False):
        answer = await ask(server, f"/ws?ticket={await new_ticket(server)}", credentials, upgrade=upgrade)
        assert (answer.status, answer.code) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"


async def test_upgrade_with_channels_needs_credentials(server: Running) -> None:
    for upgrade in (True, False):
        answer = await ask(server, "/ws?channels=room:1", upgrade=upgrade)
        assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_upgrade_with_repeated_channels_parameter_counts_every_channel(server: Running) -> None:
    answer = await ask(server, "/ws?channels=room:1&channels=nowhere:1", bearer())
    assert (answer.status, answer.code) == (404, "unknown_channel")


async def test_upgrade_with_too_many_channels_is_refused() -> None:
    async with serving(limits={"subscriptions": 2}) as server:
        fine = await ask(server, "/ws?channels=room:1,room:2,room:1", bearer(), upgrade=False)
        assert fine.code == "upgrade_required", "a name that stands twice is one channel"
        answer = await ask(server, "/ws?channels=room:1,room:2,room:3", bearer())
        assert (answer.status, answer.code) == (429, "too_many_subscriptions")
        assert "retry-after" not in answer.headers
        assert await server.metric("limit_hits_total", limit="subscriptions") == 1


class TestPlainGet:
    @pytest.mark.parametrize("version", [None, "tidewire.v1", "chat, tidewire.v1"])
    async def test_plain_get_that_would_succeed_answers_426(self, server: Running, version: str | None) -> None:
        answer = await ask(server, "/ws", {"Sec-WebSocket-Protocol": version}, upgrade=False)
        assert (answer.status, answer.code) == (426, "upgrade_required")
        assert answer.headers["upgrade"] == "websocket"
        assert answer.headers["connection"].lower() == "upgrade"
        assert answer.problem["retryable"] is False
        counted = await server.metrics()
        assert not any(value for name, value in counted.items() if name.startswith("tidewire_upgrade_refusals_total"))
        await server.at_rest()

    async def test_plain_get_takes_no_slot(self) -> None:
        limits = {"connections": 1, "connections_per_ip": 1, "connections_per_user": 1, "pending": 1}
        async with serving(limits=limits) as server:
            for _ in range(3):
                assert (await ask(server, "/ws", bearer(), upgrade=False)).status == 426
            await server.at_rest()
            async with upgraded(server, "ann"):
                pass

    async def test_plain_get_does_not_redeem_a_ticket(self, server: Running) -> None:
        target = f"/ws?ticket={await new_ticket(server)}"
        assert (await ask(server, target, upgrade=False)).status == 426
        assert (await ask(server, target, upgrade=False)).status == 426
        assert (await ask(server, target)).status == 101
        for upgrade in (True, False):
            answer = await ask(server, target, upgrade=upgrade)
            assert (answer.status, answer.code) == (401, "invalid_ticket")

    async def test_plain_get_after_a_failed_upgrade_gives_the_reason(self, server: Running) -> None:
        """This is a browser's only way to learn of a refused channel. Without its ticket, it would fetch tickets for
        ever."""
        target = f"/ws?channels=inbox:ben&ticket={await new_ticket(server)}"
        for upgrade in (True, False, True):
            answer = await ask(server, target, upgrade=upgrade)
            assert (answer.status, answer.code) == (403, "forbidden")

    async def test_upgrade_above_the_user_cap_with_eviction_is_accepted(self) -> None:
        limits = {"connections_per_user": 1, "on_user_cap": "replace"}
        async with serving(limits=limits) as server, server.client("ann") as ann:
            assert (await ask(server, "/ws", bearer(), upgrade=False)).status == 426
            await ann.silence()


MALFORMED: dict[str, dict[str, str | None]] = {
    "no key": {"Sec-WebSocket-Key": None},
    "a key of 15 bytes": {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAA"},
    "a key that is no base64": {"Sec-WebSocket-Key": "AAA"},
    "a key that is no ASCII": {"Sec-WebSocket-Key": "ключ"},
    "no version": {"Sec-WebSocket-Version": None},
    "a later version": {"Sec-WebSocket-Version": "14"},
    "no Connection: Upgrade": {"Connection": "keep-alive"},
}


class TestMalformedHandshake:
    @pytest.mark.parametrize("name", MALFORMED)
    async def test_malformed_handshake_is_refused_and_names_the_version(self, server: Running, name: str) -> None:
        answer = await ask(server, "/ws", MALFORMED[name])
        assert (answer.status, answer.code) == (400, "invalid_request")
        assert answer.headers["sec-websocket-version"] == "13", "RFC 6455 §4.4"
        await server.at_rest()

    async def test_malformed_handshake_redeems_no_ticket(self, server: Running) -> None:
        target = f"/ws?ticket={await new_ticket(server)}"
        assert (await ask(server, target, MALFORMED["no key"])).status == 400
        assert (await ask(server, target)).status == 101

    async def test_malformed_handshake_evicts_nobody(self) -> None:
        limits = {"connections_per_user": 1, "on_user_cap": "replace"}
        async with serving(limits=limits) as server, server.client("ann") as ann:
            for change in MALFORMED.values():
                assert (await ask(server, "/ws", bearer() | change)).status == 400
            await ann.silence()


@pytest.mark.parametrize("offered", ["tidewire.v1", "chat,tidewire.v1", "chat , tidewire.v1 , x"])
async def test_subprotocol_is_chosen_from_those_offered(server: Running, offered: str) -> None:
    answer = await ask(server, "/ws", {"Sec-WebSocket-Protocol": offered})
    assert (answer.status, answer.headers["sec-websocket-protocol"]) == (101, "tidewire.v1")


@pytest.mark.parametrize("offered", [None, "", "tidewire.v2", "TIDEWIRE.V1", "tidewire.v1x"])
async def test_upgrade_without_our_subprotocol_is_refused(server: Running, offered: str | None) -> None:
    answer = await ask(server, "/ws", {"Sec-WebSocket-Protocol": offered})
    assert (answer.status, answer.code) == (400, "unsupported_version")


async def test_compression_that_is_off_is_not_negotiated(server: Running) -> None:
    answer = await ask(server, "/ws", {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"})
    assert answer.status == 101
    assert "sec-websocket-extensions" not in answer.headers


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_on_ws_are_refused(server: Running, method: str) -> None:
    for upgrade in (True, False):
        answer = await ask(server, "/ws", upgrade=upgrade, method=method)
        assert answer.status == 405
        assert set(answer.headers["allow"].replace(" ", "").split(",")) == {"GET", "OPTIONS"}
        if method != "HEAD":
            assert answer.code == "method_not_allowed"
    await server.at_rest()


async def test_unknown_address_is_a_problem(server: Running) -> None:
    answer = await ask(server, "/wss", headers={"Origin": "https://app.example"})
    assert (answer.status, answer.code) == (404, "not_found")
    assert answer.headers["access-control-allow-origin"] == "https://app.example", (
        "a page can tell it from a service that is away"
    )


ALLOWED = ("https://app.example", "http://localhost:3000", "https://[2001:db8::1]:8443")
ORIGINS = {
    "https://app.example": True,
    "http://localhost:3000": True,
    "https://[2001:db8::1]:8443": True,
    "null": False,
    "": False,
    "https://service.example": False,  # with an allow-list, the own origin must be in it
    "https://app.example.evil.example": False,
    "https://evil-app.example": False,
    "https://evil.app.example": False,
    "https://app.examplee": False,
    "https://xapp.example": False,
    "https://app_example": False,
    "http://app.example": False,
    "wss://app.example": False,
    "https://app.example:443": True,  # RFC 3986 §6.2: equal in any spelling
    "https://app.example:8443": False,
    "http://localhost": False,
    "http://localhost:3001": False,
    "http://localhost:30000": False,
    "https://APP.example": True,
    "HTTPS://app.example": True,
    "https://app.example:": True,
    "https://app.example:0443": True,
    "https://[2001:DB8:0::0:1]:8443": True,
    "https://[2001:db8::1]": False,
    "https://app.example:80": False,
    "https://app.example:65979": False,
    "https://app.example/": False,
    "https://app.example.": False,
    "https://app.example/x": False,
    "https://app.example https://evil.example": False,
    "https://app.example, https://evil.example": False,
    "https://app.example@evil.example": False,
    "https://evil.example#https://app.example": False,
    "https://evil.example?https://app.example": False,
    "app.example": False,
    "*": False,
    "https://*.example": False,
    "https://[": False,
    "https://a]b": False,
    "https://℀.example": False,
}
OWN = {
    "http://service.example": True,
    "https://service.example": True,  # the service cannot know whether the proxy in front spoke TLS
    "null": False,
    "": False,
    "http://service.example:80": True,
    "https://SERVICE.example:443": True,
    "http://service.example:443": False,
    "http://service.example:8080": False,
    "http://service.example.": False,
    "http://service.example.evil.example": False,
    "http://evil-service.example": False,
    "http://user@service.example": False,
    "service.example": False,
    "http://[": False,
    "http://℀.example": False,
}


class TestOrigin:
    @pytest.mark.parametrize(("origins", "expected"), [(ALLOWED, ORIGINS), ((), OWN)], ids=["list", "own"])
    async def test_origin_must_match_exactly(self, origins: tuple[str, ...], expected: dict[str, bool]) -> None:
        async with serving(origins=origins) as server:
            for method, target, upgrade, status in (
                ("GET", "/ws", True, 101),
                ("GET", "/ws", False, 426),
                ("POST", "/tickets", False, 201),
            ):
                for origin, allowed in expected.items():
                    answer = await ask(server, target, bearer() | {"Origin": origin}, upgrade=upgrade, method=method)
                    assert answer.status == (status if allowed else 403), (target, upgrade, origin)
                    assert allowed or answer.code == "origin_refused"
                assert (await ask(server, target, bearer(), upgrade=upgrade, method=method)).status == status, "none"

    async def test_origin_with_a_wildcard_is_always_allowed(self) -> None:
        async with serving(origins=("*",)) as server:
            for origin in ("https://anyone.example", "null"):
                assert (await ask(server, "/ws", {"Origin": origin})).status == 101

    @pytest.mark.parametrize(
        ("target", "method", "headers", "status"),
        [
            ("/ws", "GET", {}, 426),
            ("/ws", "GET", {"Authorization": "Bearer x.y.z"}, 401),
            ("/ws?channels=room:1", "GET", {}, 401),
            ("/tickets", "POST", {"Authorization": "Bearer x.y.z"}, 401),
            ("/tickets", "POST", {}, 401),
        ],
    )
    async def test_response_to_an_allowed_page_is_readable(
        self, target: str, method: str, headers: dict[str, str | None], status: int
    ) -> None:
        async with serving(origins=ALLOWED) as server:
            for origin in ("https://app.example", "https://evil.example"):
                answer = await ask(server, target, headers | {"Origin": origin}, upgrade=False, method=method)
                assert answer.status == (status if origin in ALLOWED else 403)
                _readable_by(answer, origin)
            silent = await ask(server, target, headers, upgrade=False, method=method)
            assert not [name for name in silent.headers if name.startswith("access-control-")]

    async def test_refusal_at_a_cap_is_readable_for_a_page(self) -> None:
        async with serving(limits={"connections": 1}) as server, upgraded(server):
            answer = await ask(server, "/ws", {"Origin": "https://evil.example"}, upgrade=False)
            assert answer.status == 429
            _readable_by(answer, "https://evil.example")
            assert answer.headers["access-control-expose-headers"] == "Retry-After"

    @pytest.mark.parametrize(("target", "method"), [("/ws", "GET"), ("/tickets", "POST")])
    async def test_preflight_allows_the_authorization_header(self, target: str, method: str) -> None:
        async with serving(origins=ALLOWED) as server:
            preflight = {
                "Origin": "https://app.example",
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization",
            }
            answer = await ask(server, target, preflight, upgrade=False, method="OPTIONS")
            assert (answer.status, answer.body) == (204, b"")
            _readable_by(answer, "https://app.example")
            assert answer.headers["access-control-allow-methods"] == method
            assert "authorization" in answer.headers["access-control-allow-headers"].lower()

    async def test_cors_credentials_are_allowed_only_for_listed_pages(self) -> None:
        async with serving(origins=ALLOWED, auth={"cookie": "session"}) as server:
            for origin, expected in (("https://app.example", "true"), ("https://evil.example", None)):
                for method in ("GET", "OPTIONS"):
                    answer = await ask(server, "/ws", {"Origin": origin}, upgrade=False, method=method)
                    assert answer.headers.get("access-control-allow-credentials") == expected
        async with serving(origins=ALLOWED) as server:
            answer = await ask(server, "/ws", {"Origin": "https://app.example"}, upgrade=False)
            assert "access-control-allow-credentials" not in answer.headers, "no cookie, no need"


def _readable_by(answer: Answer, origin: str) -> None:
    assert answer.headers["access-control-allow-origin"] == origin
    assert "origin" in answer.headers["vary"].lower()


class TestCookie:
    """Browsers send cookies with every site's requests, so a cookie counts only for a listed page."""

    @pytest.mark.parametrize(
        ("headers", "counts"),
        [
            ({"Origin": "https://app.example"}, True),
            ({}, False),
            ({"Sec-Fetch-Site": "same-origin"}, True),
            ({"Sec-Fetch-Site": "same-site"}, False),
            ({"Sec-Fetch-Site": "cross-site"}, False),
            ({"Sec-Fetch-Site": "none"}, False),
            ({"Sec-Fetch-Site": "same-origin", "Host": "other.example"}, False),
        ],
    )
    async def test_cookie_counts_only_for_a_listed_page(self, headers: dict[str, str | None], counts: bool) -> None:
        async with serving(origins=("https://app.example",), auth={"cookie": "session"}) as server:
            for cookie, verdict in ((token(), 426), ("x.y.z", 401)):
                given = {"Host": "app.example", "Cookie": f"a=b; session={cookie}; c=d"} | headers
                answer = await ask(server, "/ws?channels=room:1", given, upgrade=False)
                assert answer.status == (verdict if counts else 401)
                assert answer.code == (
                    "unauthenticated" if not counts else "upgrade_required" if verdict == 426 else "invalid_token"
                )

    async def test_cookie_of_another_site_is_refused_by_its_origin(self) -> None:
        async with serving(origins=("https://app.example",), auth={"cookie": "session"}) as server:
            for method, target in (("GET", "/ws"), ("POST", "/tickets")):
                headers: dict[str, str | None] = {"Cookie": f"session={token()}", "Origin": "https://evil.example"}
                answer = await ask(server, target, headers, method=method, upgrade=method == "GET")
                assert (answer.status, answer.code) == (403, "origin_refused")

    async def test_cookie_without_the_setting_is_ignored(self) -> None:
        async with serving(origins=("https://app.example",)) as server:
            headers: dict[str, str | None] = {"Cookie": f"session={token()}", "Origin": "https://app.example"}
            assert (await ask(server, "/ws?channels=room:1", headers)).code == "unauthenticated"

    async def test_cookie_authenticates_an_upgrade(self) -> None:
        async with serving(origins=("https://app.example",), auth={"cookie": "session"}) as server:
            headers = HANDSHAKE | {"Cookie": f"session={token('eve')}", "Origin": "https://app.example"}
            async with connected(server) as raw:
                assert (await raw.request("/ws", headers)).status == 101
                assert (await raw.message())["user"] == "eve"
            assert await server.metric("connects_total", credentials="cookie") == 1


async def test_ticket_response_is_never_stored(server: Running) -> None:
    answer = await ask(server, "/tickets", bearer(), upgrade=False, method="POST")
    assert (answer.status, answer.headers["cache-control"]) == (201, "no-store")
    assert json.loads(answer.body)["expires_in"] == 30.0
