"""FrameReader: any segmentation gives the same messages, and any violation of RFC 6455 is refused."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from typing import Any, NamedTuple, SupportsIndex, TypeVar

import pytest
from aiohttp._websocket.helpers import websocket_mask
from hypothesis import given, settings
from hypothesis import strategies as st

from service.protocol.framing import BINARY, CLOSE, CONTINUATION, PING, PONG, RSV1, TEXT
from service.web.ws import frames
from service.web.ws.frames import (
    MAX_FRAGMENTS,
    FrameReader,
    MessageTooBigError,
    ProtocolError,
    Received,
    parse_close,
    parse_single_text,
)
from tests.support.examples import examples

MAX_BYTES = 1 << 20

T = TypeVar("T")


# --- a client, written from RFC 6455 §5.2 and RFC 7692 §7.2.1 ---------------------------------------------------------


def masked(payload: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def head(first: int, size: int, *, form: int | None = None, mask_bit: int = 0x80) -> bytes:
    """The head up to the mask. `form`: bytes of the length field, 0 for the seven bits; None for the shortest."""
    if form is None:
        form = 0 if size < 126 else 2 if size < 65_536 else 8
    said = {0: size, 2: 126, 8: 127}[form]
    return bytes([first, mask_bit | said]) + (size.to_bytes(form, "big") if form else b"")


def sent(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = b"\x01\x02\x03\x04",
    form: int | None = None,
) -> bytes:
    """A frame; without `mask`, as only servers send it."""
    first = (0x80 if fin else 0) | rsv | opcode
    if mask is None:
        return head(first, len(payload), form=form, mask_bit=0) + payload
    return head(first, len(payload), form=form) + mask + masked(payload, mask)


def deflated(payload: bytes, level: int = 6) -> bytes:
    """The payload of a message with RSV1."""
    stream = zlib.compressobj(level, zlib.DEFLATED, -15)
    return (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def read(reader: FrameReader, segments: Iterable[bytes]) -> list[Received]:
    return [received for segment in segments for received in reader.feed(segment)]


def error_of(reader: FrameReader, *segments: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        read(reader, segments)
    return caught.value


def result_or_error(work: Callable[[], T]) -> T | ProtocolError:
    """The messages, or the error that it raises."""
    try:
        return work()
    except ProtocolError as error:
        return error


def new(max_bytes: int = MAX_BYTES, *, inflates: bool = False) -> FrameReader:
    return FrameReader(max_bytes, inflates=inflates)


# --- segmentation -----------------------------------------------------------------------------------------------------


class Conversation(NamedTuple):
    """The bytes that a client has sent, and the messages they hold."""

    wire: bytes
    means: list[Received]


masks = st.binary(min_size=4, max_size=4)
controls = st.tuples(st.sampled_from((PING, PONG, CLOSE)), st.binary(max_size=125))
# Around the sizes at which the length field changes its form.
sizes = st.one_of(st.integers(0, 300), st.sampled_from((125, 126, 127, 65_535, 65_536, 65_537)))


@st.composite
def texts(draw: st.DrawFn) -> str:
    return draw(st.text(max_size=20)) * draw(st.integers(0, 5)) + "x" * draw(st.integers(0, 130))


@st.composite
def messages(draw: st.DrawFn, *, inflates: bool) -> Conversation:
    """A message in arbitrary fragments, with control frames before each of them."""
    content: str | bytes = draw(st.one_of(texts(), st.binary(max_size=300), sizes.map(bytes)))
    opcode, payload = (TEXT, content.encode()) if isinstance(content, str) else (BINARY, content)
    rsv = RSV1 if inflates and draw(st.booleans()) else 0
    if rsv:
        payload = deflated(payload, draw(st.integers(0, 9)))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=4)))
    parts = [payload[start:end] for start, end in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    wire, means = b"", list[Received]()
    for index, part in enumerate(parts):
        for control, said in draw(st.lists(controls, max_size=2)):
            wire += sent(control, said, mask=draw(masks))
            means.append((control, said))
        wire += sent(
            CONTINUATION if index else opcode,
            part,
            fin=index == len(parts) - 1,
            rsv=0 if index else rsv,
            mask=draw(masks),
        )
    return Conversation(wire, [*means, (opcode, content)])


@st.composite
def conversations(draw: st.DrawFn, *, inflates: bool) -> Conversation:
    said = draw(st.lists(messages(inflates=inflates), max_size=4))
    return Conversation(b"".join(part.wire for part in said), [received for part in said for received in part.means])


@st.composite
def segments(draw: st.DrawFn, wire: bytes) -> list[bytes]:
    """The bytes in arbitrary segments."""
    if draw(st.booleans()) and len(wire) < 2000:
        return [wire[index : index + 1] for index in range(len(wire))]
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=6)))
    return [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


@pytest.mark.parametrize("inflates", [False, True], ids=["plain", "deflating"])
@settings(max_examples=examples(50), deadline=None)
@given(st.data())
def test_frame_reader_with_any_segmentation_gives_the_same_messages(inflates: bool, data: st.DataObject) -> None:
    said = data.draw(conversations(inflates=inflates))
    reader = new(inflates=inflates)
    assert reader.is_idle
    assert read(reader, data.draw(segments(said.wire))) == said.means
    assert reader.is_idle


@settings(max_examples=examples(40), deadline=None)
@given(st.data())
def test_frame_reader_is_idle_exactly_between_messages(data: st.DataObject) -> None:
    """WebSocket drops an idle reader, so the next one must not need its state."""
    said = data.draw(messages(inflates=True))
    kept, ends = new(inflates=True), False
    for index in range(len(said.wire)):
        assert not ends, "it had ended before its last byte"
        received = read(kept, [said.wire[index : index + 1]])
        ends = any(opcode in (TEXT, BINARY) for opcode, _ in received)
        if index == 0 or ends:
            assert kept.is_idle == ends
    assert ends


@settings(max_examples=examples(100), deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.builds(bytes.__add__, st.sampled_from([b"\x81\xfe", b"\x81\x85"]), st.binary())
    )
)
def test_frame_reader_with_random_bytes_refuses_or_waits(garbage: bytes) -> None:
    for inflates in (False, True):
        received = result_or_error(partial(read, new(1024, inflates=inflates), [garbage]))
        if isinstance(received, ProtocolError):
            assert received.code in (1002, 1007, 1009)
            assert received.reason
        else:
            assert all(type(content) is (str if opcode == TEXT else bytes) for opcode, content in received)


# --- parse_single_text ------------------------------------------------------------------------------------------------


@st.composite
def nearly_frames(draw: st.DrawFn) -> bytes:
    """Text frames, and frames that differ from them slightly."""
    payload = draw(st.one_of(st.text(max_size=200).map(str.encode), st.binary(max_size=200)))
    wire = bytearray(sent(TEXT, payload, mask=draw(masks), form=draw(st.sampled_from([None, None, None, 2, 8]))))
    if draw(st.booleans()):
        wire[draw(st.integers(0, min(9, len(wire) - 1)))] = draw(st.integers(0, 255))
    end = draw(st.sampled_from([len(wire), len(wire) - 1, len(wire) + 1]))
    return bytes(wire[:end]) + b"\x00" * (end - len(wire))


@settings(max_examples=examples(150), deadline=None)
@given(nearly_frames(), st.sampled_from([100, MAX_BYTES]))
def test_single_text_agrees_with_frame_reader(wire: bytes, max_bytes: int) -> None:
    text = result_or_error(lambda: parse_single_text(wire, max_bytes))
    reader = new(max_bytes)
    if isinstance(text, ProtocolError):
        assert error_of(reader, wire).code == text.code == 1007
    elif text is not None:
        assert read(reader, [wire]) == [(TEXT, text)]
        assert reader.is_idle


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535])
def test_single_text_up_to_64_kib_is_parsed(size: int) -> None:
    wire = sent(TEXT, b"x" * size)
    assert parse_single_text(wire, 65_535) == "x" * size
    assert parse_single_text(wire + b"\x81", 65_535) is None
    assert parse_single_text(wire[:-1], 65_535) is None
    if size:
        assert parse_single_text(wire, size) == "x" * size, "of exactly the bound"
        assert parse_single_text(wire, size - 1) is None, "the reader says that it is too large"


@settings(max_examples=examples(40), deadline=None)
@given(st.binary(max_size=100), masks)
def test_aiohttp_mask_agrees_with_rfc_6455(payload: bytes, mask: bytes) -> None:
    """RFC 6455 §5.3. The function is in a private module of aiohttp."""
    changed = bytearray(payload)
    websocket_mask(mask, changed)
    assert changed == masked(payload, mask)


# --- limits -----------------------------------------------------------------------------------------------------------

INCOMPRESSIBLE = Random(1).randbytes(1000)


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [200, 65_535, 65_536, 100_000])
def test_message_at_the_limit_passes_and_one_byte_more_fails(opcode: int, size: int) -> None:
    fits, more = b"x" * size, b"x" * (size + 1)
    means = [(opcode, fits.decode() if opcode == TEXT else fits)]
    half = size // 2
    assert read(new(size), [sent(opcode, fits)]) == means
    assert isinstance(error_of(new(size), sent(opcode, more)), MessageTooBigError)
    in_two = sent(opcode, fits[:half], fin=False) + sent(CONTINUATION, fits[half:])
    assert read(new(size), [in_two]) == means
    in_two = sent(opcode, more[:half], fin=False) + sent(CONTINUATION, more[half:])
    assert error_of(new(size), in_two).code == 1009
    assert read(new(size, inflates=True), [sent(opcode, deflated(fits), rsv=RSV1)]) == means
    error = error_of(new(size, inflates=True), sent(opcode, deflated(more), rsv=RSV1))
    assert (error.code, error.reason) == (1009, f"a message has at most {size} bytes")


def test_message_limit_applies_to_each_message() -> None:
    whole, halves = sent(TEXT, b"x" * 200), sent(TEXT, b"x" * 100, fin=False) + sent(CONTINUATION, b"x" * 100)
    assert read(new(200), [whole + halves + whole + halves]) == [(TEXT, "x" * 200)] * 4


@pytest.mark.parametrize("level", [0, 1, 9])
def test_deflated_message_larger_on_the_wire_passes(level: int) -> None:
    size = len(INCOMPRESSIBLE)
    wire = deflated(INCOMPRESSIBLE, level)
    assert len(wire) > size
    fits = read(new(size, inflates=True), [sent(BINARY, wire, rsv=RSV1)])
    assert fits == [(BINARY, INCOMPRESSIBLE)]
    cut = sent(BINARY, wire[:500], fin=False, rsv=RSV1) + sent(CONTINUATION, wire[500:])
    assert read(new(size, inflates=True), [cut]) == fits
    assert error_of(new(size - 1, inflates=True), sent(BINARY, wire, rsv=RSV1)).code == 1009
    plain_behind = [
        sent(TEXT, deflated(b"x"), rsv=RSV1),
        sent(BINARY, INCOMPRESSIBLE, fin=False),
        sent(CONTINUATION, b"y"),
    ]
    assert error_of(new(size, inflates=True), *plain_behind).code == 1009, "that is for messages that are deflated"


def test_message_above_the_limit_is_refused_by_its_head() -> None:
    assert error_of(new(1000), head(0x80 | TEXT, 1001)).code == 1009
    reader = new(1000)
    assert read(reader, [sent(TEXT, b"x" * 600, fin=False)]) == []
    assert error_of(reader, head(0x80, 401)).code == 1009
    assert error_of(new(1000, inflates=True), head(0x80 | RSV1 | TEXT, 2000)).code == 1009


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, (1 << 63) + 5, (1 << 63) - 1, 1 << 32])
@pytest.mark.parametrize("first", [0x80 | TEXT, 0x80 | RSV1 | BINARY])
def test_message_with_a_64_bit_length_is_refused_by_its_head(first: int, size: int) -> None:
    assert error_of(new(inflates=True), head(first, size, form=8)).code == 1009


@pytest.mark.parametrize(("size", "form"), [(0, 2), (1, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)])
def test_length_in_too_many_bytes_is_refused(size: int, form: int) -> None:
    """RFC 6455 §5.2: "in all cases, the minimal number of bytes MUST be used"."""
    wire = sent(TEXT, b"x" * size, form=form)
    assert parse_single_text(wire, MAX_BYTES) is None
    error = error_of(new(), wire)
    assert (error.code, "as few bytes" in error.reason) == (1002, True)
    assert error_of(new(), head(0x80 | TEXT, size, form=form)).code == 1002, "its head is enough"
    assert read(new(), [sent(TEXT, b"x" * size)]) == [(TEXT, "x" * size)]


class TestFragments:
    def test_fragments_at_the_limit_pass_and_one_more_fails(self) -> None:
        frames = [sent(TEXT, fin=False), *[sent(CONTINUATION, fin=False)] * (MAX_FRAGMENTS - 2)]
        assert read(new(1024), [*frames, sent(CONTINUATION, b"x")]) == [(TEXT, "x")]
        reader = new(1024)
        assert read(reader, frames) == []
        error = error_of(reader, sent(CONTINUATION, fin=False))
        assert (error.code, error.reason) == (1009, f"a message has at most {MAX_FRAGMENTS} frames")

    def test_fragments_of_a_large_message_have_a_higher_limit(self) -> None:
        payload = b"x" * MAX_BYTES
        frames = [
            sent(CONTINUATION if start else TEXT, payload[start : start + 64], fin=False)
            for start in range(0, MAX_BYTES, 64)
        ]
        frames[-1] = sent(CONTINUATION, payload[-64:])
        assert len(frames) > MAX_FRAGMENTS
        assert read(new(), frames) == [(TEXT, payload.decode())]
        assert error_of(new(), sent(TEXT, fin=False), sent(CONTINUATION, fin=False) * (MAX_BYTES // 64)).code == 1009

    def test_fragments_are_counted_per_message_without_control_frames(self) -> None:
        reader = new(1024)
        for _ in range(3):
            frames = [sent(TEXT, fin=False), *[sent(PING) + sent(CONTINUATION, fin=False)] * (MAX_FRAGMENTS - 2)]
            received = read(reader, [*frames, sent(CONTINUATION)])
            assert received == [(PING, b"")] * (MAX_FRAGMENTS - 2) + [(TEXT, "")]


# --- violations -------------------------------------------------------------------------------------------------------

CONTROLS = (CLOSE, PING, PONG)


def is_allowed(first: int, *, within: bool, inflates: bool) -> bool:
    """Whether an empty masked frame may start with this byte: RFC 6455 §5.2, §5.4, §5.5, RFC 7692 §6."""
    fin, rsv, opcode = first & 0x80, first & 0x70, first & 0x0F
    if opcode in CONTROLS:
        return bool(fin) and not rsv
    if opcode == CONTINUATION:
        return within and not rsv
    if opcode in (TEXT, BINARY):
        return not within and (not rsv or (inflates and rsv == RSV1))
    return False


@pytest.mark.parametrize("inflates", [False, True], ids=["plain", "deflating"])
@pytest.mark.parametrize("within", [False, True], ids=["between messages", "within a message"])
def test_first_byte_is_accepted_as_the_rfc_says(within: bool, inflates: bool) -> None:
    for first in range(256):
        reader = new(inflates=inflates)
        if within:
            read(reader, [sent(TEXT, b"x", fin=False)])
        lawful = is_allowed(first, within=within, inflates=inflates)
        received = result_or_error(partial(read, reader, [head(first, 0)]))
        assert (received == []) == lawful, f"{first:08b}"
        assert lawful or (isinstance(received, ProtocolError) and received.code == 1002)


def test_frame_without_mask_is_refused_by_its_head() -> None:
    for first in range(256):
        error = error_of(new(inflates=True), bytes([first, 0]))
        assert (error.code, "mask" in error.reason) == (1002, True)
    for size in (0, 1, 4, 125, 126, 1000):
        assert parse_single_text(sent(TEXT, b"x" * size, mask=None), MAX_BYTES) is None


@pytest.mark.parametrize("opcode", CONTROLS)
def test_control_frame_above_125_bytes_is_refused(opcode: int) -> None:
    assert read(new(), [sent(opcode, b"x" * 125)]) == [(opcode, b"x" * 125)]
    assert error_of(new(), head(0x80 | opcode, 126)).code == 1002
    assert error_of(new(), head(0x80 | opcode, 65_536)).code == 1002
    assert error_of(new(), head(0x80 | opcode, 5, form=2)).code == 1002


NOT_UTF8 = [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82", b"a\x80"]


@pytest.mark.parametrize("payload", NOT_UTF8)
def test_text_that_is_not_utf_8_is_refused(payload: bytes) -> None:
    assert error_of(new(), sent(TEXT, payload)).code == 1007
    assert error_of(new(), sent(TEXT, payload[:1], fin=False), sent(CONTINUATION, payload[1:])).code == 1007
    assert error_of(new(inflates=True), sent(TEXT, deflated(payload), rsv=RSV1)).code == 1007
    assert read(new(), [sent(BINARY, payload)]) == [(BINARY, payload)]
    with pytest.raises(ProtocolError) as caught:
        parse_single_text(sent(TEXT, payload), MAX_BYTES)
    assert caught.value.code == 1007


def test_character_split_between_fragments_is_decoded() -> None:
    euro = "€".encode()
    for cut in range(len(euro) + 1):
        assert read(new(), [sent(TEXT, euro[:cut], fin=False) + sent(CONTINUATION, euro[cut:])]) == [(TEXT, "€")]


@pytest.mark.parametrize("payload", [b"\x07", b"\xff" * 8, b"\x00\x01\x00", deflated(b"hello, hello, hello")[:-3]])
def test_message_that_does_not_inflate_is_refused(payload: bytes) -> None:
    error = error_of(new(inflates=True), sent(BINARY, payload, rsv=RSV1))
    assert (error.code, "RFC 7692" in error.reason) == (1007, True)


def test_messages_before_a_violation_are_given() -> None:
    received: list[Received] = []

    def take() -> None:
        for one in new().feed(sent(TEXT, b"1") + sent(PING, b"2") + sent(3) + sent(TEXT, b"4")):
            received.append(one)  # noqa: PERF402  # the messages before the error are the subject

    with pytest.raises(ProtocolError):
        take()
    assert received == [(TEXT, "1"), (PING, b"2")]


def is_sendable(code: int) -> bool:
    """Whether an endpoint may send this code: RFC 6455 §7.4 and IANA's registry."""
    return code in (*range(1000, 1004), *range(1007, 1015), *range(3000, 5000))


def test_close_code_is_accepted_as_the_rfc_says() -> None:
    for code in (*range(5100), 1 << 15, (1 << 16) - 1):
        said = result_or_error(partial(parse_close, code.to_bytes(2, "big") + b"bye"))
        assert (said == (code, "bye")) == is_sendable(code), code
        assert is_sendable(code) or (isinstance(said, ProtocolError) and said.code == 1002)


def test_close_payload_of_one_byte_or_invalid_utf_8_is_refused() -> None:
    assert parse_close(b"") == (None, "")
    assert parse_close(b"\x03\xe8") == (1000, "")
    for byte in range(256):
        with pytest.raises(ProtocolError) as caught:
            parse_close(bytes([byte]))
        assert caught.value.code == 1002
    with pytest.raises(ProtocolError) as caught:
        parse_close(b"\x03\xe8\xff")
    assert caught.value.code == 1007


# --- cost -------------------------------------------------------------------------------------------------------------


class CountingBuffer(bytearray):
    """Counts the bytes that are copied out of all of them."""

    copied = 0

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        part = super().__getitem__(index)
        CountingBuffer.copied += len(part) if isinstance(part, bytearray) else 0
        return part


def small_segments(size: int, *, step: int, fragment: int) -> Iterator[bytes]:
    starts = range(0, size, fragment)
    for start in starts:
        wire = sent(CONTINUATION if start else BINARY, bytes(fragment), fin=start == starts[-1])
        for at in range(0, len(wire), step):
            yield wire[at : at + step]


@pytest.mark.parametrize("fragment", [MAX_BYTES, 4096, 64], ids=["in one frame", "in some", "in many"])
def test_message_in_many_segments_is_copied_a_fixed_number_of_times(
    fragment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frames, "bytearray", CountingBuffer, raising=False)
    monkeypatch.setattr(CountingBuffer, "copied", 0)
    reader = new()
    received = read(reader, small_segments(MAX_BYTES, step=64, fragment=fragment))
    assert [len(content) for _, content in received] == [MAX_BYTES]
    heads = (MAX_BYTES // fragment) * 14 + (MAX_BYTES // 64 + 1) * 8
    assert 0 < CountingBuffer.copied <= MAX_BYTES + heads, "its payload once, and the length and mask of its heads"


def test_message_in_many_segments_needs_little_extra_memory() -> None:
    pieces = list(small_segments(MAX_BYTES, step=1400, fragment=8192))
    tracemalloc.start()
    try:
        read(new(), pieces)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_BYTES


def test_deflate_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = deflated(bytes(200 * MAX_BYTES), 9)
    assert len(bomb) < MAX_BYTES
    wire = sent(TEXT, bomb, rsv=RSV1)
    tracemalloc.start()
    try:
        error = error_of(new(inflates=True), wire)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error.code == 1009
    assert peak < 6 * MAX_BYTES
