"""The NATS protocol without a server: parsing, encoding, subjects and URLs."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.adapters.nats.address import parse_nats_url
from service.adapters.nats.connection import protocol
from service.adapters.nats.subjects import Subjects, digest, from_token, to_token
from service.core.channel import ChannelKey

HEADERS = b"NATS/1.0 404 Not Here\r\nNats-Sequence: 17\r\n\r\n"
SENT = (
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
OPERATIONS = [
    protocol.Info({"server_id": "X", "max_payload": 1_048_576}),
    protocol.Ping(),
    protocol.Message(7, "live.a", b"", b"he\r\no"),
    protocol.Message(8, "live.b", b"", b""),
    protocol.Message(9, "_INBOX.1", HEADERS, b"abc"),
    protocol.Pong(),
    protocol.Error("Authorization Violation"),
]


@given(cuts=st.lists(st.integers(0, len(SENT))))
def test_parser_operations_split_anywhere_are_the_same(cuts: list[int]) -> None:
    parser, parsed = protocol.Parser(), []
    places = [0, *sorted(cuts), len(SENT)]
    for start, end in pairwise(places):
        parsed += list(parser.feed(SENT[start:end]))
    assert parsed == OPERATIONS


def test_message_headers_are_parsed() -> None:
    message = OPERATIONS[4]
    assert isinstance(message, protocol.Message)
    assert (message.status, message.description) == (404, "Not Here")
    assert message.header("Nats-Sequence") == "17"
    assert message.header("Nats-Subject") == ""


@given(st.binary(max_size=200))
def test_parser_any_bytes_parse_or_raise_protocol_error(data: bytes) -> None:
    parser = protocol.Parser()
    try:
        for _ in parser.feed(data):
            pass
    except protocol.ProtocolError:
        pass


@pytest.mark.parametrize(
    "invalid",
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
def test_parser_invalid_operation_raises_protocol_error(invalid: bytes) -> None:
    with pytest.raises(protocol.ProtocolError):
        list(protocol.Parser().feed(invalid))


def test_encoders_write_the_protocol() -> None:
    assert protocol.encode_publish("a.b", b"12") == b"PUB a.b 2\r\n12\r\n"
    assert protocol.encode_publish("a.b", b"12", "r") == b"PUB a.b r 2\r\n12\r\n"
    assert protocol.encode_publish("a", b"12", "r", {"X": "1"}) == b"HPUB a r 18 20\r\nNATS/1.0\r\nX: 1\r\n\r\n12\r\n"
    assert protocol.encode_subscribe("a.>", 3) + protocol.encode_unsubscribe(3) == b"SUB a.> 3\r\nUNSUB 3\r\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
def test_token_of_any_text_decodes_to_it(name: str) -> None:
    made = to_token(name)
    assert made
    assert not set(made) & set(".*> \t\r\n\0")
    assert made.isascii()
    assert from_token(made) == name


def test_subjects_of_different_things_differ() -> None:
    names = Subjects("t")
    one, other = ChannelKey("a.b", "c"), ChannelKey("a", "b.c")
    made = [
        make(channel)
        for channel in (one, other)
        for make in (
            names.head,
            names.durable,
            names.state,
            names.members,
            names.document_events,
            lambda channel: names.result(channel, None, "x"),
            lambda channel: names.result(channel, "", "x"),
            lambda channel: names.result(channel, "x", ""),
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
def test_nats_url_parses_into_servers(url: str, servers: tuple[str, ...]) -> None:
    assert parse_nats_url(url) == servers


@pytest.mark.parametrize("url", ["nats://", "nats://a:b@c", "nats://a/b", "nats://a?b", "nats://a:0", "nats://a,,b"])
def test_nats_url_with_fault_is_refused_without_being_quoted(url: str) -> None:
    with pytest.raises(ValueError, match=r"holds|names"):
        parse_nats_url(url)
