"""The load client's figures are right: what else could a benchmark stand on?"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import zlib
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.build import SOURCES
from tests.benchmarks.peer import (
    CLOSE,
    CONTINUATION,
    DEADLINE,
    PING,
    PONG,
    TEXT,
    Caller,
    Peer,
    Post,
    accepted,
    finished,
    frame,
    job_file,
    limit,
    load,
    started,
    to_all,
)
from tests.harness import token
from tests.load.server import CONFIG, PLENTY, serving

KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3
STAMP = re.compile(rb'"t":(1\d{15})')


def _settings() -> dict[str, Any]:
    limits = CONFIG["limits"]
    assert isinstance(limits, dict)
    rates = dict.fromkeys(("connection_rate", "user_rate", "tenant_rate"), PLENTY)
    return {**CONFIG, "contract": str(Path(__file__).parent / "rooms.yaml"), "limits": {**limits, **rates}}


@pytest.fixture(autouse=True)
def _quick_loop(request: pytest.FixtureRequest) -> None:
    """Debug mode makes the server of these tests many times slower than the client under test."""
    if request.node.get_closest_marker("asyncio") is not None:
        request.getfixturevalue("_no_debug")


@pytest.fixture
async def _no_debug() -> None:
    asyncio.get_running_loop().set_debug(False)


# --- against the limit server: the right numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("sanitize", [True, False], ids=["sanitized", "plain"])
@pytest.mark.parametrize("outstanding", [1, 16])
async def test_fan_out_reaches_everybody_once(tmp_path: Path, outstanding: int, sanitize: bool) -> None:
    async with limit() as port:
        job = job_file(
            tmp_path,
            port,
            ("workload", "fanout"),
            ("connections", 100),
            ("sources", 3),
            ("outstanding", outstanding),
            ("seconds", 0.3),
            ("warmup", 0.1),
            ("payload", 128),
        )
        report = await load(job, sanitize=sanitize)
    assert report["published"] > outstanding
    assert report["deliveries"] == report["expected"] == report["published"] * 100 == report["latency_us"]["count"]
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0
    assert report["frames_in"] == report["deliveries"]
    assert report["bytes_in"] == report["deliveries"] * (128 + 4)
    assert report["bytes_out"] == report["published"] * (128 + 8)
    assert 0.3 <= report["seconds"] < 5
    assert report["deliveries_per_second"] == pytest.approx(report["deliveries"] / report["seconds"], rel=0.01)
    latency = report["latency_us"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    assert latency["mean"] * 100 * report["published"] <= outstanding * 1.05e8 * report["seconds"], "more was under way"


@pytest.mark.parametrize(("active", "turns"), [(None, 7), (12, 7)])
async def test_rooms_reach_their_members_and_nobody_else(tmp_path: Path, active: int | None, turns: int) -> None:
    lines = [("active", active)] if active else []
    async with limit() as port:
        job = job_file(
            tmp_path,
            port,
            ("path", "/?room=%r"),
            ("workload", "rooms"),
            ("connections", 50),
            ("rooms", 10),
            ("turns", turns),
            *lines,
        )
        report = await load(job)
    assert report["published"] == (active or 50) * turns
    assert report["deliveries"] == report["expected"] == report["published"] * 5
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0


async def test_rooms_of_different_sizes(tmp_path: Path) -> None:
    async with limit() as port:  # 7 connections in 3 rooms: 3, 2 and 2
        job = job_file(
            tmp_path, port, ("path", "/?room=%r"), ("workload", "rooms"), ("connections", 7), ("rooms", 3), ("turns", 5)
        )
        report = await load(job)
    assert report["deliveries"] == report["expected"] == 5 * (9 + 4 + 4)


@pytest.mark.parametrize("path", ["/?room=1&echo=1", "/?room=%r"])
async def test_echo_counts_each_answer(tmp_path: Path, path: str) -> None:
    async with limit() as port:
        job = job_file(
            tmp_path, port, ("path", path), ("workload", "echo"), ("connections", 20), ("rooms", 20), ("turns", 30)
        )
        report = await load(job)
    assert report["published"] == report["deliveries"] == report["expected"] == 600 == report["latency_us"]["count"]
    assert report["lost"] == report["strayed"] == 0


async def test_a_rate_is_kept(tmp_path: Path) -> None:
    async with limit() as port:
        job = job_file(
            tmp_path, port, ("workload", "rate"), ("connections", 10), ("rate", 400), ("active", 5), ("seconds", 0.5)
        )
        report = await load(job)
    assert report["published"] == 200
    assert report["deliveries"] == report["expected"] == 2000


async def test_connecting_and_a_storm_bring_everybody_in(tmp_path: Path) -> None:
    async with limit() as port:
        for workload in ("connect", "storm"):
            job = job_file(tmp_path, port, ("workload", workload), ("connections", 300), ("concurrency", 20))
            report = await load(job)
            assert report["connect_us"]["count"] == report["latency_us"]["count"] == 300
            assert 0 < report["connect_us"]["max"] <= report["seconds"] * 1e6
            assert report["connect_seconds"] == report["seconds"]


async def test_the_limit_server_takes_frames_wherever_tcp_cuts_them() -> None:
    text, mask = b"0123456789" * 20, b"\x01\x80\xff\x10"
    masked = bytes(octet ^ mask[n % 4] for n, octet in enumerate(text))
    head = f"GET /?room=7 HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n".encode()
    whole = b"\x81\xfe" + len(text).to_bytes(2, "big") + mask + masked
    async with limit() as port, asyncio.timeout(DEADLINE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        caller = Caller(reader, writer, "", [])
        await caller.pieces(head[:50], head[50:])
        assert (await reader.readuntil(b"\r\n\r\n")).endswith(f"Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n".encode())
        for border in range(1, len(whole)):
            await caller.pieces(whole[:border], whole[border:])
            assert await reader.readexactly(len(frame(text))) == frame(text)
        caller.raw(b"\x89\x82" + mask + bytes((ord("h") ^ 1, ord("i") ^ 0x80)) + b"\x88\x80" + mask)
        assert await reader.read() == frame(b"hi", PONG) + frame(b"", CLOSE)
        writer.close()
        await writer.wait_closed()


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [40, 200])
async def test_an_event_is_found_wherever_tcp_cuts_it(tmp_path: Path, size: int) -> None:
    borders = iter(range(1, 500))

    async def cut(_peer: Peer, caller: Caller, text: bytes) -> None:
        whole, border = frame(text), next(borders)
        await caller.pieces(whole[:border], whole[border:])

    turns = size + (2 if size < 126 else 4) - 1
    async with Peer(on_text=cut).running() as peer:
        report = await load(
            job_file(tmp_path, peer.port, ("workload", "rooms"), ("turns", turns), ("payload", size)), peer
        )
    assert report["deliveries"] == report["frames_in"] == turns
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0
    assert next(borders) == turns + 1


async def test_a_long_frame_is_taken_wherever_its_head_is_cut(tmp_path: Path) -> None:
    borders = iter(range(1, 50))

    async def cut(_peer: Peer, caller: Caller, text: bytes) -> None:
        whole, border = frame(text), next(borders)
        await caller.pieces(whole[:border], whole[border : border + 40_000], whole[border + 40_000 :])

    async with Peer(on_text=cut).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rooms"), ("turns", 40), ("payload", 70_000))
        report = await load(job, peer)
    assert report["deliveries"] == 40
    assert report["lost"] == 0


async def test_frames_that_come_byte_by_byte_or_many_at_once(tmp_path: Path) -> None:
    async def drip_or_pour(_peer: Peer, caller: Caller, text: bytes) -> None:
        if len(caller.texts) == 1:
            await caller.pieces(*(bytes((octet,)) for octet in frame(text) + frame(b"") + frame(b"p", PING)))
        else:
            caller.raw(frame(b"nothing") * 1000 + frame(b"") + frame(text) + frame(b"nothing") * 1000)

    async with Peer(on_text=drip_or_pour).running() as peer:
        report = await load(job_file(tmp_path, peer.port, ("workload", "rooms"), ("turns", 20)), peer)
    assert report["deliveries"] == 20
    assert report["frames_in"] >= 2 + 19 * 1002 - 1000
    assert report["pings"] == 1


async def test_an_event_is_found_wherever_its_message_is_fragmented(tmp_path: Path) -> None:
    borders = iter(range(500))

    async def fragmented(_peer: Peer, caller: Caller, text: bytes) -> None:
        border = next(borders)
        parts = (frame(text[:border], TEXT, fin=False), frame(b"?", PING), frame(text[border:], CONTINUATION))
        caller.raw(b"".join(parts))

    async with Peer(on_text=fragmented).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rooms"), ("turns", 61), ("payload", 60))
        report = await load(job, peer)
    assert report["deliveries"] == report["frames_in"] == report["pings"] == 61
    assert report["lost"] == report["duplicated"] == 0


async def test_many_events_in_one_frame_count_each(tmp_path: Path) -> None:
    held: list[bytes] = []

    async def joined(peer: Peer, _caller: Caller, text: bytes) -> None:
        held.append(text)
        if len(held) == 8:
            for member in peer.callers:
                member.send(b'[{"t":12},"t":,' + b",".join(held) + b"]")  # markers without a stamp count nothing
            held.clear()

    async with Peer(on_text=joined).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rooms"), ("connections", 8), ("turns", 10))
        report = await load(job, peer)
    assert report["deliveries"] == 8 * 8 * 10
    assert report["frames_in"] == 8 * 10
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0


@pytest.mark.parametrize("size", [*range(33, 50), 125, 126, 127, 65_535, 65_536])
async def test_what_is_sent_is_masked_and_as_long_as_wanted(tmp_path: Path, size: int) -> None:
    seen: list[Caller] = []

    async def keep(peer: Peer, caller: Caller, text: bytes) -> None:
        seen[:] = [caller]
        await to_all(peer, caller, text)

    async with Peer(on_text=keep).running() as peer:
        await load(job_file(tmp_path, peer.port, ("workload", "rooms"), ("turns", 5), ("payload", size)), peer)
    (caller,) = seen
    assert len(caller.texts) == 5
    for text in caller.texts:
        assert len(text) == size
        message = json.loads(text)
        assert len(str(message["t"])) == 16
        assert set(message["p"]) <= {"x"}
    assert len(set(caller.masks)) == 5


async def test_padding_ids_and_the_answers_to_pings(tmp_path: Path) -> None:
    seen: list[Caller] = []

    async def greet(_peer: Peer, caller: Caller) -> None:
        seen.append(caller)
        caller.raw(frame(b"are you there?", PING))
        caller.raw(frame(b"", PING))

    async with Peer(on_join=greet).running() as peer:
        job = job_file(
            tmp_path,
            peer.port,
            ("workload", "rooms"),
            ("connections", 2),
            ("turns", 10),
            ("padding", 7),
            ("message", '{"t":%t,"id":%i,"who":"%u in %r","p":"%p","%%":"%2F %x"}'),
        )
        await load(job, peer)
        await load(job, peer)
    texts = [json.loads(text) for caller in seen for text in caller.texts]
    assert len({text["id"] for text in texts}) == len({text["t"] for text in texts}) == len(texts) == 40
    assert all(10**9 <= text["id"] < 2**32 for text in texts)
    assert {text["p"] for text in texts} == {"x" * 7}
    assert Counter(text["who"] for text in texts) == {"0 in 0": 20, "1 in 0": 20}
    assert {text["%"] for text in texts} == {"%2F %x"}
    assert [caller.pongs for caller in seen] == [[b"are you there?", b""]] * 4


@pytest.mark.parametrize(
    ("octets", "sentence"),
    [
        (b"\x81\x85abcd01234", "connection 0: the server masks its frames"),
        (b"\x83\x00", "connection 0: a frame of the unknown kind 3"),
        (b"\x80\x00", "connection 0: a continuation of nothing"),
        (b"\x01\x00\x01\x00", "connection 0: a message begins within another"),
        (b"\xc1\x01x", "connection 0: a frame is compressed, and no extension was chosen"),
        (b"\x82\x7f" + b"\xff" * 8, "connection 0: a frame of 18446744073709551615 bytes"),
        (frame(b"\x11\x31go away", CLOSE), "connection 0 ended before it had joined: closed with 4401 go away"),
        (frame(b"", CLOSE), "connection 0 ended before it had joined: closed without a code"),
    ],
)
async def test_a_server_that_breaks_the_rules_or_closes_is_named(tmp_path: Path, octets: bytes, sentence: str) -> None:
    async def greet(_peer: Peer, caller: Caller) -> None:
        caller.raw(octets)

    async with Peer(on_join=greet).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "fanout"), ("joined_expect", "never"))
        assert await finished(job) == (1, "", sentence + "\n")


# --- what goes wrong with deliveries ----------------------------------------------------------------------------------


async def test_lost_doubled_and_stray_deliveries_are_told_apart(tmp_path: Path) -> None:
    """9 connections in 3 rooms; each third event does not reach one, each fourth reaches one twice, each fifth a stranger."""
    serials = iter(range(1, 1000))
    lost = doubled = strayed = 0

    async def unreliable(peer: Peer, caller: Caller, text: bytes) -> None:
        nonlocal lost, doubled, strayed
        members = [other for other in peer.callers if other.path == caller.path]
        strangers = [other for other in peer.callers if other.path != caller.path]
        serial = next(serials)
        left_out = next(other for other in members if other is not caller) if serial % 3 == 0 else None
        lost += left_out is not None
        for member in members:
            if member is not left_out:
                member.send(text)
        if serial % 4 == 0:
            caller.send(text)
            doubled += 1
        if serial % 5 == 0:
            strangers[0].send(text)
            strayed += 1

    async with Peer(on_text=unreliable).running() as peer:
        job = job_file(
            tmp_path,
            peer.port,
            ("path", "/%r"),
            ("workload", "rooms"),
            ("connections", 9),
            ("rooms", 3),
            ("turns", 20),
            ("patience", 2),
        )
        report = await load(job, peer)
    assert report["published"] == 180
    assert report["expected"] == 540
    assert (report["lost"], report["duplicated"], report["strayed"]) == (lost, doubled, strayed) == (60, 45, 36)
    assert report["deliveries"] == 540 - 60
    assert report["errors"] == {"closed": 0, "refused": 0, "timeouts": 60}


async def test_a_fan_out_goes_on_after_an_event_that_did_not_reach_everybody(tmp_path: Path) -> None:
    async def forgetful(peer: Peer, caller: Caller, text: bytes) -> None:
        for member in peer.callers[1:] if len(caller.texts) == 3 else peer.callers:
            member.send(text)

    async with Peer(on_text=forgetful).running() as peer:
        job = job_file(
            tmp_path, peer.port, ("workload", "fanout"), ("connections", 4), ("seconds", 0.8), ("patience", 0.3)
        )
        report = await load(job, peer)
    assert report["lost"] == 1
    assert report["errors"]["timeouts"] >= 1
    assert report["published"] > 4
    assert report["deliveries"] == report["published"] * 4 - 1


async def test_latency_counts_from_the_time_at_which_an_event_was_due(tmp_path: Path) -> None:
    """A server that stands still for 30 events is late with all of them, by as much as each has waited."""
    held: list[bytes] = []

    async def stall(peer: Peer, _caller: Caller, text: bytes) -> None:
        held.append(text)
        if len(held) >= 30:
            for one in held:
                await to_all(peer, _caller, one)
            held.clear()

    async with Peer(on_text=stall).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rate"), ("rate", 100), ("seconds", 0.3))
        report = await load(job, peer)
    assert report["published"] == report["deliveries"] == 30
    assert report["latency_us"]["max"] >= 290_000
    assert report["latency_us"]["mean"] >= 145_000


async def test_events_that_were_due_while_the_client_stood_still_are_late(tmp_path: Path) -> None:
    """A client that counts from when it got round to sending would call them quick."""
    fifth = asyncio.Event()

    async def count(peer: Peer, caller: Caller, text: bytes) -> None:
        if len(caller.texts) == 5:
            fifth.set()
        await to_all(peer, caller, text)

    async with Peer(on_text=count).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rate"), ("rate", 100), ("seconds", 0.6))
        async with started(job) as process, asyncio.timeout(DEADLINE):
            await fifth.wait()
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.3)  # the fault
            process.send_signal(signal.SIGCONT)
            out, _ = await process.communicate()
    report = json.loads(out)
    assert report["published"] == report["deliveries"] == 60
    assert report["latency_us"]["max"] >= 250_000
    assert report["latency_us"]["mean"] >= 0.25 * 12 * 250_000 / 60  # some 25 events, half of that on average


async def test_a_connection_that_ends_in_the_phase_is_counted_and_not_awaited(tmp_path: Path) -> None:
    async def end_one(peer: Peer, caller: Caller, text: bytes) -> None:
        await to_all(peer, caller, text)
        if len(caller.texts) == 3:
            peer.callers[2].raw(frame(b"\x03\xe9", CLOSE))

    async with Peer(on_text=end_one).running() as peer:
        job = job_file(
            tmp_path, peer.port, ("workload", "fanout"), ("connections", 4), ("seconds", 0.4), ("concurrency", 1)
        )
        report = await load(job, peer)
    assert report["errors"] == {"closed": 1, "refused": 0, "timeouts": 0}
    assert report["published"] > 10
    assert report["expected"] - report["lost"] == report["deliveries"]
    assert report["lost"] <= 1
    assert report["expected"] in (3 * report["published"] + 3, 3 * report["published"] + 4)


async def test_a_publisher_that_is_shut_out_ends_the_run(tmp_path: Path) -> None:
    async def end_it(_peer: Peer, caller: Caller, _text: bytes) -> None:
        caller.raw(frame(b"\x11\x55", CLOSE))

    async with Peer(on_text=end_it).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "fanout"), ("connections", 3))
        assert await finished(job) == (1, "", "the server has ended all connections that publish\n")


async def test_slow_readers_are_reported_apart(tmp_path: Path) -> None:
    async with limit() as port:
        job = job_file(
            tmp_path, port, ("workload", "fanout"), ("connections", 12), ("slow", 2), ("seconds", 0.3), ("payload", 500)
        )
        report = await load(job)
    assert report["deliveries"] == report["expected"] == report["published"] * 10
    assert report["slow"]["connections"] == 2
    assert 0 < report["slow"]["deliveries"] <= report["published"] * 2


async def test_a_slow_reader_that_the_server_ends_is_told(tmp_path: Path) -> None:
    async with limit() as port:  # which lets nobody fall back more than 4 MiB, behind what the kernel takes
        lines = (("workload", "fanout"), ("connections", 4), ("slow", 1), ("seconds", 1.5), ("payload", 300_000))
        report = await load(job_file(tmp_path, port, *lines))
    assert report["slow"] == {"connections": 1, "deliveries": report["slow"]["deliveries"], "closed": 1}
    assert report["slow"]["deliveries"] < report["published"]
    assert report["deliveries"] == report["expected"] == report["published"] * 3
    assert report["errors"]["closed"] == 0


# --- joining ----------------------------------------------------------------------------------------------------------


async def test_a_conversation_before_joining(tmp_path: Path) -> None:
    """Each step waits for its own, found behind the one before; the texts and headers have their values."""
    heads: dict[str, list[str]] = {}
    seen: dict[str, Caller] = {}

    async def greet(_peer: Peer, caller: Caller) -> None:
        heads[caller.path], seen[caller.path] = caller.head, caller
        caller.raw(frame(b"0{hello}") + frame(b"2"))

    async def talk(peer: Peer, caller: Caller, text: bytes) -> None:
        if text.startswith(b"40"):
            caller.send(b"40{ok}{ok")  # one whole, and the beginning of another that does not come
            caller.raw(frame(b"2probe"))
        elif text == b"sub\tcarl\n":
            caller.send(b"subscribed " + caller.path.encode())
        elif STAMP.search(text):
            await to_all(peer, caller, text)

    values = tmp_path / "values"
    values.write_text("ann\nbob\n\ncarl\n")
    async with Peer(
        on_join=greet, on_text=talk, answer=lambda _, accept: accepted(accept, "Sec-WebSocket-Protocol: v1.%u")
    ).running() as peer:
        job = job_file(
            tmp_path,
            peer.port,
            ("path", "/%u/%r/%v?a=%2F"),
            ("values", values),
            ("header", "Authorization: Bearer %v"),
            ("header", "X-Room: %r"),
            ("subprotocol", "v1.%%u"),
            ("open_expect", "hello"),
            ("open", "40 %v"),
            ("open_expect", "{ok}"),
            ("open", "sub\t%v\n"),
            ("open", "sub\tcarl\n"),
            ("joined_expect", "subscribed /%u/"),
            ("answer", ("2", "3")),
            ("connections", 5),
            ("rooms", 2),
            ("workload", "fanout"),
            ("seconds", 0.1),
        )
        report = await load(job, peer)
    assert set(heads) == {"/0/0/ann?a=%2F", "/1/1/bob?a=%2F", "/2/0/carl?a=%2F", "/3/1/ann?a=%2F", "/4/0/bob?a=%2F"}
    head = heads["/3/1/ann?a=%2F"]
    assert "Authorization: Bearer ann" in head
    assert "X-Room: 1" in head
    assert "Sec-WebSocket-Protocol: v1.%u" in head
    assert seen["/1/1/bob?a=%2F"].texts[:5].count(b"3") == 2
    assert [text for text in seen["/1/1/bob?a=%2F"].texts if text != b"3"] == [b"40 bob", b"sub\tbob\n", b"sub\tcarl\n"]
    assert report["expected"] == report["published"] * 3  # room 0 has the connections 0, 2 and 4
    assert report["strayed"] == report["published"] * 2  # this server knows no rooms


async def test_an_echo_waits_for_its_acknowledgement_too(tmp_path: Path) -> None:
    order = iter(range(100))

    async def answer(_peer: Peer, caller: Caller, text: bytes) -> None:
        parts = [frame(b'{"ack"}'), frame(text)]
        await caller.pieces(*(parts if next(order) % 2 else reversed(parts)))

    async with Peer(on_text=answer).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "echo"), ("turns", 20), ("echo_expect", '"ack"'))
        report = await load(job, peer)
    assert report["deliveries"] == report["published"] == report["latency_us"]["count"] == 20
    assert report["frames_in"] == 40


async def test_an_echo_whose_acknowledgement_is_missing_is_given_up(tmp_path: Path) -> None:
    async with Peer().running() as peer:
        lines = (("workload", "echo"), ("turns", 3), ("echo_expect", '"ack"'), ("patience", 0.1))
        report = await load(job_file(tmp_path, peer.port, *lines), peer)
    assert report["errors"]["timeouts"] == report["deliveries"] == 3
    assert report["latency_us"]["count"] == 0


def _refusal(_head: list[str], _accept: str) -> bytes:
    return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\nno!!!"


async def test_a_refused_upgrade_is_a_sentence(tmp_path: Path) -> None:
    async with Peer(answer=_refusal).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "idle"))
        assert await finished(job) == (1, "", "connection 0: the upgrade was answered with HTTP/1.1 403 Forbidden\n")


@pytest.mark.parametrize(
    ("lines", "job", "sentence"),
    [
        ((), [("subprotocol", "v1")], "the server did not choose the subprotocol"),
        (("Sec-WebSocket-Protocol: v2",), [("subprotocol", "v1")], "the server did not choose the subprotocol"),
        ((), [("deflate", "yes")], "the server did not accept permessage-deflate"),
        (("Sec-WebSocket-Extensions: permessage-deflate",), [], "the server chose an extension that was not offered"),
    ],
)
async def test_an_upgrade_that_is_not_the_one_asked_for_is_refused(
    tmp_path: Path, lines: tuple[str, ...], job: list[tuple[str, object]], sentence: str
) -> None:
    async with Peer(answer=lambda _, accept: accepted(accept, *lines)).running() as peer:
        path = job_file(tmp_path, peer.port, ("workload", "idle"), *job)
        assert await finished(path) == (1, "", f"connection 0: {sentence}\n")


async def test_a_wrong_accept_is_refused(tmp_path: Path) -> None:
    async with Peer(answer=lambda _, accept: accepted(accept.swapcase())).running() as peer:
        path = job_file(tmp_path, peer.port, ("workload", "idle"))
        assert await finished(path) == (1, "", "connection 0: the Sec-WebSocket-Accept of the answer is wrong\n")


async def test_nobody_there_and_nobody_who_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        job = job_file(tmp_path, port, ("workload", "idle"), ("timeout", 0.2))
        assert await finished(job) == (1, "", "connection 0 has no answer to its upgrade after 0.2 s\n")
    code, out, err = await finished(job)
    assert (code, out, err) == (1, "", f"connection 0: 127.0.0.1:{port}: Connection refused\n")


async def test_who_does_not_join_in_time_is_told_where_it_stands(tmp_path: Path) -> None:
    async def silent(_peer: Peer, _caller: Caller, _text: bytes) -> None: ...

    async with Peer(on_text=silent).running() as peer:
        steps = (("open", "a"), ("open_expect", "b"))
        job = job_file(tmp_path, peer.port, ("workload", "idle"), *steps, ("timeout", 0.2))
        code, _, err = await finished(job)
    assert (code, err) == (1, "connection 0 has not joined after 0.2 s, at the 2. of its open and open_expect lines\n")


# --- the gate ---------------------------------------------------------------------------------------------------------


async def test_the_phase_waits_at_the_gate_and_the_connections_until_it_is_passed_again(tmp_path: Path) -> None:
    async with Peer().running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "rooms"), ("connections", 3), ("turns", 4), ("gate", "yes"))
        async with started(job) as load_, asyncio.timeout(DEADLINE):
            assert load_.stdin is not None
            assert load_.stdout is not None
            assert load_.stderr is not None
            assert await load_.stderr.readline() == b"ready\n"
            callers = list(peer.callers)
            assert len(callers) == 3
            for caller in callers:
                caller.raw(frame(b"still there?", PING))
            while not all(caller.pongs for caller in callers):  # noqa: ASYNC110  # it is served while it waits
                await asyncio.sleep(0.001)
            assert [caller.texts for caller in callers] == [[], [], []]
            load_.stdin.write(b"go\n")
            assert await load_.stderr.readline() == b"done\n"
            assert [len(caller.texts) for caller in callers] == [4, 4, 4]
            assert len(peer.callers) == 3
            load_.stdin.write(b"end\n")
            report = json.loads(await load_.stdout.read())
            assert await load_.wait() == 0
    assert report["deliveries"] == 36
    assert report["pings"] == 0  # those were before the phase


async def test_a_warm_up_does_not_count(tmp_path: Path) -> None:
    seen: list[Caller] = []

    async def greet(_peer: Peer, caller: Caller) -> None:
        seen.append(caller)

    async with Peer(on_join=greet).running() as peer:
        lines = (("workload", "rate"), ("rate", 100), ("warmup", 0.2), ("seconds", 0.1), ("connections", 2))
        report = await load(job_file(tmp_path, peer.port, *lines), peer)
    assert report["published"] == 10
    assert report["deliveries"] == report["frames_in"] == 20
    assert sum(len(caller.texts) for caller in seen) == 30


async def test_idling_answers_pings(tmp_path: Path) -> None:
    async def ask(_peer: Peer, caller: Caller) -> None:
        caller.raw(frame(b"?", PING))

    async with Peer(on_join=ask).running() as peer:
        job = job_file(tmp_path, peer.port, ("workload", "idle"), ("connections", 30), ("seconds", 0.2))
        report = await load(job, peer)
    assert report["deliveries"] == report["published"] == 0
    assert 0.2 <= report["seconds"] < 2


@pytest.mark.parametrize(
    "lines",
    [
        (("workload", "connect"), ("seconds", 0.01)),
        (("workload", "idle"), ("seconds", 0.7)),
        (("workload", "fanout"), ("seconds", 0.01)),
        (("workload", "rate"), ("rate", 100), ("seconds", 0.05)),
        (("workload", "rooms"), ("turns", 1), ("seconds", 0.01)),
    ],
    ids=lambda lines: str(lines[0][1]),
)
async def test_waiting_takes_no_processor_time(tmp_path: Path, lines: tuple[tuple[str, object], ...]) -> None:
    async def hesitate(peer: Peer, caller: Caller, text: bytes) -> None:
        await asyncio.sleep(0.5)  # what is to be waited for
        await to_all(peer, caller, text)

    async with Peer(on_text=hesitate).running() as peer:
        steps = (("open", "a"), ("joined_expect", "a"))
        report = await load(job_file(tmp_path, peer.port, *steps, *lines), peer, sanitize=False)
    assert report["seconds"] >= 0.5
    assert report["cpu_seconds"] <= 0.05


# --- over HTTP, compressed --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
async def test_events_are_published_over_http(tmp_path: Path, kept: bool) -> None:
    def publish(peer: Peer, post: Post) -> bytes:
        for member in peer.callers:
            member.send(post.body)
        if kept:
            return b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nok"
        return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nok\r\n0\r\n\r\n"

    async with Peer(on_post=publish).running() as peer:
        job = job_file(
            tmp_path,
            peer.port,
            ("http_publish", "POST /pub?room=%r"),
            ("http_header", "X-Id: %i"),
            ("http_header", "Content-Type: application/json"),
            ("http_connections", 2),
            ("workload", "fanout"),
            ("outstanding", 5),
            ("connections", 6),
            ("seconds", 0.3),
        )
        report = await load(job, peer)
    assert report["published"] == len(peer.posts) > 5
    assert report["deliveries"] == report["expected"] == report["published"] * 6
    assert report["errors"] == {"closed": 0, "refused": 0, "timeouts": 0}
    assert {post.line for post in peer.posts} == {"POST /pub?room=0 HTTP/1.1"}
    assert all("Content-Type: application/json" in post.head for post in peer.posts)
    assert len({entry for post in peer.posts for entry in post.head if entry.startswith("X-Id")}) == len(peer.posts)


async def test_publications_that_are_refused_are_a_sentence(tmp_path: Path) -> None:
    def refuse(_peer: Peer, _post: Post) -> bytes:
        return b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"

    async with Peer(on_post=refuse).running() as peer:
        lines = (("http_publish", "POST /"), ("workload", "rate"), ("rate", 10), ("seconds", 0.2), ("patience", 0.1))
        code, out, err = await finished(job_file(tmp_path, peer.port, *lines))
    assert (code, out) == (1, "")
    assert err == (
        "of 2 events that were published none has arrived; "
        "the first publication was answered with HTTP/1.1 401 Unauthorized\n"
    )


@pytest.mark.parametrize("takeover", [False, True], ids=["context-free", "takeover"])
async def test_compressed_events_are_found(tmp_path: Path, takeover: bool) -> None:
    async def compressed(peer: Peer, _caller: Caller, text: bytes) -> None:
        for member in peer.callers:
            if member.state is None or not takeover:
                member.state = zlib.compressobj(wbits=-15)
            octets = member.state.compress(text) + member.state.flush(zlib.Z_SYNC_FLUSH)
            assert octets.endswith(b"\0\0\xff\xff")
            whole = frame(octets[:-4], compressed=True)
            member.raw(whole[:11])
            member.raw(whole[11:])
        for member in peer.callers:
            member.send(b"plain")

    def accept_deflate(head: list[str], accept: str) -> bytes:
        offer = next(line for line in head if line.startswith("Sec-WebSocket-Extensions: "))
        assert ("server_no_context_takeover" in offer) is not takeover
        return accepted(accept, offer)

    async with Peer(on_text=compressed, answer=accept_deflate).running() as peer:
        job = job_file(
            tmp_path,
            peer.port,
            ("deflate", "takeover" if takeover else "yes"),
            ("workload", "rooms"),
            ("connections", 5),
            ("turns", 20),
            ("payload", 5000),
        )
        report = await load(job, peer)
    assert report["deliveries"] == report["compressed_in"] == 500
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0
    assert report["bytes_in"] < 500 * 1000


# --- jobs that are wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([("workload", "juggle")], ":6: workload: must be one of fanout rate rooms echo connect storm idle"),
        ([("workload", "idle"), ("workload", "idle")], ":7: workload: given twice"),
        ([("conections", 3)], ":6: conections: an unknown key"),
        ([("connections", "many")], ":6: connections: not a number"),
        ([("connections", 0)], ":6: connections: must be from 1 to 1e+06"),
        ([("turns", 1.5)], ":6: turns: not a whole number"),
        ([("answer", "23")], ":6: answer: wants the beginning of a frame, a tab, and the answer"),
        ([("connections", 3)], ": there is no workload"),
        ([("workload", "rate")], ": there is no rate"),
        ([("workload", "idle"), ("header", "A: %v")], ": %v is used, and there is no file of values"),
        ([("workload", "idle"), ("slow", 1)], ": there are 1 connections, too few for those that are active and slow"),
        ([("workload", "idle"), ("rooms", 2)], ": there are more rooms than connections"),
    ],
)
async def test_a_wrong_job_is_refused_with_its_line(
    tmp_path: Path, lines: list[tuple[str, object]], sentence: str
) -> None:
    job = job_file(tmp_path, 1, *lines)
    assert await finished(job) == (1, "", f"{job}{sentence}\n")


async def test_an_unknown_escape_is_refused(tmp_path: Path) -> None:
    job = tmp_path / "job"
    job.write_text("marker \\q\n")
    expected = f"{job}:1: marker: an unknown escape: a backslash is written \\\\\n"
    assert await finished(job) == (1, "", expected)


# --- against the service itself ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text("".join(f"{token(f'user-{number}')}\n" for number in range(40)))
    return path


@pytest.mark.parametrize(
    ("lines", "published", "each"),
    [
        ([("workload", "rooms"), ("connections", 40), ("rooms", 4), ("turns", 10)], 400, 10),
        ([("workload", "echo"), ("connections", 20), ("rooms", 20), ("turns", 10), ("echo_expect", '"ack"')], 200, 1),
        ([("workload", "rate"), ("connections", 40), ("rate", 200), ("seconds", 0.5)], 100, 40),
    ],
    ids=["rooms", "echo", "rate"],
)
async def test_it_speaks_with_the_service(
    tmp_path: Path, tokens: Path, lines: list[tuple[str, object]], published: int, each: int
) -> None:
    async with serving(tmp_path, _settings()) as server:
        job = job_file(
            tmp_path,
            server.port,
            ("path", "/ws"),
            ("header", "Authorization: Bearer %v"),
            ("values", tokens),
            ("subprotocol", "tidewire.v1"),
            ("open", '[{"type":"ready"},{"type":"subscribe","id":"s","channel":"room:%r"}]'),
            ("joined_expect", '"subscribed"'),
            ("marker", '"text":"'),
            ("message", '{"type":"talk.line","channel":"room:%r","id":"%i","data":{"text":"%t%p"}}'),
            ("padding", 100),
            *lines,
        )
        report = await load(job)
    assert report["published"] == published
    assert report["deliveries"] == report["expected"] == published * each
    assert report["lost"] == report["duplicated"] == report["strayed"] == 0
    assert report["frames_in"] >= report["deliveries"] / 40


def test_the_parts_of_the_client_know_each_other_in_one_direction() -> None:
    """A part is its .c and its .h; `graphlib` raises where includes go in a circle."""
    knows: dict[str, set[str]] = {}
    for file in sorted(SOURCES.glob("*.[ch]")):
        included = re.findall(r'^#include "(\w+)\.h"$', file.read_text(), re.MULTILINE)
        knows.setdefault(file.stem, set()).update(name for name in included if name != file.stem)
    order = list(TopologicalSorter(knows).static_order())
    below = {"job", "histogram", "shared", "loop", "inflate", "connection", "http", "workload"}
    assert below <= set(order[: order.index("load")])
