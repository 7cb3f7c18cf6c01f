"""What `broker.url` may say of Redis, and that no refusal repeats it."""

from __future__ import annotations

import pytest

from service.adapters.redis.address import Address, Topology, parse


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://h", Address(Topology.STANDALONE, (("h", 6379),))),
        ("rediss://h:7/", Address(Topology.STANDALONE, (("h", 7),), tls=True)),
        ("redis://h:7/15", Address(Topology.STANDALONE, (("h", 7),), database=15)),
        ("redis://[::1]:7/2", Address(Topology.STANDALONE, (("::1", 7),), database=2)),
        ("redis://[fe80::1]", Address(Topology.STANDALONE, (("fe80::1", 6379),))),
        ("redis+sentinel://a,b:1/main", Address(Topology.SENTINEL, (("a", 26379), ("b", 1)), master="main")),
        (
            "rediss+sentinel://[::1]:1,[::2]/main/3",
            Address(Topology.SENTINEL, (("::1", 1), ("::2", 26379)), tls=True, database=3, master="main"),
        ),
        ("redis+cluster://a:1,b", Address(Topology.CLUSTER, (("a", 1), ("b", 6379)))),
        ("rediss+cluster://a/0", Address(Topology.CLUSTER, (("a", 6379),), tls=True)),
    ],
)
def test_addresses(url: str, address: Address) -> None:
    assert parse(url) == address


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
def test_refusals_say_why_and_repeat_nothing(url: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        parse(url)
    assert "canary" not in str(refused.value)
