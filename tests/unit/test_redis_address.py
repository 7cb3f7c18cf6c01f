"""Parsing `broker.url` for Redis: valid URLs, and errors that quote no password."""

from __future__ import annotations

import pytest

from service.adapters.redis.address import RedisAddress, Topology, parse_redis_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", RedisAddress(Topology.STANDALONE, (("h", 6379),))),
        ("rediss://h:7/", RedisAddress(Topology.STANDALONE, (("h", 7),), tls=True)),
        ("redis://h:7/15", RedisAddress(Topology.STANDALONE, (("h", 7),), database=15)),
        ("redis://[::1]:7/2", RedisAddress(Topology.STANDALONE, (("::1", 7),), database=2)),
        ("redis://[fe80::1]", RedisAddress(Topology.STANDALONE, (("fe80::1", 6379),))),
        ("redis+sentinel://a,b:1/main", RedisAddress(Topology.SENTINEL, (("a", 26379), ("b", 1)), master="main")),
        (
            "rediss+sentinel://[::1]:1,[::2]/main/3",
            RedisAddress(Topology.SENTINEL, (("::1", 1), ("::2", 26379)), tls=True, database=3, master="main"),
        ),
        ("redis+cluster://a:1,b", RedisAddress(Topology.CLUSTER, (("a", 1), ("b", 6379)))),
        ("rediss+cluster://a/0", RedisAddress(Topology.CLUSTER, (("a", 6379),), tls=True)),
    ],
)
def test_redis_url_parses_into_address(url: str, address: RedisAddress) -> None:
    assert parse_redis_url(url) == address


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://canary", "none of"),
        ("nats+cluster://canary", "none of"),
        ("redis+standalone://canary", "none of"),
        ("redis+proxy://canary", "none of"),
        ("redis://user:canary@h", "broker.password"),
        ("redis://h?password=canary", "settings"),
        ("redis://h#canary", "settings"),
        ("redis://canary,b", "several"),
        ("redis://", "host:port"),
        ("redis://canary:0", "host:port"),
        ("redis://canary:65536", "host:port"),
        ("redis://canary:port", "host:port"),
        ("redis://:6379", "host:port"),
        ("redis+cluster://canary,", "host:port"),
        ("redis://::1", "IPv6"),
        ("redis://[canary]:1", "IPv6"),
        ("redis://[::1", "IPv6"),
        ("redis+sentinel://canary:1", "master"),
        ("redis://h/canary", "database"),
        ("redis://h/1/canary", "database"),
        ("redis+sentinel://h/main/canary", "database"),
        ("redis+cluster://canary/1", "only 0"),
    ],
)
def test_redis_url_with_fault_is_refused_without_being_quoted(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        parse_redis_url(url)
    assert "canary" not in str(refused.value)
