"""Plain requests, held against aiohttp: what `parse_plain_upgrade` accepts, aiohttp's way accepts, and reads the same.

The parser in C must accept exactly what `parse_plain_upgrade` accepts, and read the same.
"""

from __future__ import annotations

import asyncio
from base64 import b64decode, b64encode
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.protocol.framing import accept_key
from service.web.http.http_protocol import MAX_FIELD_BYTES, MAX_FIELDS, MAX_TARGET_BYTES, parse_upgrade_request
from service.web.http.plain_request import MAX_PLAIN_BYTES, MAX_PLAIN_FIELDS, PlainRequest, parse_plain_upgrade
from service.web.ws import native
from tests.support.examples import examples

USUAL = [
    ("Host", "service.example:8080"),
    ("Upgrade", "websocket"),
    ("Connection", "Upgrade"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Protocol", "tidewire.v1"),
]
CHROME = [
    *USUAL,
    ("Pragma", "no-cache"),
    ("Cache-Control", "no-cache"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
    ),
    ("Origin", "https://app.example"),
    ("Accept-Encoding", "gzip, deflate, br, zstd"),
    ("Accept-Language", "en-US,en;q=0.9"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits"),
]
FIREFOX = [(name, "keep-alive, Upgrade" if name == "Connection" else value) for name, value in CHROME]
READ = (
    "Host",
    "Upgrade",
    "Connection",
    "Sec-WebSocket-Key",
    "Sec-WebSocket-Version",
    "Sec-WebSocket-Protocol",
    "Sec-WebSocket-Extensions",
    "Authorization",
    "Origin",
    "X-Forwarded-For",
    "Sec-Fetch-Site",
)
"""The fields that the parser in C returns."""
NGINX = [(name, value.lower() if name == "Connection" else value) for name, value in CHROME] + [
    ("X-Forwarded-For", "::1")
]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def head(fields: list[tuple[str, str]], target: str = "/ws?channels=room:1,room:2", end: str = "\r\n") -> bytes:
    lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields), "", ""]
    return end.join(lines).encode("latin-1")


def without(name: str) -> list[tuple[str, str]]:
    return [field for field in USUAL if field[0] != name]


def parse(sent: bytes) -> PlainRequest | None:
    """Parses in Python. The parser in C, where it is built, must do the same."""
    plain = parse_plain_upgrade(sent, "192.0.2.1")
    library = native.load()
    if library is not None:
        parsed = library.parse(sent, "192.0.2.1")
        assert (parsed is None) == (plain is None), sent
        if parsed is not None and plain is not None:
            assert (parsed.raw_path, parsed.remote) == (plain.raw_path, plain.remote)
            assert parsed.headers == {name: plain.headers[name] for name in READ if name in plain.headers}
            assert parsed.headers.getall("Origin", None) == plain.headers.getall("Origin", None)
            key = plain.headers.get("Sec-WebSocket-Key", "").encode()
            is_valid = plain.headers.get("Sec-WebSocket-Version") == "13" and is_key(key)
            assert parsed.accept == (accept_key(key) if is_valid else b"")
    return plain


def is_key(key: bytes) -> bool:
    """Whether a key is the base64 of 16 bytes."""
    try:
        raw = b64decode(key, validate=True)
    except ValueError:
        return False
    return len(raw) == 16 and b64encode(raw) == key


def check_same(sent: bytes, loop: asyncio.AbstractEventLoop) -> bool:
    """Whether `sent` is accepted as plain. Then aiohttp must read the same."""
    plain = parse(sent)
    if plain is None:
        return False
    message = parse_upgrade_request(None, loop, sent)
    assert message is not None, sent
    assert (message.method, message.path, message.version) == (plain.method, plain.raw_path, plain.version)
    read, expected = ([(name.lower(), value) for name, value in one.headers.items()] for one in (plain, message))
    assert read == expected
    assert "?" in plain.raw_path or message.url.query == plain.query
    return True


@pytest.mark.parametrize("fields", [USUAL, CHROME, FIREFOX, NGINX], ids=["client", "chrome", "firefox", "nginx"])
def test_usual_upgrade_is_plain(fields: list[tuple[str, str]], loop: asyncio.AbstractEventLoop) -> None:
    assert check_same(head(fields), loop)


@pytest.mark.parametrize(
    "sent",
    [
        head(USUAL, "/ws?channels=room%3A1"),
        head(USUAL, "/ws?channels=a+b"),
        head(USUAL, "/ws#part"),
        head(USUAL, "/ws?channels=\xe9"),
        head(USUAL, "http://service.example/ws"),
        head(USUAL, end="\n"),
        head(USUAL).replace(b"HTTP/1.1", b"HTTP/1.0"),
        head(USUAL).replace(b"GET", b"POST"),
        head(without("Host")),
        head([*without("Host"), ("Host", "")]),
        head(without("Upgrade")),
        head(without("Connection")),
        head([*without("Connection"), ("Connection", "close, Upgrade")]),
        head([*USUAL, ("connection", "close")]),
        head([*USUAL, ("Content-Length", "0")]),
        head([*USUAL, ("Transfer-Encoding", "chunked")]),
        head([*USUAL, ("Expect", "100-continue")]),
        head([*USUAL, ("Cookie", "session=1")]),
        head([*USUAL, ("Sec-WebSocket-Key1", "x")]),
        head([*USUAL, ("Host", "other.example")]),
        head([*without("Host"), ("Host", "a b")]),
        head([*USUAL, ("X-Name", "\xe9")]),
        head([*USUAL, ("X-Name", "a\tb")]),
        head([*USUAL, ("X-Name", "a\r\n folded")]),
        head([*USUAL, ("X-Name ", "a")]),
        head([*USUAL, ("", "a")]),
        head([*USUAL, *((f"X-{number}", "") for number in range(MAX_PLAIN_FIELDS))]),
        head([*USUAL, ("X-Name", "a" * MAX_PLAIN_BYTES)]),
        head(USUAL) + b"x",
        b"",
    ],
)
def test_unusual_request_is_left_to_aiohttp(sent: bytes) -> None:
    assert parse(sent) is None


def test_plain_request_is_below_the_limits_of_others() -> None:
    assert min(MAX_TARGET_BYTES, MAX_FIELD_BYTES) > MAX_PLAIN_BYTES
    assert MAX_PLAIN_FIELDS < MAX_FIELDS


@pytest.mark.parametrize("fields", [63, 64, 65])
def test_both_parsers_have_the_same_bounds(fields: int) -> None:
    more = [(f"X-{number}", "a") for number in range(fields - len(USUAL))]
    assert (parse(head([*USUAL, *more])) is None) == (fields > MAX_PLAIN_FIELDS)
    fills = MAX_PLAIN_BYTES - len(head([*USUAL, ("X", "")])) + fields - MAX_PLAIN_FIELDS
    assert (parse(head([*USUAL, ("X", "a" * fills)])) is None) == (fields > MAX_PLAIN_FIELDS)


CHARACTERS = st.characters(max_codepoint=0xFF)
NAMES = st.one_of(
    st.sampled_from(["Host", "host", "Upgrade", "Connection", "X-A", "TE"]), st.text(CHARACTERS, max_size=5)
)
VALUES = st.one_of(
    st.sampled_from(
        ["", " ", "websocket", "Upgrade", "keep-alive, upgrade", "close", "::1", "a:b", "[::1]:80", "h2c", "a \t "]
    ),
    st.text(CHARACTERS, max_size=8),
)
TARGETS = st.one_of(
    st.just("/ws"), st.text("/ws?&=#%+ab:,;@!*'()[]|^`{}\"\\<> \x7f", max_size=12).map(lambda rest: f"/ws{rest}")
)


@settings(max_examples=examples(500))
@given(
    TARGETS, st.sets(st.integers(0, 6)), st.lists(st.tuples(NAMES, VALUES), max_size=4), st.sampled_from(["\r\n", "\n"])
)
@example("/ws", set(), [("X", "")], "\r\n")
@example("/ws??a=/?:@", set(), [("X-A", "a  b")], "\r\n")
@example("/ws", {0}, [], "\r\n")
def test_plain_request_is_read_as_by_aiohttp(
    loop: asyncio.AbstractEventLoop, target: str, missing: set[int], more: list[tuple[str, str]], end: str
) -> None:
    fields = [field for index, field in enumerate(USUAL) if index not in missing]
    check_same(head([*fields, *more], target, end), loop)


@settings(max_examples=examples(300))
@given(st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=3)), min_size=1, max_size=3))
def test_spoilt_plain_request_is_read_as_by_aiohttp(
    loop: asyncio.AbstractEventLoop, changes: list[tuple[int, bytes]]
) -> None:
    sent = bytearray(head(USUAL))
    for at, change in changes:
        sent[at : at + len(change)] = change
    check_same(bytes(sent), loop)


@settings(max_examples=examples(500))
@given(st.sampled_from([USUAL, CHROME]), st.integers(0, 10_000), st.integers(0, 3), st.binary(max_size=3))
def test_changed_head_is_read_by_both_parsers_in_the_same_way(
    fields: list[tuple[str, str]], place: int, removed: int, added: bytes
) -> None:
    sent = head(fields)
    at = place % (len(sent) + 1)
    parse(sent[:at] + added + sent[at + removed :])
    parse(sent[:at])
