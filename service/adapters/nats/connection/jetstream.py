"""The JetStream stream that holds everything, and what is asked of it.

Needs NATS 2.12.1: batches that are kept as a whole or not at all, and messages with a time to live of their own.
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
from service.adapters.nats.connection.link import Link, Unfit, unavailable
from service.adapters.nats.connection.protocol import Message
from service.adapters.store.config import ServerTime

OLDEST_SERVER = (2, 12, 1)
"""2.12.0 refuses what a batch expects of subjects that have no message yet."""
WRONG_LAST_SEQUENCE = 10_071
NO_MESSAGE = 10_037
NO_STREAM = 10_059
NAME_IN_USE = 10_058
NO_JETSTREAM = frozenset({10_039, 10_076})
MAX_SUBJECTS = 512
"""Asked for in one question; the server answers at most 1 024."""
MAX_IN_PAGE = 256
MAX_AT_ONCE = 64
"""Questions on their way together: the server drops some when too many wait."""
PAUSES = (0.005, 0.1)
"""Between two tries of what a replica that is behind, or another node, has been in the way of; see `Backoff`."""

_NEEDED = {"allow_direct": True, "allow_msg_ttl": True, "allow_atomic": True, "allow_rollup_hdrs": True}


class Kept(NamedTuple):
    """A message of the stream."""

    sequence: int
    data: bytes


class Write(NamedTuple):
    """One message of a batch."""

    subject: str
    data: bytes
    ttl: float
    """Seconds; the server counts in whole ones, so the message is there for a second or two longer."""
    only: bool = False
    """Whether it takes the place of all messages with this subject."""
    after: int | None = None
    """The sequence of the subject's newest message, 0 for none: the batch is refused if it is another by now."""


class Conflict(Exception):  # noqa: N818  # reads as what happened
    """A subject's newest message is not the one that was expected; nothing has been kept."""


class Stream:
    """Reads by `last` see whatever was acknowledged before. Reads by `several` and `all_of` may be answered by a replica
    that is behind: their callers compare what they get with what `last` said. Everything raises ServiceError if it can't.
    """

    def __init__(
        self,
        link: Link,
        prefix: str,
        subjects: Sequence[str],
        republish: tuple[str, str],
        on_time: ServerTime | None = None,
    ) -> None:
        """`on_time` gets what the server's clock shows."""
        self._link = link
        self._on_time = on_time
        self._subjects = subjects
        self._republish = republish
        self.name = prefix
        self.replicated = False
        """Whether reads may be answered by a replica that is behind."""

    async def ensure(self) -> None:
        """Makes the stream if it is not there. One that is there stays as its operators made it, if it is fit."""
        version = str(self._link.info.get("version", "0"))
        if _numbers(version) < OLDEST_SERVER:
            raise Unfit(f"NATS is version {version[:32]}; 2.12.1 or newer is needed")
        answer = await self._timed("STREAM.INFO")
        if _code(answer) == NO_STREAM:
            answer = await self._timed("STREAM.CREATE", self._wanted())
            if _code(answer) == NAME_IN_USE:  # another node was first
                answer = await self._timed("STREAM.INFO")
        _check(answer)
        self.replicated = answer["config"].get("num_replicas", 1) > 1
        unfit = [name for name, value in _NEEDED.items() if answer["config"].get(name) != value]
        if (answer["config"].get("republish") or {}) != self._wanted()["republish"]:
            unfit.append("republish")
        if unfit:
            raise Unfit(f"the stream {self.name} is not made for this service: see {', '.join(unfit)}")

    async def _timed(self, call: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks something of the stream; the server stamps what it says of one that is there."""
        loop = asyncio.get_running_loop()
        asked = loop.time()
        answer = await self._api(call, question)
        took = loop.time() - asked
        if self._on_time is not None and isinstance(stamp := answer.get("ts"), str):
            with suppress(ValueError):
                self._on_time("nats", datetime.fromisoformat(stamp).timestamp(), took)
        return answer

    def _wanted(self) -> dict[str, Any]:
        source, destination = self._republish
        return {
            "name": self.name,
            "description": "Tidewire: events, heads, ids",
            "subjects": self._subjects,
            "storage": "file",
            "retention": "limits",
            "discard": "new",  # a full stream refuses publishes; it never drops what has been accepted
            "num_replicas": 3 if self._link.info.get("cluster") else 1,
            "republish": {"src": source, "dest": destination},
            **_NEEDED,
        }

    async def last(self, subject: str) -> Kept | None:
        """The subject's newest message, as the stream's leader knows it."""
        answer = await self._api("STREAM.MSG.GET", {"last_by_subj": subject})
        if _code(answer) == NO_MESSAGE:
            return None
        message = _check(answer)["message"]
        return Kept(message["seq"], b64decode(message.get("data", "")))

    async def several(self, subjects: Sequence[str]) -> Mapping[str, Kept]:
        """The newest messages of many subjects, in few questions."""
        parts = [subjects[at : at + MAX_SUBJECTS] for at in range(0, len(subjects), MAX_SUBJECTS)]
        found: dict[str, Kept] = {}
        for part in parts:
            answers = await self._read({"multi_last": part, "batch": len(part)})
            found.update((answer.header("Nats-Subject"), _kept(answer)) for answer in answers)
        return found

    async def all_of(self, subjects: Collection[str]) -> Sequence[Kept]:
        """All messages of each subject or wildcard, oldest first."""
        gate = asyncio.Semaphore(MAX_AT_ONCE)

        async def one(subject: str) -> list[Kept]:
            async with gate:
                return await self._all_of(subject)

        return [kept for found in await asyncio.gather(*map(one, subjects)) for kept in found]

    async def _all_of(self, subject: str) -> list[Kept]:
        found: list[Kept] = []
        while True:
            start = found[-1].sequence + 1 if found else 1
            answers = await self._read({"seq": start, "next_by_subj": subject, "batch": MAX_IN_PAGE})
            found.extend(map(_kept, answers))
            if not answers or int(answers[-1].header("Nats-Num-Pending") or 0) == 0:
                return found

    async def names(self, pattern: str) -> Sequence[str]:
        """Every subject that is kept and matches."""
        found: list[str] = []
        while True:
            answer = _check(await self._api("STREAM.INFO", {"subjects_filter": pattern, "offset": len(found)}))
            page = answer["state"].get("subjects") or {}
            found.extend(page)
            if not page or len(found) >= answer.get("total", 0):
                return found

    async def write(self, batch: Sequence[Write]) -> int:
        """Keeps all of the batch or nothing; returns the sequence of its last message.

        Raises Conflict if a subject's newest message is not the one expected.
        """
        if len(batch) == 1:
            answer = await self._put(batch[0], (), _headers(batch[0]))
        else:
            name = secrets.token_hex(8)
            numbered = [
                (write, _headers(write) | {"Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)})
                for number, write in enumerate(batch, 1)
            ]
            *ahead, (final, headers) = numbered
            lines = tuple(protocol.publish(write.subject, write.data, headers=some) for write, some in ahead)
            answer = await self._put(final, lines, headers | {"Nats-Batch-Commit": "1"})
        if _code(answer) == WRONG_LAST_SEQUENCE:
            raise Conflict
        return int(_check(answer)["seq"])

    def trim(self, pattern: str, keep: int) -> None:
        """Asks that only the newest `keep` messages stay; when and whether that happens is of no consequence."""
        self._link.tell(f"$JS.API.STREAM.PURGE.{self.name}", msgspec.json.encode({"filter": pattern, "keep": keep}))

    async def _put(self, write: Write, ahead: tuple[bytes, ...], headers: dict[str, str]) -> dict[str, Any]:
        return _decoded(await self._link.ask(write.subject, write.data, headers=headers, ahead=ahead))

    async def _api(self, call: str, question: Mapping[str, Any] | None = None) -> dict[str, Any]:
        payload = msgspec.json.encode(question) if question is not None else b""
        return _decoded(await self._link.ask(f"$JS.API.{call}.{self.name}", payload))

    async def _read(self, question: Mapping[str, Any]) -> list[Message]:
        subject = f"$JS.API.DIRECT.GET.{self.name}"
        answers = await self._link.ask(subject, msgspec.json.encode(question), last=_is_end)
        end = answers.pop()
        if end.status not in (204, 404):
            raise unavailable(f"JetStream cannot read: {end.status} {end.description}")
        return answers


def _is_end(answer: Message) -> bool:
    """After the messages of an answer comes one that is none: 204 after some, 404 when there are none."""
    return answer.status != 0


def _kept(answer: Message) -> Kept:
    return Kept(int(answer.header("Nats-Sequence")), answer.payload)


def _headers(write: Write) -> dict[str, str]:
    headers = {"Nats-TTL": f"{ceil(write.ttl) + 1}s"}
    if write.only:
        headers["Nats-Rollup"] = "sub"
    if write.after is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(write.after)
    return headers


def _decoded(answers: list[Message]) -> dict[str, Any]:
    answer = answers[-1]
    if answer.status == 503:
        raise unavailable("JetStream does not answer: it is not enabled, has no leader or is still starting")
    if answer.status:
        raise unavailable(f"NATS says: {answer.status} {answer.description}")
    try:
        return msgspec.json.decode(answer.payload, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise unavailable("JetStream's answer makes no sense") from error


def _code(answer: Mapping[str, Any]) -> int:
    return int((answer.get("error") or {}).get("err_code", 0))


def _check(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, if it is no refusal."""
    if error := answer.get("error"):
        if _code(answer) in NO_JETSTREAM:
            raise Unfit("NATS runs without JetStream: start it with -js, or enable it for this account")
        raise unavailable(f"JetStream says: {error.get('description', 'no reason')}")
    return answer


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdecimal())
