"""The NATS protocol without a server: whatever the bytes and wherever they are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.nats.address import parse
from service.adapters.nats.config import Subjects, digest, text, token
from service.adapters.nats.connection import protocol
from service.core.channel import ChannelKey

HEADERS = b"NATS/1.0 404 Not Here\r\nNats-Sequence: 17\r\n\r\n"
SAID = (
    b'INFO {"server_id":"X","max_payload":1048576}\r\n'
    b"PING\r\n"
    b"MSG live.a 7 5\r\nhe\r\no\r\n"
    b"+OK\r\n"
    b"MSG live.b 8 reply.to 0\r\n\r\n"
    + b"HMSG _INBOX.1 9 %d %d\r\n" % (len(HEADERS), len(HEADERS) + 3)
    + HEADERS
    + b"abc\r\n"
    b"PONG\r\n"
    b"-ERR 'Authorization Violation'\r\n"
)
HEARD = [
    protocol.Info({"server_id": "X", "max_payload": 1_048_576}),
    protocol.Ping(),
    protocol.Message(7, "live.a", b"", b"he\r\no"),
    protocol.Message(8, "live.b", b"", b""),
    protocol.Message(9, "_INBOX.1", HEADERS, b"abc"),
    protocol.Pong(),
    protocol.Complaint("Authorization Violation"),
]


@given(cuts=st.lists(st.integers(0, len(SAID))))
def test_what_is_said_does_not_depend_on_where_the_bytes_are_cut(cuts: list[int]) -> None:
    parser, heard = protocol.Parser(), []
    places = [0, *sorted(cuts), len(SAID)]
    for start, end in pairwise(places):
        heard += list(parser.feed(SAID[start:end]))
    assert heard == HEARD


def test_headers_are_read() -> None:
    message = HEARD[4]
    assert isinstance(message, protocol.Message)
    assert (message.status, message.description) == (404, "Not Here")
    assert message.header("Nats-Sequence") == "17"
    assert message.header("Nats-Subject") == ""


@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(data: bytes) -> None:
    parser = protocol.Parser()
    try:
        for _ in parser.feed(data):
            pass
    except protocol.Broken:
        pass


@pytest.mark.parametrize(
    "nonsense",
    [
        b"HELLO\r\n",
        b"MSG a\r\n",
        b"MSG a x 1\r\n1\r\n",
        b"MSG a 1 -11\r\n",
        b"INFO {\r\n",
        b"INFO 3\r\n",
        b"x" * (protocol.MAX_LINE + 1),
    ],
)
def test_nonsense_is_refused(nonsense: bytes) -> None:
    with pytest.raises(protocol.Broken):
        list(protocol.Parser().feed(nonsense))


def test_what_we_say() -> None:
    assert protocol.publish("a.b", b"12") == b"PUB a.b 2\r\n12\r\n"
    assert protocol.publish("a.b", b"12", "r") == b"PUB a.b r 2\r\n12\r\n"
    assert protocol.publish("a", b"12", "r", {"X": "1"}) == b"HPUB a r 18 20\r\nNATS/1.0\r\nX: 1\r\n\r\n12\r\n"
    assert protocol.subscribe("a.>", 3) + protocol.unsubscribe(3) == b"SUB a.> 3\r\nUNSUB 3\r\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_any_text_is_one_token_and_comes_back(name: str) -> None:
    made = token(name)
    assert made
    assert not set(made) & set(".*> \t\r\n\0")
    assert made.isascii()
    assert text(made) == name


def test_no_two_things_have_one_subject() -> None:
    names = Subjects("t")
    one, other = ChannelKey("a.b", "c"), ChannelKey("a", "b.c")
    made = [
        make(channel)
        for channel in (one, other)
        for make in (
            names.head,
            names.durable,
            names.state,
            names.present,
            names.told,
            lambda channel: names.id(channel, None, "x"),
            lambda channel: names.id(channel, "", "x"),
            lambda channel: names.id(channel, "x", ""),
            lambda channel: names.value(channel, "x", "y"),
            lambda channel: names.value(channel, "xy", ""),
        )
    ]
    assert len(set(made)) == len(made)
    assert digest("ab", "c") != digest("a", "bc")


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("nats://one", ("nats://one",)),
        ("tls://one:1,two:2", ("tls://one:1", "tls://two:2")),
        ("nats://[::1]:4222", ("nats://[::1]:4222",)),
    ],
)
def test_servers_are_read(url: str, servers: tuple[str, ...]) -> None:
    assert parse(url) == servers


@pytest.mark.parametrize("url", ["nats://", "nats://a:b@c", "nats://a/b", "nats://a?b", "nats://a:0", "nats://a,,b"])
def test_what_names_no_servers_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match=r"holds|names"):
        parse(url)
