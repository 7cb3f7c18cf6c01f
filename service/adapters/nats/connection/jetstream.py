"""The JetStream stream that stores everything, and its API.

Needs NATS 2.12.1: batches that are stored as a whole or not at all, and messages with a TTL of their own.
"""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64decode
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from math import ceil
from typing import Any, NamedTuple

import msgspec

from service.adapters.nats.connection import protocol
from service.adapters.nats.connection.link import Link
from service.adapters.nats.connection.protocol import Message
from service.adapters.store.config import ServerTimeObserver
from service.adapters.store.errors import MisconfiguredError, unavailable

MIN_SERVER_VERSION = (2, 12, 1)
"""2.12.0 refuses an expected last sequence of 0, for subjects without a message."""
WRONG_LAST_SEQUENCE = 10_071
NO_MESSAGE = 10_037
NO_STREAM = 10_059
NAME_IN_USE = 10_058
NO_JETSTREAM = frozenset({10_039, 10_076})
MAX_SUBJECTS = 512
"""Subjects in one request; the server answers at most 1 024."""
MAX_PAGE = 256
"""Messages in one answer."""
MAX_REQUESTS = 64
"""Requests in flight: the server drops some when too many wait."""
CONFLICT_BACKOFF = (0.005, 0.1)
"""Seconds before a retry (first, longest) when another node has written first, or a replica is behind."""

_REQUIRED = {"allow_direct": True, "allow_msg_ttl": True, "allow_atomic": True, "allow_rollup_hdrs": True}


class StoredMessage(NamedTuple):
    """A message of the stream."""

    sequence: int
    data: bytes


class Write(NamedTuple):
    """One message of a batch."""

    subject: str
    data: bytes
    ttl: float
    """Seconds. The server counts whole seconds, so the message stays up to two longer."""
    is_rollup: bool = False
    """Whether it replaces all messages of its subject."""
    last_sequence: int | None = None
    """The expected sequence of the subject's newest message, 0 for none. If it is another, the batch is refused."""


class SequenceConflictError(Exception):
    """A subject's newest message is not the expected one; nothing was stored."""


class Stream:
    """Reads and writes the stream. Every method raises ServiceError if NATS fails.

    `get_last` sees all acknowledged writes. `get_last_of` and `get_all` may be answered by a replica that is behind:
    their callers compare the answer with that of `get_last`.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        subjects: Sequence[str],
        republish: tuple[str, str],
        on_server_time: ServerTimeObserver | None = None,
    ) -> None:
        """`republish`: the subjects whose messages the server delivers once stored, and the subject to which it
        delivers them. `on_server_time` gets its time."""
        self._link = link
        self._on_server_time = on_server_time
        self._subjects = subjects
        self._republish = republish
        self.name = name
        self.is_replicated = False
        """Whether a replica that is behind may answer reads."""

    async def ensure_created(self) -> None:
        """Creates the stream if it is missing. Raises MisconfiguredError for an unsuitable server or stream."""
        version = str(self._link.info.get("version", "0"))
        if _numbers(version) < MIN_SERVER_VERSION:
            raise MisconfiguredError(f"NATS is version {version[:32]}; 2.12.1 or newer is needed")
        answer = await self._request_timed("STREAM.INFO")
        if _error_code(answer) == NO_STREAM:
            answer = await self._request_timed("STREAM.CREATE", self._config())
            if _error_code(answer) == NAME_IN_USE:  # another node was faster
                answer = await self._request_timed("STREAM.INFO")
        _check(answer)
        self.is_replicated = answer["config"].get("num_replicas", 1) > 1
        unsuitable = [name for name, value in _REQUIRED.items() if answer["config"].get(name) != value]
        if (answer["config"].get("republish") or {}) != self._config()["republish"]:
            unsuitable.append("republish")
        if unsuitable:
            names = ", ".join(unsuitable)
            raise MisconfiguredError(f"the stream {self.name} is not made for this service: see {names}")

    def _config(self) -> dict[str, Any]:
        source, destination = self._republish
        return {
            "name": self.name,
            "description": "Tidewire: events, heads, ids",
            "subjects": self._subjects,
            "storage": "file",
            "retention": "limits",
            "discard": "new",  # a full stream refuses publishes; it never drops accepted events
            "num_replicas": 3 if self._link.info.get("cluster") else 1,
            "republish": {"src": source, "dest": destination},
            **_REQUIRED,
        }

    async def get_last(self, subject: str) -> StoredMessage | None:
        """Returns the subject's newest message, as the stream's leader knows it."""
        answer = await self._request("STREAM.MSG.GET", {"last_by_subj": subject})
        if _error_code(answer) == NO_MESSAGE:
            return None
        message = _check(answer)["message"]
        return StoredMessage(message["seq"], b64decode(message.get("data", "")))

    async def get_last_of(self, subjects: Sequence[str]) -> Mapping[str, StoredMessage]:
        """Returns the newest message of each subject that has one."""
        parts = [subjects[start : start + MAX_SUBJECTS] for start in range(0, len(subjects), MAX_SUBJECTS)]
        found: dict[str, StoredMessage] = {}
        for part in parts:
            answers = await self._read({"multi_last": part, "batch": len(part)})
            found.update((answer.header("Nats-Subject"), _stored(answer)) for answer in answers)
        return found

    async def get_all(self, subjects: Collection[str]) -> Sequence[StoredMessage]:
        """Returns all messages of each subject or wildcard, oldest first."""
        gate = asyncio.Semaphore(MAX_REQUESTS)

        async def read(subject: str) -> list[StoredMessage]:
            async with gate:
                return await self._get_all(subject)

        return [message for found in await asyncio.gather(*map(read, subjects)) for message in found]

    async def _get_all(self, subject: str) -> list[StoredMessage]:
        found: list[StoredMessage] = []
        while True:
            start = found[-1].sequence + 1 if found else 1
            answers = await self._read({"seq": start, "next_by_subj": subject, "batch": MAX_PAGE})
            found.extend(map(_stored, answers))
            if not answers or int(answers[-1].header("Nats-Num-Pending") or 0) == 0:
                return found

    async def list_subjects(self, pattern: str) -> Sequence[str]:
        """Returns every subject that has a message and matches."""
        found: list[str] = []
        while True:
            answer = _check(await self._request("STREAM.INFO", {"subjects_filter": pattern, "offset": len(found)}))
            page = answer["state"].get("subjects") or {}
            found.extend(page)
            if not page or len(found) >= answer.get("total", 0):
                return found

    async def write(self, batch: Sequence[Write]) -> int:
        """Stores the whole batch or nothing. Returns the sequence of its last message. Raises SequenceConflictError."""
        if len(batch) == 1:
            answer = await self._put(batch[0], (), _headers(batch[0]))
        else:
            name = secrets.token_hex(8)
            numbered = [
                (write, _headers(write) | {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)})
                for number, write in enumerate(batch, 1)
            ]
            *ahead, (final, headers) = numbered
            operations = tuple(
                protocol.encode_publish(write.subject, write.data, headers=its_headers) for write, its_headers in ahead
            )
            answer = await self._put(final, operations, headers | {"Nats-Batch-Commit": "1"})
        if _error_code(answer) == WRONG_LAST_SEQUENCE:
            raise SequenceConflictError
        return int(_check(answer)["seq"])

    def purge(self, pattern: str, keep: int) -> None:
        """Asks the server to delete all but the newest `keep` messages. No caller relies on the deletion."""
        payload = msgspec.json.encode({"filter": pattern, "keep": keep})
        self._link.send_unanswered(f"$JS.API.STREAM.PURGE.{self.name}", payload)

    async def purge_before(self, pattern: str, sequence: int) -> None:
        """Deletes all messages before a sequence. NATS frees their bytes when it compacts the file."""
        _check(await self._request("STREAM.PURGE", {"filter": pattern, "seq": sequence}))

    async def erase(self, sequence: int) -> None:
        """Deletes a message, and overwrites its bytes in the file. Does nothing if it is gone."""
        question = {"seq": sequence}
        answer = await self._request("STREAM.MSG.DELETE", question)
        # The server has one error code for a message that is gone and for a failure.
        if answer.get("error") and _error_code(await self._request("STREAM.MSG.GET", question)) != NO_MESSAGE:
            _check(answer)

    async def _put(self, write: Write, ahead: tuple[bytes, ...], headers: dict[str, str]) -> dict[str, Any]:
        return _decode(await self._link.request(write.subject, write.data, headers=headers, ahead=ahead))

    async def _request(self, api: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        payload = msgspec.json.encode(question) if question is not None else b""
        return _decode(await self._link.request(f"$JS.API.{api}.{self.name}", payload))

    async def _request_timed(self, api: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Sends a request, and reports the server's time in the answer."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        answer = await self._request(api, question)
        took = loop.time() - asked
        if self._on_server_time is not None and isinstance(stamp := answer.get("ts"), str):
            with suppress(ValueError):
                self._on_server_time("nats", datetime.fromisoformat(stamp).timestamp(), took)
        return answer

    async def _read(self, question: Mapping[str, Any]) -> list[Message]:
        subject = f"$JS.API.DIRECT.GET.{self.name}"
        answers = await self._link.request(subject, msgspec.json.encode(question), is_last=_is_end)
        end = answers.pop()
        if end.status not in (204, 404):
            raise unavailable(f"JetStream cannot read: {end.status} {end.description}")
        return answers


def _is_end(answer: Message) -> bool:
    """Whether it is the status that ends an answer: 204 after the messages, 404 without messages."""
    return answer.status != 0


def _stored(answer: Message) -> StoredMessage:
    return StoredMessage(int(answer.header("Nats-Sequence")), answer.payload)


def _headers(write: Write) -> dict[str, str]:
    headers = {"Nats-TTL": f"{ceil(write.ttl) + 1}s"}
    if write.is_rollup:
        headers["Nats-Rollup"] = "sub"
    if write.last_sequence is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(write.last_sequence)
    return headers


def _decode(answers: list[Message]) -> dict[str, Any]:
    answer = answers[-1]
    if answer.status == 503:
        raise unavailable("JetStream does not answer: it is not enabled, has no leader or is still starting")
    if answer.status:
        raise unavailable(f"NATS says: {answer.status} {answer.description}")
    try:
        return msgspec.json.decode(answer.payload, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise unavailable("JetStream's answer makes no sense") from error


def _error_code(answer: Mapping[str, Any]) -> int:
    return int((answer.get("error") or {}).get("err_code", 0))


def _check(answer: dict[str, Any]) -> dict[str, Any]:
    """Returns the answer, or raises the error in it."""
    if error := answer.get("error"):
        if _error_code(answer) in NO_JETSTREAM:
            raise MisconfiguredError("NATS runs without JetStream: start it with -js, or enable it for this account")
        raise unavailable(f"JetStream says: {error.get('description', 'no reason')}")
    return answer


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdecimal())
