"""Close codes: why a connection ends, and what the client does next.

Codes 44xx mirror HTTP. The tables in docs/protocol.md and clients/js/src/codes.js are generated from `CloseCode`.
"""

from __future__ import annotations

from enum import Enum


class Action(Enum):
    """What a client does after a close."""

    RECONNECT = "reconnect"
    """Reconnect after a backoff with jitter, with the same credentials, and resume."""
    REFRESH = "refresh"
    """Get a new token, then reconnect and resume."""
    STOP = "stop"
    """Do not reconnect: it would end in the same way."""


class CloseCode(Enum):
    """Every close code that a client can get, with the client's next action and the meaning."""

    code: int
    action: Action
    meaning: str

    NORMAL = (1000, Action.STOP, "The client ended the connection.")
    GOING_AWAY = (1001, Action.RECONNECT, "The page or the node went away.")
    PROTOCOL_VIOLATION = (1002, Action.STOP, "A frame broke RFC 6455.")
    ABNORMAL = (1006, Action.RECONNECT, "The connection broke without a close frame; never sent, only seen.")
    INVALID_UTF8 = (1007, Action.STOP, "A text frame was not UTF-8.")
    TOO_BIG = (1009, Action.RECONNECT, "A message was larger than limits.message_bytes; do not send it again.")
    INTERNAL = (1011, Action.RECONNECT, "A fault in the service.")
    RESTART = (
        1012,
        Action.RECONNECT,
        "The node asks the client to come back, after the delay in the reconnect message.",
    )
    OVERLOAD = (1013, Action.RECONNECT, "The node is over a budget, or cannot check tokens right now.")
    BAD_REQUEST = (4400, Action.STOP, "The client broke this protocol: its first message was not hello.")
    UNAUTHORIZED = (4401, Action.REFRESH, "The token is invalid, expired or revoked.")
    FORBIDDEN = (4403, Action.STOP, "The user may not be connected.")
    DEADLINE = (4408, Action.RECONNECT, "No hello within the deadline, no pong, or a message that did not end.")
    REPLACED = (4409, Action.STOP, "A newer session of the same user replaced this one.")
    RATE_LIMITED = (4429, Action.RECONNECT, "The client kept sending above its rate.")
    SLOW_CONSUMER = (4450, Action.RECONNECT, "The client did not read fast enough for a durable event; resume.")

    def __init__(self, code: int, action: Action, meaning: str) -> None:
        self.code = code
        self.action = action
        self.meaning = meaning


class CloseConnection(Exception):  # noqa: N818  # a decision, not an error
    """Raised by a command to end its connection."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(f"{code.code}: {reason}")
        self.code = code
        self.reason = reason
