"""Values that follow from limits."""

from __future__ import annotations

import pytest

from service.core.limits import Compression, Limits, Rate


def test_subscribe_burst_allows_all_channels_of_all_connections() -> None:
    limits = Limits(subscriptions=10, connections_per_user=3, connections_per_ip=20, connections=1_000)
    assert limits.subscribe_rate == Rate(limits.connection_rate.per_second, 100), "no less than messages"
    assert limits.user_subscribe_rate == Rate(limits.user_rate.per_second, 200)
    assert limits.ip_subscribe_rate == Rate(limits.ip_rate.per_second, 2_000)
    assert limits.tenant_subscribe_rate == Rate(limits.tenant_rate.per_second, 10_000), "of this node's connections"
    large = Limits(subscriptions=500)
    assert large.subscribe_rate.burst == 500
    assert large.user_subscribe_rate.burst == 500 * large.connections_per_user
    assert large.ip_subscribe_rate.burst == 500 * large.connections_per_ip
    assert large.tenant_subscribe_rate.burst == 500 * large.connections


@pytest.mark.parametrize(
    ("asked", "size", "wanted"),
    [
        (None, 255, False),
        (None, 256, True),
        (True, 0, True),
        (True, 255, True),
        (False, 256, False),
        (False, 1 << 20, False),
    ],
)
def test_compression_wanted_follows_contract_or_size(asked: bool | None, size: int, wanted: bool) -> None:
    assert Compression(enabled=True).wanted(asked, size) is wanted
    assert Compression(enabled=False).wanted(asked, size) is False


@pytest.mark.parametrize(("explicit", "websockets", "expected"), [(None, 10, 1_000), (None, 2_000, 2_000), (5, 10, 5)])
def test_http_connections_per_ip_default_allows_all_websockets_to_reconnect(
    explicit: int | None, websockets: int, expected: int
) -> None:
    limits = Limits(connections_per_ip=websockets, http_connections_per_ip=explicit)
    assert limits.max_http_connections_per_ip == expected
