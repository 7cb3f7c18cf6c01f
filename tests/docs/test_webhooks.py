"""docs/webhooks.md: its entries are what an endpoint gets, and its receivers run as the page prints them: they accept what is
signed, once, and refuse everything else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.settings import load_settings
from tests.docs.blocks import DOCS, blocks, write_files
from tests.docs.stage import PACKAGES, Program, program
from tests.stores.process import MissingProgramError, free_port
from tests.stores.redis_server import faketime
from tests.support.api_client import ask
from tests.support.backend import SECRET, serving_backend
from tests.support.harness import eventually, serving
from tests.support.webhook_api import delivered, say, telling, until_done

pytestmark = pytest.mark.docs

PAGE = DOCS / "webhooks.md"
OTHER = "whsec_" + base64.b64encode(b"a secret that the receiver lacks").decode()
VECTOR = {
    "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "timestamp": "1614265330",
    "body": '{"test": 2432232314}',
    "signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
"""What Standard Webhooks publish: the test `sign function works` of each of its libraries."""


def php(port: int) -> list[str]:
    """How PHP runs the receiver on a port."""
    found = shutil.which("php")
    if found is None:
        raise MissingProgramError(
            "these tests need PHP: run scripts/setup.sh migrate (Debian: php-cli and php-sqlite3)"
        )
    return [found, "-S", f"127.0.0.1:{port}", "receiver.php"]


LANGUAGES = ("python", "js", "php")


@dataclass(frozen=True)
class Receiver:
    """A receiver that runs."""

    language: str
    url: str
    folder: Path
    running: Program
    http: aiohttp.ClientSession

    async def post(self, body: str, headers: Mapping[str, str]) -> int:
        """Sends a delivery; the status of the answer."""
        headers = {"Content-Type": "application/json", **headers}
        async with self.http.post(self.url, data=body.encode(), headers=headers) as response:
            return response.status

    async def printed(self, *ids: str) -> None:
        """Waits until these entries have been reported as new, and no others."""

        def reported() -> list[str]:
            return [line.split()[-1] for line in self.running.lines if " wh_" in line]

        await eventually(lambda: len(reported()) >= len(ids), reported)
        assert reported() == list(ids)

    def stored(self) -> list[dict[str, Any]]:
        """The archive, in its order."""
        if self.language == "js":
            return [json.loads(line) for line in (self.folder / "archive.jsonl").read_text("utf-8").splitlines()]
        with sqlite3.connect(self.folder / "archive.db") as archive:
            return [json.loads(entry) for (entry,) in archive.execute("SELECT entry FROM entries ORDER BY rowid")]


def prepare(folder: Path, port: int) -> None:
    """Writes the receivers of the page, which listen on that port."""
    folder.mkdir(exist_ok=True)
    if not (folder / "node_modules").is_symlink():
        (folder / "node_modules").symlink_to(PACKAGES)
    write_files(PAGE, folder, replace={"port=3000": f"port={port}", "listen(3000": f"listen({port}"})


@asynccontextmanager
async def receiver(language: str, folder: Path, **environment: str) -> AsyncIterator[Receiver]:
    """Runs the receiver of the page in a language."""
    port = free_port()
    prepare(folder, port)
    command = {
        "python": [sys.executable, "receiver.py"],
        "js": ["node", "receiver.mjs"],
        "php": php(port) if language == "php" else [],
    }[language]
    async with (
        program(command, folder, {"WEBHOOK_SECRET": SECRET, **environment}) as running,
        aiohttp.ClientSession() as http,
    ):
        await running.printed("Running on|Development Server .* started")
        host = "127.0.0.1" if language == "php" else "localhost"
        yield Receiver(language, f"http://{host}:{port}/webhooks", folder, running, http)


def entry(id: str, text: str = "hello") -> dict[str, Any]:
    return {
        "id": id,
        "type": "event.published",
        "at": 1795374000000,
        "channel": "room:42",
        "event": {"type": "chat.message", "id": f"m-{id}", "from": "ann", "data": {"text": text, "more": {}}},
    }


def delivery(*entries: dict[str, Any]) -> str:
    return json.dumps({"endpoint": "archive", "tenant": "default", "entries": entries}, ensure_ascii=False)


def signature(body: str, *, id: str, timestamp: str, secret: str = SECRET) -> str:
    """The signature by the letter of the specification, apart from the library that the service uses."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    return "v1," + base64.b64encode(hmac.digest(key, f"{id}.{timestamp}.{body}".encode(), hashlib.sha256)).decode()


def signed(body: str, *, id: str = "msg_1", ago: int = 0, secret: str = SECRET) -> dict[str, str]:
    """The headers of a delivery."""
    timestamp = str(int(time.time()) - ago)
    return {
        "webhook-id": id,
        "webhook-timestamp": timestamp,
        "webhook-signature": signature(body, id=id, timestamp=timestamp, secret=secret),
    }


def test_signature_of_the_test_is_that_of_the_published_vector() -> None:
    made = signature(VECTOR["body"], id=VECTOR["id"], timestamp=VECTOR["timestamp"], secret=VECTOR["secret"])
    assert made == VECTOR["signature"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_receiver_stores_each_entry_once_also_over_a_restart(language: str, tmp_path: Path) -> None:
    first, second, third = entry("wh_1"), entry("wh_2", "größer – ≥ 🌊"), entry("wh_3")
    async with receiver(language, tmp_path / "app") as running:
        for body in (delivery(first), delivery(first, second), delivery(first, second), delivery()):
            assert await running.post(body, signed(body)) == 204
        await running.printed("wh_1", "wh_2")
        assert running.stored() == [first, second]
    async with receiver(language, tmp_path / "app") as running:
        body = delivery(second, third)
        assert await running.post(body, signed(body, id="msg_2")) == 204
        await running.printed("wh_3")
        assert running.stored() == [first, second, third]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_receiver_accepts_the_deliveries_of_the_service(language: str, tmp_path: Path) -> None:
    async with receiver(language, tmp_path / "app") as running:
        endpoint = {"name": "archive", "url": running.url, "tenants": ["default"], "secrets": [SECRET]}
        async with telling(endpoint) as server:
            await say(server, "room:1", "größer – ≥ 🌊", "bye")
            await until_done(server)
            assert len(running.stored()) == 2
            replayed = await ask(server, "POST", "/webhooks/archive/replay", {"since": 0})
            assert replayed.body["replayed"] == 2
            await until_done(server)
            assert await server.metric("webhooks_total", endpoint="archive", outcome="delivered") == 4
        assert [one["event"]["data"]["text"] for one in running.stored()] == ["größer – ≥ 🌊", "bye"]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_receiver_accepts_any_of_several_signatures(language: str, tmp_path: Path) -> None:
    """While a secret is changed, the service signs with both."""
    async with receiver(language, tmp_path / "app") as running:
        body = delivery(entry("wh_1"))
        headers = signed(body)
        old = signed(body, secret=OTHER)["webhook-signature"]
        for signatures in (f"{old} {headers['webhook-signature']}", f"{headers['webhook-signature']} {old}"):
            assert await running.post(body, {**headers, "webhook-signature": signatures}) == 204
        await running.printed("wh_1")


@pytest.mark.parametrize("language", LANGUAGES)
async def test_receiver_refuses_what_is_forged_old_or_wrongly_signed(language: str, tmp_path: Path) -> None:
    body = delivery(entry("wh_1"))
    good = signed(body)
    base = good["webhook-signature"].removeprefix("v1,")
    faulty: dict[str, tuple[str, dict[str, str]]] = {
        "unsigned": (body, {}),
        "another secret": (body, signed(body, secret=OTHER)),
        "a changed body": (delivery(entry("wh_1", "bye")), good),
        "a changed id": (body, {**good, "webhook-id": "msg_2"}),
        "a changed time": (body, {**good, "webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}),
        "six minutes old": (body, signed(body, ago=360)),
        "six minutes early": (body, signed(body, ago=-360)),
        "no id": (body, {name: value for name, value in good.items() if name != "webhook-id"}),
        "no time": (body, {name: value for name, value in good.items() if name != "webhook-timestamp"}),
        "no number": (body, {**good, "webhook-timestamp": "yesterday"}),
        "no signature": (body, {name: value for name, value in good.items() if name != "webhook-signature"}),
        "an empty signature": (body, {**good, "webhook-signature": ""}),
        "another version": (body, {**good, "webhook-signature": f"v2,{base}"}),
        "no version": (body, {**good, "webhook-signature": base}),
        "no base64": (body, {**good, "webhook-signature": "v1,!!!"}),
        "a part of it": (body, {**good, "webhook-signature": f"v1,{base[:20]}"}),
    }
    async with receiver(language, tmp_path / "app") as running:
        answers = {name: await running.post(*sent) for name, sent in faulty.items()}
        assert answers == dict.fromkeys(faulty, 401)
        assert await running.post(body, good) == 204  # it still receives
        await running.printed("wh_1")
        assert running.stored() == [entry("wh_1")]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_receiver_accepts_the_published_vector(language: str, tmp_path: Path) -> None:
    clock = {"LD_PRELOAD": faketime(), "FAKETIME": "@2021-02-25 15:03:00", "TZ": "UTC"}
    async with receiver(language, tmp_path / "app", WEBHOOK_SECRET=VECTOR["secret"], **clock) as running:
        headers = {f"webhook-{name}": VECTOR[name] for name in ("id", "timestamp", "signature")}
        assert await running.post(VECTOR["body"], headers) == 204
        assert await running.post(VECTOR["body"] + " ", headers) == 401
        assert await running.post(VECTOR["body"], signed(VECTOR["body"], secret=VECTOR["secret"])) == 401


# --- entries ----------------------------------------------------------------------------------------------------------

CHOSEN = ("connection", "epoch")
"""Fields whose values the service chooses."""


def shape(value: Any, name: str = "") -> Any:
    """An entry with a sign for each id, time and place in a stream."""
    match value:
        case dict():
            return {key: shape(one, key) for key, one in value.items()}
        case str() if name in CHOSEN:
            return "…"
        case str() if name == "id":
            return "wh_…" if re.fullmatch(r"wh_[A-Za-z0-9_-]{16}", value) else "…"
        case int() if name in ("at", "offset", "rev"):
            return 0
    return value


def prepare_service(folder: Path, url: str) -> dict[str, Any]:
    """Writes the contract and the secret of the page. Returns its settings of webhooks, with an endpoint at that address."""
    files = write_files(PAGE, folder)
    assert {"contract.yaml", "settings.yaml"} <= files.keys()
    found = {(block.heading, block.language): block.text for block in blocks(PAGE)}
    secrets = folder / "archive"
    local = {"/etc/tidewire/webhooks/archive": str(secrets), "https://backend.example.com/webhooks": url}
    command, settings = found["Settings", "sh"], found["Settings", "yaml"]
    for old, new in local.items():
        command, settings = command.replace(old, new), settings.replace(old, new)
    subprocess.run(["bash", "-c", command], check=True)
    (folder / "settings.yaml").write_text(settings)
    return load_settings(folder / "settings.yaml", {"TIDEWIRE_DEMO": "true"}).webhooks.model_dump()


async def test_entries_of_the_page_are_what_an_endpoint_gets(tmp_path: Path) -> None:
    shown = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]
    [delivered_on_page] = [one for one in shown if "entries" in one]
    wanted = [shape(one) for one in (*delivered_on_page["entries"], *(one for one in shown if "entries" not in one))]
    async with serving_backend() as backend:
        webhooks = prepare_service(tmp_path, backend.url)
        backend.secrets = [(tmp_path / "archive").read_text().strip()]
        async with serving(
            contract=tmp_path / "contract.yaml", webhooks=webhooks, deadlines={"presence_leave": 0.1}
        ) as server:
            async with server.client("ann", query="?client=tidewire-js/1.2.0", info={"name": "Ann"}) as ann:
                await ann.subscribe("room:42")
                await ann.ask("chat.message", channel="room:42", data={"text": "hello"})
                await ann.ask("chat.pinned", channel="room:42", data={"slot": "top", "text": "read the rules"})
                await ann.ws.close(code=1001)
            await eventually(lambda: len(delivered(backend)) >= len(wanted), lambda: delivered(backend))
        got = [shape(one) for one in delivered(backend)]
        assert sorted(got, key=json.dumps) == sorted(wanted, key=json.dumps)
        assert all(one.keys() == delivered_on_page.keys() for one in backend.questions)
        assert {(one["endpoint"], one["tenant"]) for one in backend.questions} == {("archive", "default")}
        assert {request.headers["Content-Type"] for request in backend.requests} == {"application/json"}
