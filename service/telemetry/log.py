"""Logs: one line an event, of names, ids and sizes. Never a token, never a payload: `redact` stands before every renderer.

What aiohttp and asyncio log through the standard library takes the same way out.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping, Sequence, Set
from datetime import date
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from pathlib import PurePath
from typing import Any, Literal, TextIO
from uuid import UUID

import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "json", "console"]

REDACTED = "[redacted]"

_SECRET = re.compile(
    "authorization|body|cookies?|credentials?|data|frame|jwt|keys?|passwd|password|payload|secrets?|tickets?|tokens?"
)
"""A field with one of these words in its name is masked …"""
_MEASURE = re.compile("bytes|count|id|length|limit|name|seconds|size|type")
"""… unless its last word says that it is a measure or a name: `data_bytes`, `key_id`."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

_MASKS = (
    # A JWT, even a truncated one: base64url of `{"` or `{ `, whatever stands before it.
    (re.compile(r"ey[JA][\w-]{8,}(?:\.[\w-]*)*"), REDACTED),
    # Headers as text or as the repr of a mapping: the rest of the line may hold more of the same.
    (re.compile(r"(?i)((?:authorization|cookie)[\"']?\s*[:=]\s*)[^\r\n]+"), rf"\g<1>{REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{8,}"), rf"\g<1> {REDACTED}"),
    (re.compile(r"(?i)\b(ticket|\w*token|api[_-]?key|secret|password)(=|%3d)[^&\s\"'<>]+"), rf"\g<1>\g<2>{REDACTED}"),
)
_DEEPEST = 4
"""Levels of containers that are rendered; a bound for cycles too."""
_PLAIN = (PurePath, date, UUID, IPv4Address, IPv6Address)
_FIRST = ("timestamp", "level", "logger", "event")


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of one module or concern; works before `configure`, and follows it."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configure(
    level: Level = "info", format: Format = "auto", stream: TextIO | None = None, *, access: bool = False
) -> None:
    """Sends all logs of the process to `stream` (standard error by default). May be called again.

    `auto` is `console` on a terminal and `json` elsewhere. `access` turns on aiohttp's line per HTTP request.
    """
    out = sys.stderr if stream is None else stream
    console = format == "console" or (format == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _Handler(out)
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
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").disabled = not access


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Masks fields with a secret's or a payload's name, and everything inside strings that looks like a credential."""
    ordered = {name: event[name] for name in _FIRST if name in event} | dict(event)
    return {name: _safe_field(name, value, 0) for name, value in ordered.items()}


def scrub(text: str) -> str:
    """The text with everything masked that looks like a credential."""
    for pattern, mask in _MASKS:
        text = pattern.sub(mask, text)
    # A lone surrogate cannot be written to any stream.
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
    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return {scrub(str(name)): _safe_field(name, inner, depth + 1) for name, inner in value.items()}
        if isinstance(value, Sequence | Set):
            return [_safe(inner, depth + 1) for inner in value]
    # Anything else might show what it holds: a message its payload, a request its headers.
    return f"<{type(value).__qualname__}>"


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    return any(map(_SECRET.fullmatch, words)) and not _MEASURE.fullmatch(words[-1])


def _traceback(exc_info: ExcInfo) -> str:
    """Where it happened, through all causes, oldest first. No local variables, and messages only as `_sentence` shows them."""
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
    """The exception's type, and the operating system's message. Any other message may quote the payload it is about."""
    name = type(error).__qualname__
    return scrub(f"{name}: {error}") if isinstance(error, OSError) else name


def _console() -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback, sort_keys=False)


class _Handler(logging.StreamHandler[TextIO]):
    """The one handler of this process, told apart from those that a test runner adds."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the standard library's name
        """Says that a record was lost. The inherited method prints the record's arguments, unredacted."""
        fault = sys.exc_info()[0]
        name = "unknown" if fault is None else fault.__name__
        if sys.stderr is not None:
            sys.stderr.write(f"tidewire: a log record of {record.name} could not be written: {name}\n")
