"""Structured logs: one line an event, with names, ids and sizes. `redact` removes tokens and payloads before rendering.

    log = get_logger("admission")
    log.warning("connections_lowered", limit=1024)

Records of aiohttp and asyncio take the same path. A log call never fails and never waits: a record that cannot be rendered,
queued or written is dropped and counted (`dropped`).
"""

from __future__ import annotations

import atexit
import io
import logging
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import suppress
from datetime import date
from enum import Enum
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import Any, Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

from service.telemetry.writer import Drops, GuardedStream, LineWriter

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REDACTED = "[redacted]"
QUEUE_BYTES = 1_048_576
"""Default of `configure`: bytes of records that may wait to be written."""
FLUSH_TIMEOUT = 1.0
"""Seconds that the end of the process waits for a blocked reader."""

_SECRET = re.compile(
    "authorization|body|cookies?|credentials?|data|frame|jwt|keys?|passwd|password|payload|secrets?|tickets?|tokens?"
)
"""A field with one of these words in its name is redacted …"""
_MEASURE = re.compile("bytes|count|id|length|limit|name|seconds|size|type")
"""… unless its last word is a measure or an identifier: `data_bytes`, `key_id`."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_MASKS = (
    # A JWT, even a truncated one: base64url of `{"` or `{ `.
    (re.compile(r"ey[JA][\w-]{8,}(?:\.[\w-]*)*"), REDACTED),
    # Headers as text or as the repr of a mapping: the rest of the line may hold more of the same.
    (re.compile(r"(?i)((?:authorization|cookie)[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\g<1>{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\g<1> {REDACTED}"),
    # The signature in the address of a history page, after the id of its key.
    (re.compile(r"(\.[0-9a-f]{8}\.)[\w-]{43}\b"), rf"\g<1>{REDACTED}"),
    (re.compile(r"(?i)\b(ticket|\w*token|api[_-]?key|secret|password)(=|%3d)[^&\s\"'<>]+"), rf"\g<1>\g<2>{REDACTED}"),
)
_MAX_DEPTH = 4
"""Levels of nested containers that are rendered. Bounds cycles too."""
_PLAIN = (PurePath, date, UUID, IPv4Address, IPv6Address)
_FIRST = ("timestamp", "level", "logger", "event")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns a logger. It works before `configure`, and follows its settings."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(
    level: Level = "info",
    format: Format = "auto",
    stream: TextIO | None = None,
    *,
    access: bool = False,
    queue_bytes: int = QUEUE_BYTES,
) -> None:
    """Sends all logs of the process to `stream`; without one to standard error, through a background thread. May be called again.

    `auto` means `console` on a terminal and `json` elsewhere. `access` enables aiohttp's record for each HTTP request. Without a
    `stream`, everything printed to `sys.stderr` goes through the background thread, so that no print can fail or block.
    """
    out = _guarded_stderr(queue_bytes) if stream is None else stream
    console = format == "console" or (format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Handler(_line_to(out))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.ExceptionRenderer(_traceback),
                redact,
                _console() if console else structlog.processors.JSONRenderer(),
            ],
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.PositionalArgumentsFormatter(),
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=_Logger,
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").disabled = not access


def dropped() -> Mapping[str, int]:
    """Returns the number of dropped records of this process, by reason."""
    return _drops.counts()


def waiting_bytes() -> int:
    """Returns the bytes of records that wait to be written."""
    stderr = sys.stderr
    return stderr.writer.waiting_bytes if isinstance(stderr, GuardedStream) else 0


def flush(timeout: float = FLUSH_TIMEOUT) -> bool:
    """Waits until all records are written or dropped. Returns False after `timeout` seconds. For the end of a process."""
    stderr = sys.stderr
    if not isinstance(stderr, GuardedStream):
        return True
    stderr.flush()
    return stderr.writer.flush(timeout)


def _guarded_stderr(queue_bytes: int) -> TextIO | GuardedStream:
    """Replaces `sys.stderr` by a GuardedStream, once in a process, and returns it."""
    stderr = sys.stderr
    if isinstance(stderr, GuardedStream):
        stderr.writer.max_bytes = queue_bytes
        return stderr
    try:
        descriptor = stderr.fileno()
    except (AttributeError, OSError):  # none, or that of a test: without a descriptor there is no slow reader
        return _NullStream() if stderr is None else stderr
    with suppress(OSError, ValueError):
        stderr.flush()
    guarded = GuardedStream(LineWriter(descriptor, max_bytes=queue_bytes, drops=_drops))
    sys.stderr = guarded
    atexit.register(flush)
    return guarded


def _line_to(out: TextIO | GuardedStream) -> Callable[[str], None]:
    def at_once(text: str, out: TextIO) -> None:
        out.write(text + "\n")
        out.flush()

    if isinstance(out, GuardedStream):  # separate from an incomplete line that was printed
        write = out.writer.write
        return lambda text: write(f"{text}\n".encode("utf-8", "backslashreplace"))
    return partial(at_once, out=out)


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Processor of structlog: redacts fields with the name of a secret or payload, and credentials inside strings."""
    ordered = {name: event[name] for name in _FIRST if name in event} | dict(event)
    return {name: _safe_field(name, value, 0) for name, value in ordered.items()}


def scrub(text: str) -> str:
    """Returns the text without anything that looks like a credential."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    # A lone surrogate cannot be encoded.
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _safe_field(name: object, value: object, depth: int) -> Any:
    return REDACTED if isinstance(name, str) and _is_secret(name) else _safe(value, depth)


def _safe(value: object, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, BaseException):
        return _sentence(value)
    if isinstance(value, _PLAIN):
        return scrub(str(value))
    if depth < _MAX_DEPTH:
        if isinstance(value, Mapping):
            return {scrub(str(name)): _safe_field(name, inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, Sequence | Set):
            return [_safe(inner, depth + 1) for inner in value]
    # Other objects might show their content: a message its payload, a request its headers.
    return f"<{type(value).__qualname__}>"


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return any(map(_SECRET.fullmatch, words)) and not _MEASURE.fullmatch(words[-1])


def _traceback(exc_info: ExcInfo) -> str:
    """Formats an exception with all its causes, oldest first. No local variables; messages only from `_sentence`."""
    error: BaseException | None = exc_info[1]
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(
        "".join(["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__), _sentence(error)])
        for error in reversed(seen)
    )


def _sentence(error: BaseException) -> str:
    """Returns the type of the exception; the message only of OSError. Other messages may quote a payload."""
    name = type(error).__qualname__
    return scrub(f"{name}: {error}") if isinstance(error, OSError) else name


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, sort_keys=False)


class _Logger(structlog.stdlib.BoundLogger):
    """A logger whose calls never fail."""

    def _proxy_to_logger(self, method_name: str, event: str | None = None, *event_args: str, **event_kw: Any) -> Any:
        try:
            return super()._proxy_to_logger(method_name, event, *event_args, **event_kw)
        except Exception as error:  # a value that the processors cannot handle
            _drop(self.name, error)
            return None


class _Handler(logging.Handler):
    """The log handler of this process. A class of its own, because test runners add handlers."""

    def __init__(self, line: Callable[[str], None]) -> None:
        super().__init__()
        self._line = line

    def emit(self, record: logging.LogRecord) -> None:
        """Writes the record, or counts it as dropped."""
        try:
            self._line(self.format(record))
        except Exception as error:
            _drop(record.name, error)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Does nothing. The inherited method would print the record's arguments, unredacted."""


class _NullStream(io.StringIO):
    """Standard error of a process without one."""

    def write(self, text: str) -> int:
        """Discards the text."""
        return len(text)


_drops = Drops()


def _drop(name: str, error: Exception) -> None:
    """Counts a dropped record, and tries to print why."""
    _drops.count("write" if isinstance(error, OSError) else "render")
    with suppress(Exception):
        sys.stderr.write(f"tidewire: a log record of {name} could not be written: {type(error).__name__}\n")
