"""Channel names, and the two kinds of patterns that match them: in the contract (`room:{room}`) and in grants (`room:*`).

A channel name allows fewer characters than a user id. In the segment of `{user}`, other characters are percent-encoded
(`encode_user`), so that every user can own a channel: `inbox:auth0%7Cann`. The encoding is unique for each user.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

from service.errors import ErrorCode, ServiceError

MAX_CHANNEL_BYTES = 128
SEPARATOR = ":"

_ANY = r"[A-Za-z0-9_.@~=+-]"
_SEGMENT = rf"{_ANY}+"
_ENCODED_SEGMENT = r"[%A-Za-z0-9_.@~=+-]+"
NAME = rf"{_ENCODED_SEGMENT}(?::{_ENCODED_SEGMENT})*"
"""The expression for a whole channel name, valid in Python and in JSON Schema. Patterns check the percent-encoding."""
_NAME = re.compile(NAME)
_PLAIN_NAME = re.compile(rf"{_SEGMENT}(?::{_SEGMENT})*")
_PLAIN_SEGMENT = re.compile(_SEGMENT)
_PARAMETER = re.compile(r"\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_PATTERN_SEGMENT = re.compile(rf"{_PARAMETER.pattern}|{_SEGMENT}")
_STAR = r"[A-Za-z0-9_.@~=+%-]*"
_GRANT = re.compile(r"[A-Za-z0-9_.@~=+%*-]+(?::[A-Za-z0-9_.@~=+%*-]+)*")

OWNER_PARAMETER = "user"
"""The parameter in a pattern of the contract that stands for a user."""


class ChannelKey(NamedTuple):
    """A channel name with its tenant."""

    tenant: str
    name: str


@lru_cache(maxsize=4096)
def channel_key(tenant: str, name: str) -> ChannelKey:
    """Returns the key of a channel. Subscribers of one channel share one object."""
    return ChannelKey(tenant, name)


def encode_user(user: str) -> str:
    """Returns the segment for a user in channel names.

    Percent-encodes each byte of its UTF-8, except letters, digits and ``_.@~=+-``, with upper-case hexadecimal digits.

    >>> encode_user("auth0|ann")
    'auth0%7Cann'
    """
    return user if _PLAIN_SEGMENT.fullmatch(user) else quote(user, safe="@=+")


def _is_encoded_user(segment: str) -> bool:
    """True if `encode_user` returns this segment for some user. Other spellings are refused, so that a user has one channel."""
    try:
        return encode_user(unquote(segment, errors="strict")) == segment
    except UnicodeDecodeError:
        return False


def check_name(name: str, *, encoded: bool = False) -> str:
    """Returns a valid channel name: segments of letters, digits and ``_.@~=+-``, joined by ``:``.

    `encoded` allows percent-encoded characters. Raises ServiceError(INVALID_CHANNEL). Globs, spaces and control characters are
    not allowed: names become part of store keys, addresses and headers.
    """
    if len(name) > MAX_CHANNEL_BYTES:
        raise ServiceError(
            ErrorCode.INVALID_CHANNEL, f"a channel name has at most {MAX_CHANNEL_BYTES} bytes", path="$.channel"
        )
    if not (_NAME if encoded else _PLAIN_NAME).fullmatch(name):
        raise ServiceError(
            ErrorCode.INVALID_CHANNEL,
            "a channel name is segments of letters, digits and _.@~=+- joined by ':'; other characters of a user are "
            f"percent-encoded where the contract has {{{OWNER_PARAMETER}}}",
            path="$.channel",
        )
    return name


class ChannelPattern:
    """A declared pattern: segments joined by ``:``, each a literal or a ``{parameter}`` for one whole segment.

    Only ``{user}`` matches a segment with percent-encoded characters.
    """

    __slots__ = ("_regex", "parameters", "shape", "text")

    def __init__(self, text: str) -> None:
        """Compiles the pattern. Raises ValueError with a sentence."""
        expression, shape, parameters = [], [], []
        for segment in text.split(SEPARATOR):
            if not _PATTERN_SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"segment {segment!r} is neither a {{parameter}} nor made of letters, digits and _.@~=+-"
                )
            if found := _PARAMETER.fullmatch(segment):
                if found["name"] in parameters:
                    raise ValueError(f"parameter {{{found['name']}}} appears twice")
                parameters.append(found["name"])
                segment_expression = _ENCODED_SEGMENT if found["name"] == OWNER_PARAMETER else _SEGMENT
                expression.append(f"(?P<{found['name']}>{segment_expression})")
                shape.append("{}")
            else:
                expression.append(re.escape(segment))
                shape.append(segment)
        self.text = text
        self.parameters = tuple(parameters)
        self.shape = tuple(shape)
        self._regex = re.compile(SEPARATOR.join(expression))

    def match(self, name: str) -> dict[str, str] | None:
        """Returns the parameters' values if the (valid) name matches."""
        found = self._regex.fullmatch(name)
        if found is None or ("%" in name and not _is_encoded_user(found[OWNER_PARAMETER])):
            return None
        return found.groupdict()

    @property
    def specificity(self) -> tuple[bool, ...]:
        """Sort key. Of two patterns, the one with a literal in the first segment that differs comes first."""
        return tuple(part == "{}" for part in self.shape)

    def __repr__(self) -> str:
        return f"ChannelPattern({self.text!r})"


@lru_cache(maxsize=4096)
def grant_regex(pattern: str) -> re.Pattern[str]:
    """Compiles the pattern of a grant: ``*`` matches any part of a segment, and ``**`` as the last segment matches any rest.

    Raises ValueError with a sentence.
    """
    if len(pattern) > MAX_CHANNEL_BYTES or not _GRANT.fullmatch(pattern):
        raise ValueError(f"{pattern[:64]!r} is not a grant: segments of letters, digits, _.@~=+- and * joined by ':'")
    segments = pattern.split(SEPARATOR)
    tail = ""
    if segments[-1] == "**":
        segments.pop()
        tail = rf"{SEPARATOR if segments else ''}{_NAME.pattern}"
    if any("**" in segment for segment in segments):
        raise ValueError(f"{pattern!r}: '**' may only be the last segment")
    return re.compile(SEPARATOR.join(map(_grant_segment, segments)) + tail)


def _grant_segment(segment: str) -> str:
    """Returns the expression of one segment. It matches in linear time, whatever the number of stars.

    The text between two stars keeps its first match, because a later match would leave less for the rest. So it is in atomic
    groups, and only the last star backtracks.
    """
    start, *middle = map(re.escape, segment.split("*"))
    if not middle:
        return start
    end = middle.pop()
    return start + "".join(f"(?>{_STAR}?{part})" for part in middle) + f"{_STAR}{end}"
