"""The signals that ask a serving process to drain and end."""

from __future__ import annotations

import signal
from typing import Final

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""All mean the same. Service managers and images send different ones, and a terminal sends SIGHUP when it closes."""


def stop_signals() -> tuple[signal.Signals, ...]:
    """Returns the stop signals that this process should handle. `nohup` starts it with SIGHUP ignored, which then stays so."""
    return tuple(
        number for number in STOP_SIGNALS if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    )
