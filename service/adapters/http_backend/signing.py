"""Signs questions to the backend as Standard Webhooks say. Secrets in a file may change while the service runs."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog
from standardwebhooks import Webhook

from service.telemetry.outage import OutageLog

PREFIX = "whsec_"
MIN_BYTES, MAX_BYTES = 24, 64
"""Bytes of a secret, as Standard Webhooks ask."""
MAX_SECRETS = 8
"""Secrets of one endpoint. Each one signs every question, so that the backend may know any of them during a change."""
REREAD_INTERVAL = 5.0
"""Seconds between two looks at a file of secrets."""

_log = structlog.get_logger("hooks")


def check_secret(text: str) -> str:
    """Returns the secret. Raises ValueError with a sentence that does not show it."""
    if not text.startswith(PREFIX):
        raise ValueError(f"does not begin with {PREFIX}; try: echo {PREFIX}$(openssl rand -base64 32)")
    try:
        size = len(base64.b64decode(text.removeprefix(PREFIX), validate=True))
    except binascii.Error as error:
        raise ValueError(f"is not base64 behind {PREFIX}") from error
    if not MIN_BYTES <= size <= MAX_BYTES:
        raise ValueError(f"has {size} bytes behind {PREFIX}, not {MIN_BYTES} to {MAX_BYTES}")
    return text


def read_secrets(path: Path) -> tuple[str, ...]:
    """Returns the secrets in a file, one a line. Raises OSError; ValueError with a sentence that shows none of them."""
    lines = [line.strip() for line in path.read_text("utf-8").splitlines()]
    secrets = tuple(check_secret(line) for line in lines if line)
    if not 1 <= len(secrets) <= MAX_SECRETS:
        raise ValueError(f"has {len(secrets)} secrets, one a line, not 1 to {MAX_SECRETS}")
    return secrets


class Signer:
    """Signs with every secret of an endpoint."""

    def __init__(
        self,
        secrets: Sequence[str],
        path: Path | None,
        now: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        what: str = "hook",
    ) -> None:
        """`path`: the file of the secrets, read again when it changes. A file that is wrong then changes nothing. `now`: seconds
        since the Unix epoch. `what` is signed, for the log: hook or webhook."""
        self._path = path
        self._now = now
        self._monotonic = monotonic
        self._next_look = 0.0
        self._seen: object = None
        self._outage = OutageLog(_log, f"{what}_secrets_unreadable", f"{what}_secrets_read", monotonic)
        self._keys = [Webhook(secret) for secret in secrets]

    def headers(self, id: str, body: bytes) -> Mapping[str, str]:
        """Returns the headers that let the backend check who asks, and when."""
        if self._path is not None and self._monotonic() >= self._next_look:
            self._look(self._path)
        at = datetime.fromtimestamp(int(self._now()), UTC)
        text = body.decode()
        signatures = " ".join(key.sign(id, at, text) for key in self._keys)
        return {"webhook-id": id, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signatures}

    def _look(self, path: Path) -> None:
        self._next_look = self._monotonic() + REREAD_INTERVAL
        try:
            status = path.stat()
            seen = (status.st_mtime_ns, status.st_ino, status.st_size)
            if seen == self._seen:
                return
            self._keys = [Webhook(secret) for secret in read_secrets(path)]
        except (OSError, ValueError) as error:
            self._outage.failed(file=str(path), reason=str(error))
            return
        self._seen = seen
        self._outage.recovered()
