"""Sends requests to the backend API, as a correct or a faulty backend does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from yarl import URL

from tests.support.harness import API_KEY, DEADLINE, Running


@dataclass(frozen=True, slots=True)
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: dict[str, Any]

    def refused(self, status: int, code: str) -> dict[str, Any]:
        """Returns the problem's details; fails the test if this is not the expected refusal."""
        assert (self.status, self.body.get("code")) == (status, code), self.body
        assert self.headers["Content-Type"].startswith("application/problem+json")
        assert self.body["status"] == status
        details: dict[str, Any] = self.body["details"]
        return details


async def ask(
    server: Running,
    method: str,
    path: str,
    body: Any = None,
    *,
    key: str | None = API_KEY,
    headers: dict[str, str] | None = None,
    data: bytes | None = None,
) -> Answer:
    """Sends a request: `path` unchanged, `body` encoded as JSON, `data` as JSON that is encoded already."""
    sent = {"Authorization": f"Bearer {key}"} if key is not None else {}
    if body is not None or data is not None:
        sent["Content-Type"] = "application/json"
        data = json.dumps(body).encode() if data is None else data
    async with server.http.request(
        method, URL(f"{server.url}/api/v1{path}", encoded=True), data=data, headers={**sent, **(headers or {})}
    ) as response:
        found = {name.title(): value for name, value in response.headers.items()}
        text = await response.read()
        return Answer(response.status, found, json.loads(text) if text else {})


async def get(server: Running, path: str, *, key: str = API_KEY) -> dict[str, Any]:
    """Returns the body of a GET; fails the test unless it succeeds."""
    answer = await ask(server, "GET", path, key=key)
    assert answer.status == 200, answer.body
    return answer.body


async def post(server: Running, path: str, body: Any, *, key: str = API_KEY, **headers: str) -> dict[str, Any]:
    """Returns the body of a POST; fails the test unless it succeeds. Headers are keywords: idempotency_key="k"."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await ask(server, "POST", path, body, key=key, headers=named)
    assert answer.status == 200, answer.body
    return answer.body


@asynccontextmanager
async def raw(server: Running) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare TCP connection to the public listener."""
    url = URL(server.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


def head(path: str, *lines: str, method: str = "POST", key: str = API_KEY) -> bytes:
    """A request head with an API key, for a JSON body that follows."""
    return "\r\n".join(
        (
            f"{method} /api/v1{path} HTTP/1.1",
            "Host: tests",
            f"Authorization: Bearer {key}",
            "Content-Type: application/json",
            *lines,
            "",
            "",
        )
    ).encode()


async def status_of(reader: asyncio.StreamReader) -> int:
    """Reads the next response, and returns its status."""
    async with asyncio.timeout(DEADLINE):
        return int((await reader.readline()).split()[1])
