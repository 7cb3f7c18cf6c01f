"""The signals that ask a process which serves to drain and end."""

from __future__ import annotations

import signal
from typing import Final

STOPPING: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""All mean the same. Service managers and images differ in which one they send, and a terminal sends SIGHUP when it closes."""


def stopping() -> tuple[signal.Signals, ...]:
    """Those that this process is to handle: `nohup` starts one with SIGHUP ignored, and means it."""
    return tuple(
        number for number in STOPPING if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    )
