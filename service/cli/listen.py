"""`tidewire listen`: shows what an endpoint of webhooks is told, and forwards it to a receiver on this machine.

It only reads: what the service delivers by itself does not change.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks import Webhook
from tidewire import AsyncTidewire, TidewireError
from tidewire.results import WebhookEndpoint, WebhookList

from service.adapters.http_backend.signing import PREFIX, check_secret
from service.cli import api, output
from service.cli.options import Commands, past, service_url
from service.core.webhooks import new_entry_id, refuses_entries

POLL_INTERVAL = 0.5
"""Seconds between two reads of a queue that had nothing new."""
TIMEOUT = 10.0
"""Seconds that the receiver may take, as that of an endpoint."""
MIN_PAUSE, MAX_PAUSE = 1.0, 10.0
"""Seconds until an entry is forwarded again: the first time, and at most."""


def register(commands: Commands) -> None:
    """Declares the arguments."""
    parser = commands.add_parser(
        "listen",
        help="show what webhooks tell, and forward it to a receiver",
        description="Shows each entry that an endpoint of webhooks is told, until Ctrl-C. With --forward-to, it also sends them, "
        f"signed, to a receiver, one by one, and again until the receiver has answered. It only reads. {api.KEY_SOURCES}",
    )
    parser.add_argument(
        "--forward-to", type=_url, metavar="URL", help="receiver, such as http://localhost:3000/webhooks"
    )
    parser.add_argument("--endpoint", metavar="NAME", help="endpoint to read; needed if there are several")
    parser.add_argument(
        "--since", type=past, metavar="TIME", help="begin with the last TIME, such as 10m (default: now)"
    )
    parser.add_argument(
        "--secret", type=_secret, metavar="SECRET", help="signs deliveries (default: a new one, which is printed)"
    )
    parser.add_argument("--json", action="store_true", help="print whole entries, one a line")
    api.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Shows and forwards entries until Ctrl-C."""
    key = api.find_key(args)
    if key is None:
        return 1
    try:
        asyncio.run(_listen(args, service_url(args), key))
    except KeyboardInterrupt:
        return 0
    except TidewireError as error:
        _note(api.describe_error(error))
    return 1


async def _listen(args: argparse.Namespace, url: str, key: str) -> None:
    with output.until_closed():
        async with AsyncTidewire(url, api_key=key, deadline=api.DEADLINE) as client:
            found = await client.webhooks()
            endpoint = _chosen(found, args.endpoint)
            if endpoint is None:
                return
            since = max(0, found.at - int((args.since or 0.0) * 1000))
            async with _receiver(args, endpoint.endpoint, found.tenant) as receiver:
                _note(f"listening to {endpoint.endpoint}, tenant {found.tenant}; end with Ctrl-C")
                listener = Listener(client, endpoint, receiver, since, as_json=args.json)
                await listener.run()


def _chosen(found: WebhookList, name: str | None) -> WebhookEndpoint | None:
    """The endpoint to read; None after a note why there is none."""
    names = [endpoint.endpoint for endpoint in found.endpoints]
    wanted = names[0] if name is None and len(names) == 1 else name
    for endpoint in found.endpoints:
        if endpoint.endpoint == wanted:
            return endpoint
    if not names:
        _note(f"webhooks.endpoints has none of the tenant {found.tenant}")
    elif name is None:
        _note(f"choose one with --endpoint: {', '.join(names)}")
    else:
        _note(f"no endpoint {name}; the tenant {found.tenant} has {', '.join(names)}")
    return None


class Listener:
    """Follows every queue of one endpoint. Entries of one channel stay in order; queues do not wait for each other."""

    def __init__(
        self,
        client: AsyncTidewire,
        endpoint: WebhookEndpoint,
        receiver: Receiver | None,
        since: int,
        *,
        as_json: bool = False,
    ) -> None:
        """`since`: milliseconds since the Unix epoch by the service's clock. `receiver`: None only shows entries."""
        self._client = client
        self._endpoint = endpoint
        self._receiver = receiver
        self._since = since
        self._as_json = as_json

    async def run(self) -> None:
        """Follows until cancelled. Raises TidewireError when trying again would not help."""
        tasks = [asyncio.create_task(self._follow(queue.queue)) for queue in self._endpoint.queues]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self, queue: int) -> None:
        after: str | None = None
        since: int | None = self._since
        pause = MIN_PAUSE
        while True:
            try:
                page = await self._client.webhook_entries(self._endpoint.endpoint, queue, after=after, since=since)
            except TidewireError as error:
                if not error.retryable:
                    raise
                _note(f"{api.describe_error(error)}; reading again in {pause:g} s")
                await asyncio.sleep(pause)
                pause = min(2 * pause, MAX_PAUSE)
                continue
            pause = MIN_PAUSE
            for entry in page.entries:
                await self._handle(entry)
            after = page.next
            if not page.more:
                since = None  # what is told from here on may be old: it is told again
                await asyncio.sleep(POLL_INTERVAL)

    async def _handle(self, entry: Mapping[str, Any]) -> None:
        result = "" if self._receiver is None else f" → {await self._receiver.deliver(entry)}"
        if self._as_json:
            output.result(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))
            if result:
                _note(f"{entry['id']}{result}")
        else:
            output.result(f"{describe(entry)}{result}")


class Receiver:
    """Forwards entries to a receiver, signed, one by one."""

    def __init__(self, http: aiohttp.ClientSession, url: str, secret: str, endpoint: str, tenant: str) -> None:
        self._http = http
        self._url = url
        self._webhook = Webhook(secret)
        self._endpoint = endpoint
        self._tenant = tenant

    async def deliver(self, entry: Mapping[str, Any]) -> str:
        """Sends an entry until the receiver has accepted or refused it. Returns the status, and how long that took."""
        id, pause = new_entry_id(), MIN_PAUSE
        body = json.dumps(
            {"endpoint": self._endpoint, "tenant": self._tenant, "entries": [entry]},
            ensure_ascii=False,
            separators=(",", ":"),
        )
        while True:
            started = time.monotonic()
            try:
                status = await self._send(id, body)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                answer = str(error) or type(error).__name__
            else:
                if status < 300 or refuses_entries(status):
                    return f"{status} in {(time.monotonic() - started) * 1000:.0f} ms"
                answer = str(status)
            _note(f"{entry['id']} → {answer}; again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    async def _send(self, id: str, body: str) -> int:
        now = datetime.now(UTC).replace(microsecond=0)
        headers = {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": self._webhook.sign(id, now, body),
        }
        async with self._http.post(self._url, data=body.encode(), headers=headers, allow_redirects=False) as response:
            return response.status


@asynccontextmanager
async def _receiver(args: argparse.Namespace, endpoint: str, tenant: str) -> AsyncIterator[Receiver | None]:
    """The receiver of the arguments; None without one. Prints the secret if it makes one."""
    if args.forward_to is None:
        yield None
        return
    secret = args.secret
    if secret is None:
        secret = PREFIX + base64.b64encode(os.urandom(32)).decode()
        _note(f"the secret of the receiver is {secret}")
    timeout, jar = aiohttp.ClientTimeout(total=TIMEOUT), aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar) as http:
        yield Receiver(http, args.forward_to, secret, endpoint, tenant)


def describe(entry: Mapping[str, Any]) -> str:
    """Returns an entry as a line for a person to read: time, type, channel or user, and what the entry is about."""
    at = time.strftime("%H:%M:%S", time.localtime(entry["at"] / 1000))
    words = [at, entry["type"], entry.get("channel"), entry.get("user")]
    if event := entry.get("event"):
        place = f"#{event['offset']}" if "offset" in event else f"~{event['rev']}" if "rev" in event else None
        words += [event["type"], event["id"], place, "removed" if event.get("removed") else None]
    words += [f"code {entry['code']}" if "code" in entry else None, entry["id"]]
    return " ".join(word for word in words if word)


def _url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise argparse.ArgumentTypeError("a receiver is a URL such as http://localhost:3000/webhooks")
    return text


def _secret(text: str) -> str:
    try:
        return check_secret(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"the secret {error}") from error


def _note(text: str) -> None:
    output.note(f"tidewire: {text}")
