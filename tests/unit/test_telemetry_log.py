"""Logs: machine-readable, one way out for everybody, and no canary gets through."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.telemetry import log

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5LXNpZ25hdHVyZQ"
CANARY = "canary-7f3a"


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("aiohttp.access").disabled = False
    structlog.reset_defaults()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_time_level_logger_and_event() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    log.get_logger("realtime.hub").info("joined", channel="room:42", members=3)
    (line,) = lines(stream)
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert line.pop("timestamp").endswith("Z")
    assert line == {"level": "info", "logger": "realtime.hub", "event": "joined", "channel": "room:42", "members": 3}


def test_auto_format_is_json_in_a_pipe_and_console_on_a_terminal() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    log.configure("info", "auto", pipe)
    log.get_logger("a").info("one")
    log.configure("info", "auto", terminal)
    log.get_logger("a").info("two")
    assert [line["event"] for line in lines(pipe)] == ["one"], "configuring again replaces the way out"
    assert "two" in terminal.getvalue()
    assert not terminal.getvalue().startswith("{")


def test_level_applies_to_structlog_and_logging() -> None:
    stream = io.StringIO()
    log.configure("warning", "json", stream)
    log.get_logger("a").info("no")
    logging.getLogger("aiohttp.server").info("no")
    log.get_logger("a").warning("yes")
    logging.getLogger("aiohttp.server").warning("yes, %s", "too")
    assert [(line["event"], line["logger"]) for line in lines(stream)] == [("yes", "a"), ("yes, too", "aiohttp.server")]


def test_access_log_is_off_by_default() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    assert not logging.getLogger("aiohttp.access").isEnabledFor(logging.INFO)
    log.configure("info", "json", stream, access=True)
    assert logging.getLogger("aiohttp.access").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("format", ["json", "console"])
@pytest.mark.parametrize(
    "name",
    [
        "token", "access_token", "accessToken", "authorization", "Authorization", "cookie", "Set-Cookie", "ticket",
        "secret", "client_secret", "data", "payload", "key", "api_key", "apiKey", "X-API-Key", "password", "body", "TOKEN",
    ],
)  # fmt: skip
def test_fields_named_like_secrets_are_redacted(name: str, format: log.Format) -> None:
    stream = io.StringIO()
    log.configure("info", format, stream)
    logger = log.get_logger("a")
    logger.info("top", **{name: CANARY})
    logger.info("nested", event_=[{"deep": {name: {"text": CANARY}}}])
    logger.info("bytes", **{name: CANARY.encode()})
    logger.bind(**{name: CANARY}).info("bound")
    with structlog.contextvars.bound_contextvars(**{name: CANARY}):
        logger.info("context")
    assert CANARY not in stream.getvalue()
    assert stream.getvalue().count(log.REDACTED) == 5


@pytest.mark.parametrize(
    "name", ["data_bytes", "key_id", "token_count", "ticket_seconds", "channel", "keyboard", "monkey"]
)
def test_fields_of_measures_are_shown(name: str) -> None:
    assert log.redact(None, "info", {"event": "e", name: 7}) == {"event": "e", name: 7}


@pytest.mark.parametrize(
    "text",
    [
        JWT,
        f"token={JWT}",
        f"refused <{JWT}>",
        f"x_{JWT}",
        JWT.partition(".")[0],
        f"GET /ws?ticket={CANARY}&channels=room:42",
        f"GET /ws?channels=a&ticket={CANARY} HTTP/1.1",
        f"ticket%3D{CANARY}",
        f"access_token={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"<CIMultiDictProxy('Host': 'x', 'Authorization': 'Bearer {CANARY}')>",
        f"{{'cookie': 'session={CANARY}; b={CANARY}'}}",
        f"the header was 'bearer {CANARY}'",
        f"api_key={CANARY}",
        f"apikey={CANARY}",
    ],
)
def test_credentials_in_strings_are_redacted(text: str) -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    log.get_logger("a").info(text)
    log.get_logger("a").info("formatted: %s", text)
    log.get_logger("a").info("field", path=text, more=[text], **{"by": {text: 1}})
    logging.getLogger("aiohttp.server").warning("from %r", text)
    try:
        int(text)  # its ValueError quotes the text
    except ValueError as error:
        log.get_logger("a").exception("failed", error=error)
    written = stream.getvalue()
    assert len(lines(stream)) == 5
    assert CANARY not in written
    for part in JWT.split("."):
        assert part not in written


def test_text_around_a_credential_is_kept() -> None:
    assert log.scrub("GET /ws?ticket=abc&channels=room:42") == f"GET /ws?ticket={log.REDACTED}&channels=room:42"
    page = "/history/default/room:42/e/1-100/1795374000.0a1b2c3d."
    assert log.scrub(f"GET {page}{'x' * 43} HTTP/1.1") == f"GET {page}{log.REDACTED} HTTP/1.1"
    assert log.scrub("subscribed to room:42, key of ann") == "subscribed to room:42, key of ann"


@pytest.mark.parametrize("format", ["json", "console"])
def test_traceback_has_no_local_variables(format: log.Format) -> None:
    stream = io.StringIO()
    log.configure("info", format, stream)

    def fail(text: str) -> None:
        secret_local = text
        raise ValueError(len(secret_local))

    try:
        fail(CANARY)
    except ValueError:
        log.get_logger("a").exception("failed")
        logging.getLogger("asyncio").exception("failed")
    assert stream.getvalue().count("raise ValueError(") == 2
    assert "in fail" in stream.getvalue()
    assert CANARY not in stream.getvalue()


def test_exception_message_is_shown_only_for_os_errors() -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream)
    try:
        try:
            dict[str, int]()[CANARY]
        except KeyError as cause:
            raise RuntimeError(f"could not handle {CANARY}") from cause
    except RuntimeError as error:
        log.get_logger("a").exception("failed", error=error)
    try:
        raise OSError(98, "Address already in use")
    except OSError:
        log.get_logger("a").exception("failed")
    first, second = lines(stream)
    assert (first["exception"].count("Traceback"), first["error"]) == (2, "RuntimeError")
    assert first["exception"].index("KeyError") < first["exception"].index("RuntimeError")
    assert "OSError: [Errno 98] Address already in use" in second["exception"]
    assert CANARY not in stream.getvalue()


class Holder:
    def __repr__(self) -> str:
        return CANARY


class Colour(Enum):
    RED = CANARY


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Holder(), "<Holder>"),
        (b"canary-7f3a", "<11 bytes>"),
        (bytearray(b"canary-7f3a"), "<11 bytes>"),
        (Colour.RED, "RED"),
        (Path("/etc/tidewire.yaml"), "/etc/tidewire.yaml"),
        (("a", 1, None), ["a", 1, None]),
        ({"b": 2.5}, {"b": 2.5}),
        ({1: {2: {3: {4: {5: CANARY}}}}}, {"1": {"2": {"3": {"4": "<dict>"}}}}),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
    ],
)
def test_unknown_values_are_shown_as_their_type(value: object, shown: object) -> None:
    assert log.redact(None, "info", {"event": "e", "value": value})["value"] == shown


def test_cyclic_value_is_bounded() -> None:
    endless: list[object] = []
    endless.append(endless)
    assert log.redact(None, "info", {"event": "e", "value": endless})["value"] == [[[["<list>"]]]]


def test_failing_stream_drops_the_line_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    log.configure("info", "json", Full())
    logging.getLogger("aiohttp.server").error("lost %s", CANARY)
    said = capsys.readouterr().err
    assert "aiohttp.server" in said
    assert "OSError" in said
    assert CANARY not in said


def test_mapping_that_is_not_a_dict_is_redacted() -> None:
    class Headers(Mapping[str, str]):
        def __getitem__(self, name: str) -> str:
            return CANARY

        def __iter__(self) -> Iterator[str]:
            return iter(["Cookie"])

        def __len__(self) -> int:
            return 1

    assert log.redact(None, "info", {"event": "e", "headers": Headers()})["headers"] == {"Cookie": log.REDACTED}


def test_record_that_cannot_be_rendered_is_dropped_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    class Unfit(list[object]):
        def __iter__(self) -> Iterator[object]:
            raise RuntimeError(CANARY)

    stream = io.StringIO()
    log.configure("info", "json", stream)
    before = log.dropped()["render"]
    logger = log.get_logger("a")
    logger.info("not enough for %s and %s", "one")
    logger.info("of a type that fails", numbers=Unfit())
    logger.info("next")
    assert [line["event"] for line in lines(stream)] == ["next"]
    assert log.dropped()["render"] == before + 2
    assert CANARY not in capsys.readouterr().err
