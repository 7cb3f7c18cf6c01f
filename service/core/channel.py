"""Channel names and the two kinds of pattern that match them: the contract's (`room:{room}`) and a grant's (`room:*`).

A user's id may hold any printable character, a channel's name only a few. In the segment that `{user}` stands for the others are
percent-encoded (`encode_user`), so that every user can own a channel: `inbox:auth0%7Cann`. A user made of those few is its own
encoding, and no two users share one.
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
"""The expression that a whole channel name matches; the same in Python and in JSON Schema. Patterns judge what a percent sign
begins."""
_NAME = re.compile(NAME)
_PLAIN_NAME = re.compile(rf"{_SEGMENT}(?::{_SEGMENT})*")
_PLAIN_SEGMENT = re.compile(_SEGMENT)
_PARAMETER = re.compile(r"\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_PATTERN_SEGMENT = re.compile(rf"{_PARAMETER.pattern}|{_SEGMENT}")
_STAR = r"[A-Za-z0-9_.@~=+%-]*"
_GRANT = re.compile(r"[A-Za-z0-9_.@~=+%*-]+(?::[A-Za-z0-9_.@~=+%*-]+)*")

OWNER_PARAMETER = "user"
"""The parameter of a contract's pattern that stands for a user."""


class ChannelKey(NamedTuple):
    """A channel as the service knows it: never without its tenant."""

    tenant: str
    name: str


@lru_cache(maxsize=4096)
def channel_key(tenant: str, name: str) -> ChannelKey:
    """The key; nearly always the same object for the same channel, as each of its subscribers keeps it."""
    return ChannelKey(tenant, name)


def encode_user(user: str) -> str:
    """The segment that stands for a user in channel names: every byte of its UTF-8 that is no letter, no digit and none of
    ``_.@~=+-`` is ``%`` and two upper-case hexadecimal digits.

    >>> encode_user("auth0|ann")
    'auth0%7Cann'
    """
    return user if _PLAIN_SEGMENT.fullmatch(user) else quote(user, safe="@=+")


def _encodes_a_user(segment: str) -> bool:
    """Whether the segment is what `encode_user` makes of some user: a user has one channel, under one name."""
    try:
        return encode_user(unquote(segment, errors="strict")) == segment
    except UnicodeDecodeError:
        return False


def check_name(name: str, *, encoded: bool = False) -> str:
    """Returns the name if it is a channel name: segments of letters, digits and ``_.@~=+-``, joined by ``:``. `encoded`: other
    characters may stand in it percent-encoded.

    Raises ServiceError(INVALID_CHANNEL). Globs, spaces and control characters are outside the set on purpose: names
    travel into store keys, addresses and headers.
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
    """A declared pattern: segments joined by ``:``, each literal or one ``{parameter}`` that stands for a whole segment. Only
    ``{user}`` stands for one with percent-encoded characters."""

    __slots__ = ("_regex", "parameters", "shape", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError with a sentence if the text is not a pattern."""
        expression, shape, parameters = [], [], []
        for segment in text.split(SEPARATOR):
            if not _PATTERN_SEGMENT.fullmatch(segment):
                raise ValueError(
                    f"segment {segment!r} is neither a {{parameter}} nor made of letters, digits and _.@~=+-"
                )
            if found := _PARAMETER.fullmatch(segment):
                if found["name"] in parameters:
                    raise ValueError(f"parameter {{{found['name']}}} stands twice")
                parameters.append(found["name"])
                stands_for = _ENCODED_SEGMENT if found["name"] == OWNER_PARAMETER else _SEGMENT
                expression.append(f"(?P<{found['name']}>{stands_for})")
                shape.append("{}")
            else:
                expression.append(re.escape(segment))
                shape.append(segment)
        self.text = text
        self.parameters = tuple(parameters)
        self.shape = tuple(shape)
        self._regex = re.compile(SEPARATOR.join(expression))

    def match(self, name: str) -> dict[str, str] | None:
        """The parameters' values if the (valid) name matches, else None."""
        found = self._regex.fullmatch(name)
        if found is None or ("%" in name and not _encodes_a_user(found[OWNER_PARAMETER])):
            return None
        return found.groupdict()

    @property
    def specificity(self) -> tuple[bool, ...]:
        """Sorts patterns so that the one whose first differing segment is literal comes first."""
        return tuple(part == "{}" for part in self.shape)

    def __repr__(self) -> str:
        return f"ChannelPattern({self.text!r})"


@lru_cache(maxsize=4096)
def grant_regex(pattern: str) -> re.Pattern[str]:
    """Compiles a grant's pattern: ``*`` is any part of one segment, a last segment ``**`` is all that may follow.

    Raises ValueError with a sentence if the text is not such a pattern.
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
    """One segment of a grant as an expression whose matching takes time linear in the name, however many stars it has.

    What stands between two stars may take its first match and keep it (hence the atomic groups): a later one would leave
    less for the rest. Only the last star gives back.
    """
    start, *middle = map(re.escape, segment.split("*"))
    if not middle:
        return start
    end = middle.pop()
    return start + "".join(f"(?>{_STAR}?{part})" for part in middle) + f"{_STAR}{end}"
