"""A transport without a peer, as a base for tests."""

from __future__ import annotations

from collections.abc import Callable

from service.realtime.connections.byte_budget import Account, ByteBudget
from service.realtime.connections.transport import MessageHandler


class NullTransport:
    """Accepts all writes and ignores them. Tests override the methods that they observe."""

    handler: MessageHandler
    write: Callable[[bytes], None]
    close_code = 1006
    is_writing_paused = False
    is_reading_paused = False
    has_received = True
    answers_pings = True
    has_receipts = False
    may_continue = False
    window_bits = 0
    fd = -1

    def __init__(self) -> None:
        self.write = lambda data: None
        self.account = ByteBudget(1 << 40).account("nobody's")

    @property
    def writer(self) -> NullTransport:
        return self

    def set_account(self, account: Account) -> None:
        self.account = account

    def count_held(self, size: int) -> None: ...

    def count_unsent(self, at_least: int = 0) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def ping(self) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def close_when_written(self) -> None: ...

    def abort(self) -> None: ...
