"""E-mails to members who are away: written to the table `mails`, and sent from there.

One e-mail is enough until the member has read the room again.
"""

from __future__ import annotations

import asyncio
import logging
import smtplib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from email.message import EmailMessage
from typing import TYPE_CHECKING

import asyncpg

from .settings import Settings

if TYPE_CHECKING:
    from .messages import Message

log = logging.getLogger("chat.mail")

CHECK_INTERVAL = 5.0
"""Seconds between two looks for e-mails whose time has come."""
MAX_ATTEMPTS = 12
"""The last one comes about an hour after the first."""
SMTP_TIMEOUT = 10


async def write(
    connection: asyncpg.pool.PoolConnectionProxy, message: Message, number: int, title: str, away: Sequence[str]
) -> None:
    """Writes an e-mail for each member who is away and has not got one since the last visit."""
    await connection.execute(
        "WITH told AS ("
        " UPDATE members SET mailed_until = $1 WHERE room = $2 AND user_name <> $3 AND user_name = ANY($4)"
        " AND mailed_until <= read_until RETURNING user_name"
        ") INSERT INTO mails (user_name, subject, body) SELECT user_name, $5, $6 FROM told",
        number,
        message.room,
        message.sender,
        away,
        f"New message in {title}",
        f"{message.sender} wrote in {title}:\n\n{message.text}\n",
    )


class MailSender:
    """Sends what is in the table. A failed e-mail is tried again, later each time."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = settings
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There may be new e-mails."""
        self._woken.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[MailSender]:
        """Sends in the background."""
        task = asyncio.create_task(self._run())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                while await self._send_next():
                    pass
            except Exception:
                log.exception("the table of e-mails cannot be read")
            try:
                async with asyncio.timeout(CHECK_INTERVAL):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def _send_next(self) -> bool:
        """Sends one e-mail; False if there is none. It stays locked meanwhile, so that no second backend sends it, too."""
        async with self._pool.acquire() as connection, connection.transaction():
            row = await connection.fetchrow(
                "SELECT mails.*, email FROM mails JOIN users ON users.name = user_name"
                " WHERE sent_at IS NULL AND attempts < $1 AND next_try_at <= now()"
                " ORDER BY mails.id LIMIT 1 FOR UPDATE OF mails SKIP LOCKED",
                MAX_ATTEMPTS,
            )
            if row is None:
                return False
            try:
                await asyncio.to_thread(self._send, row)
            except (OSError, smtplib.SMTPException) as error:
                log.warning("e-mail %d was not sent: %s", row["id"], error)
                await connection.execute(
                    "UPDATE mails SET attempts = attempts + 1,"
                    " next_try_at = now() + make_interval(secs => power(2, attempts)) WHERE id = $1",
                    row["id"],
                )
            else:
                await connection.execute("UPDATE mails SET sent_at = now() WHERE id = $1", row["id"])
            return True

    def _send(self, row: asyncpg.Record) -> None:
        mail = EmailMessage()
        mail["From"] = "Chat <chat@example.com>"
        mail["To"] = row["email"]
        mail["Subject"] = " ".join(row["subject"].split())
        mail["Message-ID"] = f"<{row['id']}@chat.example.com>"
        mail.set_content(f"{row['body']}\nAnswer in the chat: {self._settings.site_url}\n")
        with smtplib.SMTP(self._settings.smtp_host, self._settings.smtp_port, timeout=SMTP_TIMEOUT) as server:
            server.send_message(mail)
