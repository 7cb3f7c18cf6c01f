"""What nodes and clients announce to each other: `welcome.features`, and parameters in the address of an upgrade."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from service.contract.load import load
from service.protocol.features import FEATURES
from tests.support.harness import CONTRACT, Running, serving, token
from tests.support.raw import HANDSHAKE, connected

WAYS = ("plain", "encoded", "later")
"""A head that the service reads itself, one with a percent sign for aiohttp, and a later request of a connection."""
ODD = [
    "client=",
    "client=x",
    "client=" + "x" * 4000,
    "client=a/1&client=b/1",
    "client=%00/%FF",
    "contract=xyz",
    "contract=00000000&contract=00000000",
    "features=",
    "features=%2C%2C,tomorrow",
    "features=" + "x," * 2000,
    "features=tomorrow&features=ready_in_address",
    "client&contract&features",
]


def credentials() -> dict[str, str]:
    return {"Authorization": f"Bearer {token()}"}


async def connect(server: Running, query: str, way: str = "plain") -> dict[str, object]:
    """Connects with a token and this query, and returns `welcome`."""
    fields = {**HANDSHAKE, **credentials()}
    target = f"/ws?{query}" + ("&other=%20" if way == "encoded" else "")
    async with connected(server) as raw:
        if way == "later":
            assert (await raw.request("/ws")).status == 426
        answer = await raw.request(target, fields)
        assert answer.status == 101, answer
        return dict(await raw.message())


async def features_of(server: Running, query: str, way: str) -> frozenset[str]:
    """The features that the session of a connection with this query keeps."""
    fields = {**HANDSHAKE, **credentials()}
    async with connected(server) as raw:
        if way == "later":
            assert (await raw.request("/ws")).status == 426
        assert (await raw.request(f"/ws?{query}" + ("&other=%20" if way == "encoded" else ""), fields)).status == 101
        welcome = await raw.message()
        connection = server.service.node.streams.registry.get(welcome["connection"])
        assert connection is not None
        return connection.session.features


async def test_welcome_lists_the_features(server: Running) -> None:
    async with server.client("ann") as ann:
        assert ann.welcome["features"] == sorted(FEATURES)


@pytest.mark.parametrize("way", WAYS)
async def test_announcement_is_counted_and_kept(server: Running, way: str) -> None:
    known = load(CONTRACT).hash
    for contract in (known, "0" * 16):
        features = await features_of(
            server, f"client=shop-js/2.1&contract={contract}&features=tomorrow,ready_in_address", way
        )
        assert features == {"ready_in_address"}
    assert await server.metric("client_versions_total", client="shop-js", version="2.1") == 2
    assert [await server.metric("client_contracts_total", contract=name) for name in ("same", "other", "none")] == [
        1,
        1,
        0,
    ]


async def test_announcement_before_hello_is_counted_after_it(server: Running) -> None:
    async with server.client("ann", query="?client=shop-js/2.1", hello=True):
        assert await server.metric("client_versions_total", client="shop-js", version="2.1") == 1


@pytest.mark.parametrize("way", WAYS)
async def test_client_without_announcement_is_unknown(server: Running, way: str) -> None:
    assert await features_of(server, "channels=room:1", way) == frozenset()
    assert await server.metric("client_versions_total", client="unknown", version="unknown") == 1
    assert await server.metric("client_contracts_total", contract="none") == 1


async def test_percent_encoded_announcement_is_read(server: Running) -> None:
    await connect(server, f"clien%74={quote('shop/2.1+7', safe='')}")
    assert await server.metric("client_versions_total", client="shop", version="2.1+7") == 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("query", ODD)
async def test_odd_announcement_refuses_no_upgrade(server: Running, query: str, way: str) -> None:
    assert (await connect(server, query, way))["type"] == "welcome"
    assert await server.metric("client_versions_total", client="unknown", version="unknown") == 1


@pytest.mark.parametrize("query", ODD)
async def test_odd_announcement_refuses_no_plain_get(server: Running, query: str) -> None:
    async with server.http.get(f"{server.url}/ws?{query}", headers=credentials()) as response:
        assert response.status == 426


async def test_versions_above_the_bound_count_as_other() -> None:
    async with serving(limits={"client_versions": 2}) as server:
        for version in ("1", "2", "3", "4", "1"):
            await connect(server, f"client=shop/{version}")
        counted = {
            version: await server.metric("client_versions_total", client=client, version=version)
            for client, version in [("shop", "1"), ("shop", "2"), ("shop", "3"), ("other", "other")]
        }
        assert counted == {"1": 2, "2": 1, "3": 0, "other": 2}
