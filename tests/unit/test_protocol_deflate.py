"""permessage-deflate: what is agreed, what is sent, and what is taken from strangers."""

from __future__ import annotations

import asyncio
import base64
import gc
import hashlib
import os
import random
import re
import subprocess
import sys
import textwrap
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import WSMsgType
from hypothesis import example, given
from hypothesis import strategies as st

from service.protocol.deflate import (
    AGREEMENTS,
    MAX_FINAL_BLOCKS,
    Agreement,
    Corrupt,
    Deflater,
    TooBig,
    inflate,
    negotiate,
)

DEADLINE = 10.0
FLUSHED = b"\x00\x00\xff\xff"
FINAL = b"\x03\x00"
"""An empty block with BFINAL=1."""
NO_TAKEOVER = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"
LIMIT_10 = f"{NO_TAKEOVER}; server_max_window_bits=10"

windows = st.integers(9, 15)
levels = st.integers(1, 9)
texts = st.text(alphabet='{}[]",:abc0123456789 é😀', max_size=400).map(str.encode)
payloads = st.one_of(
    st.binary(max_size=400), texts, st.builds(lambda part, times: part * times, texts, st.integers(1, 300))
)


def sent(payload: bytes, window_bits: int = 15, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """The payload as another implementation sends it, with a compressor for this message alone."""
    one = zlib.compressobj(level, zlib.DEFLATED, -window_bits, 8, strategy)
    return (one.compress(payload) + one.flush(zlib.Z_SYNC_FLUSH))[:-4] if payload else b"\0"


def received(data: bytes, window_bits: int) -> bytes:
    """What another implementation makes of it that keeps just such a window, and knows no message before this one."""
    one = zlib.decompressobj(-window_bits)
    message = one.decompress(data + FLUSHED)
    assert (one.eof, one.unused_data, one.unconsumed_tail) == (False, b"", b"")
    return message


# --- what is agreed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offers", "window_bits", "response"),
    [
        ("permessage-deflate", 15, NO_TAKEOVER),
        ("permessage-deflate; client_max_window_bits", 15, NO_TAKEOVER),  # Chrome, Firefox, Safari, Node
        ("permessage-deflate; client_max_window_bits=8", 15, NO_TAKEOVER),
        ("permessage-deflate; client_max_window_bits=15", 15, NO_TAKEOVER),
        ("permessage-deflate; server_no_context_takeover", 15, NO_TAKEOVER),
        ("permessage-deflate; client_no_context_takeover; server_no_context_takeover", 15, NO_TAKEOVER),
        ("permessage-deflate; server_max_window_bits=9", 9, f"{NO_TAKEOVER}; server_max_window_bits=9"),
        ("permessage-deflate; server_max_window_bits=15", 15, f"{NO_TAKEOVER}; server_max_window_bits=15"),
        ('permessage-deflate; server_max_window_bits="12"', 12, f"{NO_TAKEOVER}; server_max_window_bits=12"),
        (r'permessage-deflate; server_max_window_bits="1\2"', 12, f"{NO_TAKEOVER}; server_max_window_bits=12"),
        ("permessage-deflate;server_max_window_bits =\t10 ;client_max_window_bits", 10, LIMIT_10),
        ("x-webkit-deflate-frame, permessage-deflate", 15, NO_TAKEOVER),
        ('other; a="b"; c=d , ,permessage-deflate', 15, NO_TAKEOVER),
        # The first that can be met, as RFC 7692 §7 wants its fallbacks read.
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=10", 10, LIMIT_10),
        ("permessage-deflate; server_max_window_bits=10, permessage-deflate", 10, LIMIT_10),
        ("permessage-deflate; dictionary=json, permessage-deflate", 15, NO_TAKEOVER),
    ],
)  # fmt: skip
def test_negotiate_accepts_the_first_supported_offer(offers: str, window_bits: int, response: str) -> None:
    assert negotiate(offers) == Agreement(window_bits, response.encode())


@pytest.mark.parametrize(
    "offers",
    [
        None,
        "",
        " , ",
        "x-webkit-deflate-frame",
        "permessage-deflates",
        "x-permessage-deflate",
        'other; a="permessage-deflate"',
        "Permessage-Deflate",
        # What a server must decline: RFC 7692 §7.
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=09",
        "permessage-deflate; server_max_window_bits=+9",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; client_max_window_bits=0",
        "permessage-deflate; client_max_window_bits=010",
        "permessage-deflate; server_no_context_takeover=true",
        "permessage-deflate; client_no_context_takeover=1",
        "permessage-deflate; unknown",
        "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
        "permessage-deflate; server_max_window_bits=9; server_max_window_bits=9",
        "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
        # What breaks RFC 6455 §9.1, even behind a good offer.
        "permessage-deflate;",
        "permessage-deflate; =9",
        "permessage-deflate; server_max_window_bits=",
        'permessage-deflate; server_max_window_bits=""',
        'permessage-deflate; server_max_window_bits="9',
        'permessage-deflate; server_max_window_bits="9 "',
        "permessage-deflate server_no_context_takeover",
        "permessage-deflate, (",
        "permessage-deflate, a b",
        "permessage-deflate\r\nX: y",
        "permessage-deflate; server_max_window_bits=٩",
        "permessage-deflate; client_max_window_bits\n",
    ],
)
def test_negotiate_declines_unsupported_offers(offers: str | None) -> None:
    assert negotiate(offers) is None


pieces = st.sampled_from(
    [
        "permessage-deflate", "server_no_context_takeover", "client_no_context_takeover", "server_max_window_bits",
        "client_max_window_bits", ";", "; ", ",", ", ", "=", "8", "9", "12", "15", "16", '"', '"10"', "\\", " ", "\t",
        "x", "é", "\0",
    ]
)  # fmt: skip


@given(st.one_of(st.lists(pieces, max_size=30).map("".join), st.text(max_size=60).map("permessage-deflate".__add__)))
def test_negotiate_any_header_returns_one_of_eight_agreements(offers: str) -> None:
    agreement = negotiate(offers)
    assert agreement is None or any(agreement is one for one in AGREEMENTS)


@given(st.one_of(st.lists(pieces, max_size=30).map("".join), st.lists(pieces, max_size=12).map("; ".join)))
@example("server_no_context_takeover=")
@example("client_max_window_bits= ")
def test_negotiate_response_matches_the_offer(parameters: str) -> None:
    """A second reader, written for one offer alone, agrees on what may be accepted."""
    asked = [part.strip(" \t") for part in parameters.split(";")] if parameters else []
    names = [re.split(r"[ \t]*=", part)[0] for part in asked]
    good = len(set(names)) == len(names) and all(
        re.fullmatch(
            r"(server|client)_no_context_takeover|client_max_window_bits([ \t]*=[ \t]*\"?([89]|1[0-5])\"?)?"
            r"|server_max_window_bits[ \t]*=[ \t]*\"?(9|1[0-5])\"?",
            part.replace("\\", ""),
        )
        for part in asked
    )
    agreement = negotiate(f"permessage-deflate; {parameters}" if parameters else "permessage-deflate")
    if agreement is not None and "," not in parameters:
        assert good
        limit = next((part for part in asked if part.startswith("server_max_window_bits")), None)
        named = f"; server_max_window_bits={agreement.window_bits}"
        assert agreement.response.decode() == NO_TAKEOVER + (named if limit else "")
        assert limit is None or int(re.sub(r"\D", "", limit)) == agreement.window_bits
    elif not re.search(r"[\"\\,]", parameters):
        assert not good


def test_agreements_are_shared_and_small() -> None:
    assert len(AGREEMENTS) == len(set(AGREEMENTS)) == 8
    assert negotiate("permessage-deflate") is negotiate("other, permessage-deflate; client_max_window_bits=9")
    limited = negotiate("permessage-deflate; server_max_window_bits=9")
    assert limited is negotiate('permessage-deflate; client_max_window_bits; server_max_window_bits="9"')
    assert not hasattr(limited, "__dict__")


@pytest.mark.parametrize(
    "unit", [" ", ";", "; a", "; a=", "a", ",", '; a="', "\\", "; a =\t", "a ", 'a;b="\\\\', ", permessage-deflate; a"]
)
def test_negotiate_takes_linear_time(unit: str) -> None:
    def took(units: int) -> float:
        header = "permessage-deflate" + unit * units + "("
        gc.disable()  # a collection walks all objects of the whole test run, which are not the header's to pay for
        try:
            start = time.process_time()
            assert negotiate(header) is None
            return time.process_time() - start
        finally:
            gc.enable()

    took(1_000)
    # Sixteen times as long takes some 16 times the time; were anything looked at twice over, it would be 256 times.
    assert took(160_000) < 100 * max(min(took(10_000) for _ in range(3)), 0.000_5)


# --- what is sent ----------------------------------------------------------------------------------------------------


@given(messages=st.lists(st.tuples(payloads, windows), max_size=8), level=levels)
def test_deflate_message_inflates_alone_in_its_window(messages: list[tuple[bytes, int]], level: int) -> None:
    deflater = Deflater(level)
    for payload, window_bits in messages:
        data = deflater.deflate(payload, window_bits)
        for window in range(window_bits, 16):
            assert received(data, window) == payload
        assert inflate(data, len(payload)) == payload


@pytest.mark.parametrize("window_bits", range(9, 16))
def test_deflate_stays_within_the_window(window_bits: int) -> None:
    """Repeats at every distance around the window's size, and far beyond it."""
    block = random.Random(7).randbytes(1 << window_bits)
    payload = block + block[:-300] + block * 2 + block[40:]
    deflater = Deflater(9)
    for _ in range(2):
        assert received(deflater.deflate(payload, window_bits), window_bits) == payload


@pytest.mark.parametrize("window_bits", [9, 12, 15])
def test_deflate_is_independent_of_earlier_messages(window_bits: int) -> None:
    deflater = Deflater(6)
    first = deflater.deflate(b'{"type":"chat.message","secret":"s3cret"}' * 3, window_bits)
    deflater.deflate(b'{"type":"chat.message","secret":"other"}' * 500, window_bits)
    deflater.deflate(b"", window_bits)
    assert deflater.deflate(b'{"type":"chat.message","secret":"s3cret"}' * 3, window_bits) == first


def test_deflate_empty_message_is_one_octet() -> None:
    deflater = Deflater(6)
    assert [deflater.deflate(b"", 15) for _ in range(3)] == [b"\0"] * 3
    assert received(b"\0", 15) == inflate(b"\0", 0) == b""


def test_deflate_after_failure_starts_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    make = zlib.compressobj

    class Failing:
        """A compressor without memory for the end of a message."""

        def __init__(self) -> None:
            self._real = make(6, zlib.DEFLATED, -15)

        def compress(self, payload: bytes) -> bytes:
            return self._real.compress(payload)

        def flush(self, mode: int) -> bytes:
            if failing:
                raise MemoryError
            return self._real.flush(mode)

    failing = False
    monkeypatch.setattr(zlib, "compressobj", lambda *_: Failing())
    deflater = Deflater(6)
    assert received(deflater.deflate(b"hello", 15), 15) == b"hello"
    failing = True
    with pytest.raises(MemoryError):
        deflater.deflate(b"the secret of one tenant", 15)
    failing = False
    assert received(deflater.deflate(b"for another", 15), 15) == b"for another"


def test_deflater_creates_one_compressor_for_each_window(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    make = zlib.compressobj

    def counted(level: int, method: int, bits: int) -> object:
        made.append(bits)
        return make(level, method, bits)

    monkeypatch.setattr(zlib, "compressobj", counted)
    deflater = Deflater(1)
    assert made == []
    for _ in range(3):
        deflater.deflate(b"a", 15)
        deflater.deflate(b"a", 9)
    assert made == [-15, -9]


# --- what is taken ---------------------------------------------------------------------------------------------------


@given(payload=payloads, window_bits=windows, level=st.integers(0, 9), strategy=st.integers(0, 4))
def test_inflate_accepts_output_of_every_compressor(
    payload: bytes, window_bits: int, level: int, strategy: int
) -> None:
    assert inflate(sent(payload, window_bits, level, strategy), len(payload)) == payload


@pytest.mark.parametrize(
    ("data", "section"),
    [
        (bytes.fromhex("f248cdc9c90700"), "7.2.3.1"),
        (bytes.fromhex("f200110000"), "7.2.3.2"),
        (bytes.fromhex("000500faff48656c6c6f00"), "7.2.3.3"),
        (bytes.fromhex("f348cdc9c9070000"), "7.2.3.4"),
        (bytes.fromhex("f24805000000ffffcac9c90700"), "7.2.3.5"),
    ],
)
def test_inflate_accepts_the_examples_of_the_rfc(data: bytes, section: str) -> None:
    if (
        section == "7.2.3.2"
    ):  # shares the window of the message before: what was ruled out with client_no_context_takeover
        with pytest.raises(Corrupt):
            inflate(data, 100)
    else:
        assert inflate(data, 5) == b"Hello"


def final(payload: bytes) -> bytes:
    one = zlib.compressobj(6, zlib.DEFLATED, -15)
    return one.compress(payload) + one.flush(zlib.Z_FINISH)


@given(parts=st.lists(st.tuples(payloads, st.booleans()), min_size=1, max_size=8), octet=st.booleans())
def test_inflate_accepts_final_blocks_anywhere(parts: list[tuple[bytes, bool]], octet: bool) -> None:
    data = b"".join(final(part) if is_final else sent(part) + FLUSHED for part, is_final in parts)
    payload = b"".join(part for part, _ in parts)
    if parts[-1][1]:
        data += b"\0" * octet
    else:
        data = data[:-4]
    assert inflate(data, len(payload)) == payload


def test_inflate_after_final_block_keeps_the_window() -> None:
    before = random.Random(1).randbytes(30_000)
    one = zlib.compressobj(6, zlib.DEFLATED, -15, zdict=before)
    after = (one.compress(before[100:20_000]) + one.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(after) < 1_000
    with pytest.raises(Corrupt):
        inflate(after, 60_000)
    assert inflate(final(before) + after, 60_000) == before + before[100:20_000]


def test_inflate_refuses_too_many_final_blocks() -> None:
    assert inflate(FINAL * MAX_FINAL_BLOCKS, 0) == b""
    assert inflate(FINAL * MAX_FINAL_BLOCKS + sent(b"end"), 3) == b"end"
    for more in (FINAL * (MAX_FINAL_BLOCKS + 1), FINAL * 500_000):
        with pytest.raises(Corrupt, match="final blocks"):
            inflate(more, 100)


@given(payload=payloads, most=st.integers(0, 500), is_final=st.booleans())
@example(payload=b"a", most=0, is_final=False)
@example(payload=b"a" * 65_536, most=65_536, is_final=False)
@example(payload=b"a" * 65_537, most=65_536, is_final=True)
def test_inflate_accepts_the_limit_and_refuses_more(payload: bytes, most: int, is_final: bool) -> None:
    data = final(payload) if is_final else sent(payload)
    if len(payload) <= most:
        assert inflate(data, most) == payload
    else:
        with pytest.raises(TooBig):
            inflate(data, most)


def test_inflate_limit_counts_all_final_blocks() -> None:
    assert inflate(final(b"a" * 50) * 2, 100) == b"a" * 100
    with pytest.raises(TooBig):
        inflate(final(b"a" * 50) * 2 + final(b"a"), 100)


@given(st.binary(max_size=300), st.integers(0, 1000))
@example(b"", 0)
@example(b"\x07", 10)  # the block type that does not exist
@example(FLUSHED, 10)
@example(b"\x01\x05\x00\xfa\xff", 100)  # five bytes announced, none there
def test_inflate_any_bytes_returns_message_or_raises(data: bytes, most: int) -> None:
    try:
        message = inflate(data, most)
    except (Corrupt, TooBig):
        return
    assert len(message) <= most
    # Another decompressor reads the same out of it (it stops at the first final block).
    assert message.startswith(zlib.decompressobj(-15).decompress(data + FLUSHED))


@given(payload=payloads.filter(bool), cut=st.integers(1, 100_000))
def test_inflate_truncated_message_is_corrupt(payload: bytes, cut: int) -> None:
    data = sent(payload, strategy=zlib.Z_FIXED)
    kept = data[: -1 - cut % len(data)]
    if not kept:
        assert inflate(kept, 100_000) == b""
        return
    try:
        message = inflate(kept, len(payload))
    except (Corrupt, TooBig):
        return
    assert payload.startswith(message)  # the cut fell between two blocks


@pytest.mark.parametrize(
    "data",
    [
        sent(b"Hello") + b"\xff",
        sent(b"Hello") + FLUSHED + b"rest",
        final(b"Hello") + b"\xff\xff",
        final(b"Hello") + b"\0\0",
        final(b"Hello") + b"\0\1",
        sent(b"Hello") + b"\0",
        b"Hello",
        zlib.compress(b"Hello"),  # with zlib's head and checksum
        b"\x1f\x8b\x08\0\0\0\0\0\0\3" + final(b"Hello") + b"\x82\x89\xd1\xf7\5\0\0\0",  # as gzip does it
        sent(b"Hello" * 100)[:-5],
        b"\x00\x09\x00\xf6\xff",  # announces as many bytes as stand behind a message
        b"\x01\x09\x00\xf6\xff",
        b"\x00\x04\x00\xfb\xff",
        b"\x01\x04\x00\xfb\xff",
        b"\x00\x05\x00\xfa\xff",
    ],
)
def test_inflate_other_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt) as caught:
        inflate(data, 100_000)
    assert "Hello" not in str(caught.value)


BOMB = """
    import resource, sys, zlib
    from service.protocol.deflate import TooBig, inflate

    one = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = one.compress(bytes(1 << 20)) + one.flush(zlib.Z_FULL_FLUSH)
    bomb = (bomb * 512)[:-4]  # half a gigabyte in half a megabyte
    finals = one.compress(bytes(60_000)) + one.flush(zlib.Z_FINISH)
    inflate(bytes(1), 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in (bomb, bomb[:65_536], finals * 60):
        for _ in range(20):
            try:
                inflate(data, 65_536)
            except TooBig:
                continue
            raise AssertionError
    print(len(bomb), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_inflate_bomb_allocates_no_more_than_the_limit() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    size, more = map(int, done.stdout.split())
    assert size > 500_000
    # Each call copies what it did not read of the bomb (here 0.5 MB), and makes 64 KiB; nothing of 512 MB.
    assert more < 4_096, f"{more} KiB"


# --- a peer of another make ------------------------------------------------------------------------------------------


class Peer:
    """The server's end of one WebSocket, as much as it takes to speak with aiohttp's client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.agreement: Agreement | None = None

    async def upgrade(self) -> None:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        fields = {name.lower(): value for name, value in re.findall(r"^(\S+): (.*)\r$", head, re.MULTILINE)}
        self.agreement = negotiate(fields.get("sec-websocket-extensions"))
        key = fields["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        answer = [
            b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade",
            b"Sec-WebSocket-Accept: " + base64.b64encode(hashlib.sha1(key, usedforsecurity=False).digest()),
        ]  # fmt: skip
        if self.agreement is not None:
            answer.append(b"Sec-WebSocket-Extensions: " + self.agreement.response)
        self._writer.write(b"\r\n".join(answer) + b"\r\n\r\n")

    def send(self, data: bytes) -> None:
        length = len(data)
        wide = 0 if length < 126 else 2 if length < 1 << 16 else 8
        size = length.to_bytes(1) if not wide else bytes([126 if wide == 2 else 127]) + length.to_bytes(wide)
        self._writer.write(b"\xc1" + size + data)  # FIN, RSV1, text

    async def receive(self) -> tuple[int, bytes]:
        """The first byte of a frame, and its payload."""
        first, size = await self._reader.readexactly(2)
        length = size & 0x7F
        if length > 125:
            length = int.from_bytes(await self._reader.readexactly(2 if length == 126 else 8))
        mask = await self._reader.readexactly(4)
        payload = await self._reader.readexactly(length)
        return first, bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))

    def abort(self) -> None:
        self._writer.transport.abort()


@asynccontextmanager
async def connected(bits: int) -> AsyncIterator[tuple[aiohttp.ClientWebSocketResponse, Peer]]:
    peers: list[Peer] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer))
        await peers[-1].upgrade()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        async with (
            asyncio.timeout(DEADLINE),
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{port}/", compress=bits, max_msg_size=0) as ws,
        ):
            try:
                yield ws, peers[0]
            finally:
                peers[0].abort()
    finally:
        server.close()


@pytest.mark.parametrize("bits", range(9, 16))
async def test_aiohttp_client_negotiates_and_exchanges_messages(bits: int) -> None:
    deflater = Deflater(6)
    messages = ["a", "", '{"type":"ticker.price","price":1}' * 40, "né😀" * 20_000, "", os.urandom(3_000).hex(), "a"]
    async with connected(bits) as (ws, peer):
        assert ws.compress  # whatever window it asked for, it keeps the largest
        assert peer.agreement is not None
        assert peer.agreement.window_bits == bits
        for message in messages:
            peer.send(deflater.deflate(message.encode(), bits))
            answer = await ws.receive()
            assert (answer.type, answer.data) == (WSMsgType.TEXT, message)
        for message in messages:
            await ws.send_str(message)
            first, payload = await peer.receive()
            assert first == 0xC1
            assert inflate(payload, 200_000).decode() == message


async def test_client_without_offer_gets_no_compression() -> None:
    async with connected(0) as (ws, peer):
        assert (ws.compress, peer.agreement) == (0, None)
