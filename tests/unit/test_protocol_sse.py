"""protocol/sse.py and core/last_event_id.py: no message breaks the framing, and every id is read back."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core import last_event_id
from service.core.last_event_id import PositionTracker, read_moves
from service.core.position import Position
from service.errors import ErrorCode, ServiceError
from service.protocol import framing, sse
from tests.support.streams import parse

SPACES = st.text(st.sampled_from("\r\n\t "), max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
IDS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=64)
EPOCHS = st.text(st.characters(min_codepoint=1, codec="utf-8"), min_size=1, max_size=64)
POSITIONS = st.builds(Position, EPOCHS, st.integers(0, 2**53 - 1), st.none() | IDS)


@st.composite
def spaced_json(draw: st.DrawFn) -> str:
    """JSON text with any whitespace between its tokens, and line separators that JSON allows inside strings."""
    text = json.dumps(draw(JSON), ensure_ascii=draw(st.booleans()))
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[^",:\[\]{}]+|[,:\[\]{}]', text)
    return "".join(draw(SPACES) + token for token in tokens) + draw(SPACES)


@given(st.lists(spaced_json(), min_size=1, max_size=5), st.integers(0, 2))
def test_event_of_any_json_arrives_alone_and_unchanged(texts: list[str], comments: int) -> None:
    stream = sse.retry(1.5) + b"".join(sse.event(text.encode()) + comments * sse.COMMENT for text in texts)
    assert [json.loads(data) for _, data in parse(stream.decode())] == [json.loads(text) for text in texts]


@given(st.lists(st.binary(max_size=70_000), max_size=4))
def test_frames_split_into_the_payloads_that_they_were_made_of(payloads: list[bytes]) -> None:
    assert framing.payloads(b"".join(framing.frame(framing.TEXT, payload) for payload in payloads)) == payloads


@given(st.lists(POSITIONS | st.none(), min_size=1, max_size=last_event_id.MAX_CHANNELS))
def test_id_of_any_positions_survives_the_stream_and_is_read_back(positions: list[Position | None]) -> None:
    channels = [f"room:{index}" for index in range(len(positions))]
    known = {channel: position for channel, position in zip(channels, positions, strict=True) if position is not None}
    encoded = PositionTracker(channels, known).encode()
    [(found, _)] = parse(sse.event(b"{}", encoded).decode())
    assert last_event_id.decode(found, channels) == known


def test_positions_follow_the_messages_of_a_stream() -> None:
    tracker = PositionTracker(["a:1", "b:1"], {})
    frames = [
        {"type": "subscribed", "channel": "a:1", "epoch": "e1", "offset": 4, "last": "m-4"},
        [
            {"type": "chat.message", "channel": "a:1", "id": "m-5", "offset": 5},
            {"type": "chat.typing", "channel": "a:1", "id": "t-1"},
            {"type": "subscribed", "channel": "b:1", "epoch": "e2", "offset": 0},
        ],
    ]
    for frame in frames:
        assert tracker.apply(read_moves(json.dumps(frame).encode()))
    found = last_event_id.decode(tracker.encode().decode(), ["a:1", "b:1"])
    assert found == {"a:1": Position("e1", 5, "m-5"), "b:1": Position("e2", 0, None)}
    assert not tracker.apply(read_moves(b'{"type": "ack", "id": "1", "offset": 9}'))
    assert tracker.apply(read_moves(b'{"type": "unsubscribed", "channel": "a:1", "code": "removed"}'))
    assert last_event_id.decode(tracker.encode().decode(), ["a:1", "b:1"]) == {"b:1": Position("e2", 0, None)}


@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(ServiceError) as refused:
        last_event_id.decode(text, ["a:1"])
    assert refused.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    "rest",
    [
        "",
        "e:1:m,e:1:m",
        "e:-1:m",
        "e:١:m",
        ":1:m",
        "e",
        "e:9007199254740992:m",
        "e:" + "9" * 5000 + ":m",
        "x" * 65 + ":1:m",
    ],
)
def test_id_with_a_wrong_position_is_refused(rest: str) -> None:
    check = PositionTracker(["a:1"], {}).encode().decode().partition(".")[0]
    if not rest:
        assert last_event_id.decode(f"{check}.", ["a:1"]) == {}
        return
    with pytest.raises(ServiceError):
        last_event_id.decode(f"{check}.{rest}", ["a:1"])
