"""Every code block of the pages is run by a test, or has a reason why not.

`RUNNERS` says by page and kind of block which test runs all blocks of that kind. A new block of a known kind is run without
a change here; one of a new kind fails the first test, which says where the block is.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import jwt
import pytest
import yaml
from aiohttp import web
from jsonschema_rs import validator_for
from tidewire.testing import FakeTidewire

from service.contract.load import load
from service.contract.model import Contract
from service.settings import Settings, load_settings
from tests.docs.blocks import ROOT, Block, blocks, files, write_files
from tests.docs.console import READY, Page, Rule, play
from tests.stores.process import free_port
from tests.support import harness
from tests.support.harness import API_KEY, SECRET, serving

HERE = "tests/docs/test_pages.py::"
CONTRACT = f"{HERE}test_contract_of_a_page_loads"
SETTINGS = f"{HERE}test_settings_of_a_page_load"
VALUES = f"{HERE}test_values_of_a_page_fit_the_chart"
WIRE = f"{HERE}test_message_of_a_page_is_a_vector"
SCRIPT = f"{HERE}test_scripts_of_the_pages_fit_the_client"
CONSOLE = f"{HERE}test_commands_of_a_page_print_what_it_shows"
CALLS = f"{HERE}test_page_of_calls_works_as_written"
HOOKS = f"{HERE}test_page_of_hooks_works_as_written"
EXAMPLES = "tests/unit/test_doc_examples.py::"
RECIPES = "tests/docs/test_recipes.py::"
MOVES = "tests/docs/test_migrations.py::"
WEBHOOKS = "tests/docs/test_webhooks.py::"
APPLICATION = ("contract", "python", "html", "js")

RUNNERS: dict[str, dict[str, str]] = {
    "README.md": {"console": CONSOLE, "contract": CONTRACT, "js": SCRIPT},
    "docs/concepts.md": {"contract": CONTRACT, "json": WIRE},
    "docs/when-not.md": {"js": f"{HERE}test_polling_shows_each_change_once"},
    "docs/contract.md": {
        "contract": CONTRACT,
        "json": f"{EXAMPLES}test_contract_example_loads_and_validates_its_event",
        "faulty": f"{EXAMPLES}test_faulty_contract_example_has_the_faults_shown",
        "faults": f"{EXAMPLES}test_faulty_contract_example_has_the_faults_shown",
    },
    "docs/http-api.md": {"json": f"{HERE}test_bodies_of_the_api_are_accepted"},
    "docs/hooks.md": {
        "contract": CONTRACT,
        "settings": HOOKS,
        "sh": HOOKS,
        "json": HOOKS,
        "python": HOOKS,
        "js": SCRIPT,
        "values": VALUES,
    },
    "docs/webhooks.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        "settings": f"{WEBHOOKS}test_entries_of_the_page_are_what_an_endpoint_gets",
        "sh": f"{WEBHOOKS}test_entries_of_the_page_are_what_an_endpoint_gets",
        "json": f"{WEBHOOKS}test_entries_of_the_page_are_what_an_endpoint_gets",
        **dict.fromkeys(("python", "js", "php"), f"{WEBHOOKS}test_receiver_stores_each_entry_once_also_over_a_restart"),
        "values": VALUES,
    },
    "docs/calls.md": {"contract": CONTRACT, **dict.fromkeys(("settings", "sh", "json", "python"), CALLS), "js": SCRIPT},
    "docs/streams.md": {
        "console": CONSOLE,
        "json": f"{HERE}test_subscriptions_of_a_stream_are_accepted",
        "js": "tests/docs/test_start.py::test_event_source_of_the_page_follows_a_channel",
    },
    "docs/types.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        "types": "tests/integration/test_types_command.py::test_types_example_is_what_the_command_prints",
        "ts": "clients/js/test/generator/client.test.js",
        "python": f"{HERE}test_types_of_the_page_are_used_with_the_client",
        "diff": f"{EXAMPLES}test_diff_example_prints_what_the_page_shows",
        "workflow": f"{HERE}test_workflow_compares_two_contracts",
    },
    "docs/history-pages.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        "nginx": "tests/e2e/test_history_cache.py::test_readers_share_one_request_to_the_service",
    },
    "docs/start/README.md": {},
    "docs/start/browser.md": {
        "contract": CONTRACT,
        "console": "tests/docs/test_start.py::test_plain_page_shows_what_the_backend_publishes",
        "html": "tests/docs/test_start.py::test_plain_page_shows_what_the_backend_publishes",
    },
    "docs/start/curl.md": {"console": CONSOLE},
    "docs/start/first-chat.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        "output": CONSOLE,
        "python": "tests/browser/test_first_chat.py::test_tutorial_files_give_a_chat_with_presence_typing_and_history",
        "html": "tests/browser/test_first_chat.py::test_tutorial_files_give_a_chat_with_presence_typing_and_history",
    },
    "docs/start/own-application.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        "json": f"{HERE}test_claims_of_the_page_are_a_token",
        "js": "tests/browser/test_own_application.py::test_page_about_your_application_works_as_written",
    },
    "docs/start/python.md": {
        "console": CONSOLE,
        "python": "clients/python/tests/test_python_recipes.py::test_recipe_publishes_each_message_once",
    },
    "docs/start/typescript.md": {
        "contract": CONTRACT,
        "console": CONSOLE,
        **dict.fromkeys(
            ("js", "html", "tsx", "json"),
            "tests/browser/test_js_start.py::test_page_leads_from_an_empty_folder_to_a_typed_component",
        ),
    },
    "docs/start/other-clients.md": {"js": SCRIPT},
    "docs/recipes/README.md": {
        "console": CONSOLE,
        **dict.fromkeys(("python", "js"), f"{RECIPES}test_chat_recipe_resumes_and_sends_what_was_typed_offline"),
    },
    "docs/recipes/chat.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_chat_recipe_resumes_and_sends_what_was_typed_offline"
    ),
    "docs/recipes/archive.md": {
        **dict.fromkeys(
            (*APPLICATION, "settings"), f"{RECIPES}test_archive_recipe_goes_on_live_where_the_archive_ends"
        ),
        "sh": f"{RECIPES}test_archive_recipe_makes_a_secret_once",
    },
    "docs/recipes/dashboard.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_dashboard_recipe_has_the_first_state_without_a_new_publish"
    ),
    "docs/recipes/tracking.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_tracking_recipe_moves_vehicles_and_drops_silent_ones"
    ),
    "docs/recipes/notifications.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_notifications_recipe_counts_unread_in_all_tabs"
    ),
    "docs/recipes/cursors.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_cursors_recipe_shows_the_last_place_and_removes_who_leaves"
    ),
    "docs/recipes/streaming-answers.md": dict.fromkeys(
        APPLICATION, f"{RECIPES}test_streaming_recipe_gives_everybody_the_whole_text"
    ),
    "docs/migrate/README.md": {},
    "docs/migrate/from-pusher.md": dict.fromkeys(
        ("contract", "html", "js"), f"{MOVES}test_chat_from_pusher_works_after_the_move"
    ),
    "docs/migrate/from-socket-io.md": dict.fromkeys(
        ("contract", "html", "js"), f"{MOVES}test_chat_from_socket_io_works_after_the_move"
    ),
    "docs/migrate/from-centrifugo.md": dict.fromkeys(
        APPLICATION, f"{MOVES}test_dashboard_from_centrifugo_works_after_the_move"
    ),
    "docs/migrate/from-ably.md": {"contract": CONTRACT},
    "clients/js/README.md": {
        "js": SCRIPT,
        "ts": SCRIPT,
        "jsx": "tests/browser/test_react.py::test_hooks_keep_one_subscription_under_strict_mode",
    },
    "clients/python/README.md": {
        "console": "reason: `pip install tidewire` needs a release; tests/integration/test_installs.py installs the package",
        "python": "clients/python/tests/test_python_readme.py::test_every_example_of_the_readme_runs",
    },
}

FOREIGN = re.compile(r"from '(centrifuge|socket\.io|socket\.io-client|jsonwebtoken|tidewire/testing)'")
"""Not checked for types: the examples with other clients need those clients and Centrifugo, and the page says when they were
run. That of `tidewire/testing` is run by clients/js/test/testing.test.js."""


def kind(block: Block) -> str:
    """What a block is: its marker, or what its language says of it."""
    if block.marker not in (None, "file"):
        return str(block.marker)
    if block.language != "yaml":
        return block.language or "text"
    content = yaml.safe_load(block.text)
    if (
        "channels" in content
        or "calls" in content
        or content.keys() == {"events"}
        or all(":" in key for key in content)
    ):
        return "contract"
    if "jobs" in content:
        return "workflow"
    return "values" if "settings" in content else "settings"


def of_kind(page: str, wanted: str) -> list[Block]:
    """The blocks of a page that are of that kind."""
    return [block for block in blocks(ROOT / page) if kind(block) == wanted]


def pages_with(wanted: str, runner: str) -> list[str]:
    """The pages whose blocks of that kind have that runner."""
    return [page for page, runners in RUNNERS.items() if runners.get(wanted) == runner]


def test_every_block_has_a_runner() -> None:
    without = [
        f"{page}:{block.line}: no test runs a block of the kind {kind(block)!r}: add it to RUNNERS"
        for page, runners in RUNNERS.items()
        for block in blocks(ROOT / page)
        if kind(block) not in runners
    ]
    assert without == []


def test_every_runner_exists_and_has_a_block() -> None:
    for page, runners in RUNNERS.items():
        assert runners.keys() == {kind(block) for block in blocks(ROOT / page)}, page
        for runner in runners.values():
            if runner.startswith("reason: "):
                continue
            file, _, name = runner.partition("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8") if name else (ROOT / file).exists(), (
                runner
            )


@pytest.mark.parametrize("folder", ["start", "recipes", "migrate"])
def test_every_page_of_the_folder_is_run(folder: str) -> None:
    found = {str(page.relative_to(ROOT)) for page in (ROOT / "docs" / folder).glob("*.md")}
    assert found <= RUNNERS.keys()


# --- contracts, settings, values --------------------------------------------------------------------------------------


def whole(text: str) -> str:
    """A contract around a part of one."""
    content = yaml.safe_load(text)
    if "channels" in content or "calls" in content:
        return text
    if content.keys() == {"events"}:
        content = {"part:{id}": {"subscribe": "authenticated", **content}}
    return yaml.safe_dump({"channels": content})


@pytest.mark.parametrize("page", pages_with("contract", CONTRACT))
def test_contract_of_a_page_loads(page: str, tmp_path: Path) -> None:
    for block in of_kind(page, "contract"):
        write_files(ROOT / page, tmp_path)  # schemas, too
        (tmp_path / "contract.yaml").write_text(whole(block.text), encoding="utf-8")
        contract = loaded(tmp_path)
        assert contract.channels or contract.calls, f"{page}:{block.line}"


def loaded(folder: Path) -> Contract:
    return load(folder / "contract.yaml")


@pytest.mark.parametrize("page", pages_with("values", VALUES))
def test_values_of_a_page_fit_the_chart(page: str) -> None:
    chart = ROOT / "helm" / "tidewire"
    schema = validator_for(json.loads((chart / "values.schema.json").read_text(encoding="utf-8")))
    for block in of_kind(page, "values"):
        values = yaml.safe_load(block.text)
        schema.validate(values)
        assert set(values["settings"]) <= set(Settings.model_fields), f"{page}:{block.line}"


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("json", WIRE))
def test_message_of_a_page_is_a_vector(page: str) -> None:
    vectors = [
        vector["message"]
        for side in ("client", "server")
        for vector in json.loads((ROOT / f"tests/vectors/{side}.json").read_text(encoding="utf-8"))
    ]
    for block in of_kind(page, "json"):
        assert json.loads(block.text) in vectors, f"{page}:{block.line}"


async def test_bodies_of_the_api_are_accepted(tmp_path: Path) -> None:
    channels = {
        "room:{room}": {
            "subscribe": "authenticated",
            "presence": True,
            "history": {"events": 10, "ttl": "1h"},
            "events": {"chat.message": {"publish": "server", "delivery": "durable"}},
        },
        "map:{map}": {
            "subscribe": "authenticated",
            "events": {"map.cursor": {"publish": "server", "delivery": "latest", "key": "/user", "removable": True}},
        },
    }
    (tmp_path / "contract.yaml").write_text(json.dumps({"channels": channels}))
    webhooks = {"endpoints": [{"name": "archive", "tenants": ["default"]}]}
    async with serving(contract=tmp_path / "contract.yaml", webhooks=webhooks) as server:
        for block in of_kind("docs/http-api.md", "json"):
            body = json.loads(block.text)
            if "channels" in body:
                address = "/api/v1/presence/counts"
            elif "ids" in body:
                address = "/api/v1/webhooks/archive/replay"
            else:
                address = f"/api/v1/channels/{'map:1' if body['type'] == 'map.cursor' else 'room:42'}/events"
            headers = {"Authorization": f"Bearer {API_KEY}"}
            async with server.http.post(f"{server.url}{address}", json=body, headers=headers) as response:
                assert response.status == 200, f"docs/http-api.md:{block.line}: {await response.text()}"
                if "channels" in body:
                    counts = (await response.json())["counts"]
                    assert [count["channel"] for count in counts] == body["channels"]


async def test_subscriptions_of_a_stream_are_accepted() -> None:
    async with serving() as server:
        for block in of_kind("docs/streams.md", "json"):
            headers = {"Authorization": f"Bearer {harness.token('ann')}"}
            async with server.http.post(
                f"{server.url}/stream", json=json.loads(block.text), headers=headers
            ) as response:
                assert response.status == 200, f"docs/streams.md:{block.line}: {await response.text()}"
                assert b"welcome" in await response.content.readline() + await response.content.readline() + (
                    await response.content.readline()
                )


async def test_claims_of_the_page_are_a_token() -> None:
    [block] = of_kind("docs/start/own-application.md", "json")
    claims = json.loads(block.text)
    assert isinstance(claims["exp"], int)
    signed = jwt.encode({**claims, "exp": int(time.time()) + 600}, SECRET, algorithm="HS256")
    async with (
        serving() as server,
        server.http.post(f"{server.url}/tickets", headers={"Authorization": f"Bearer {signed}"}) as response,
    ):
        assert response.status == 201, await response.text()


# --- hooks ------------------------------------------------------------------------------------------------------------


async def test_page_of_hooks_works_as_written(tmp_path: Path) -> None:
    """The contract, the settings, the secret and the backend of the page; its questions are what the backend gets."""
    page = "docs/hooks.md"
    secrets = tmp_path / "moderation"
    port = free_port()

    def local(text: str) -> str:
        text = text.replace("/etc/tidewire/hooks/moderation", str(secrets)).replace("port=3000", f"port={port}")
        return text.replace("https://backend.example.com", f"http://127.0.0.1:{port}")

    [contract] = [block for block in of_kind(page, "contract") if "channels" in block.text]
    (tmp_path / "contract.yaml").write_text(contract.text)
    [command] = of_kind(page, "sh")
    await asyncio.to_thread(subprocess.run, ["bash", "-c", local(command.text)], check=True)
    [settings] = of_kind(page, "settings")
    (tmp_path / "settings.yaml").write_text(
        local(settings.text) + f"auth: {{secret: '{SECRET}'}}\ncontract: contract.yaml\n"
    )
    hooks = load_settings(tmp_path / "settings.yaml", {}).hooks.model_dump()
    [backend] = of_kind(page, "python")
    # What the backend is asked, one a line.
    shown = local(backend.text).replace(
        "    if question[", '    print(__import__("json").dumps(question), flush=True)\n    if question[', 1
    )
    assert shown != local(backend.text)
    (tmp_path / "backend.py").write_text(shown)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "backend.py"), cwd=tmp_path, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert b"Running on" in await process.stdout.readline()
            await process.stdout.readline()
            origin, device = "https://app.example.com", {"X-Device": "phone", "X-Forwarded-For": "203.0.113.7"}
            async with (
                serving(
                    contract=tmp_path / "contract.yaml", hooks=hooks, origins=(origin,), proxy={"hops": 1}
                ) as server,
                server.client(
                    token_="s3ss10n-of-ann",  # the token of the page
                    query="?client=tidewire-js/1.2.0",
                    headers={"Origin": origin, **device},
                ) as ann,
            ):
                assert (ann.welcome["user"], ann.welcome["data"]) == ("ann", {"plan": "free"})
                asked = [json.loads(await process.stdout.readline())]
                [score] = (await ann.subscribe("scores:42"))["state"]
                assert score["data"] == {"team": "red", "points": 3}
                asked.append(json.loads(await process.stdout.readline()))
                await ann.subscribe("room:42")
                asked.append(json.loads(await process.stdout.readline()))
                stored = await ann.ask("chat.message", channel="room:42", data={"text": "hello"})
                asked.append(json.loads(await process.stdout.readline()))
                refused = await ann.ask("chat.message", channel="room:42", data={"text": "see http://example.com"})
                assert (stored["type"], refused["details"]["reason"]) == ("ack", "no links here")
    finally:
        process.terminate()
        await process.communicate()
    asked[3]["event"]["id"] = "m-7"  # the client of the test chooses ids by itself
    questions = [json.loads(block.text) for block in of_kind(page, "json")]
    assert sorted(asked, key=lambda one: one["hook"]) == sorted(questions, key=lambda one: one["hook"])


async def test_page_of_calls_works_as_written(tmp_path: Path) -> None:
    """The contract, the secret, the settings and the backend of the page; its question is what the backend gets, its request
    is answered."""
    page = "docs/calls.md"
    secrets = tmp_path / "shop"
    [command] = of_kind(page, "sh")
    local = command.text.replace("/etc/tidewire/hooks/shop", str(secrets))
    await asyncio.to_thread(subprocess.run, ["bash", "-c", local], check=True)
    [contract] = of_kind(page, "contract")
    (tmp_path / "contract.yaml").write_text(contract.text)
    [backend] = of_kind(page, "python")
    asked: list[dict[str, Any]] = []
    example: dict[str, Any] = {"__name__": "example", "asked": asked}
    shown = backend.text.replace(
        "    return web.json_response", "    asked.append(question)\n    return web.json_response"
    )
    assert shown != backend.text
    exec(shown.replace("/etc/tidewire/hooks/shop", str(secrets)), example)
    question, request = (json.loads(block.text) for block in of_kind(page, "json"))
    runner = web.AppRunner(example["app"])
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        [settings] = of_kind(page, "settings")
        text = settings.text.replace("https://backend.example.com", url).replace(
            "/etc/tidewire/hooks/shop", str(secrets)
        )
        (tmp_path / "settings.yaml").write_text(f"{text}auth: {{secret: '{SECRET}'}}\ncontract: contract.yaml\n")
        hooks = load_settings(tmp_path / "settings.yaml", {}).hooks.model_dump()
        async with serving(contract=tmp_path / "contract.yaml", hooks=hooks) as server, server.client() as ann:
            call = {"call": question["call"], "id": question["id"], "data": question["data"]}
            await ann.send(type="call", **call)
            assert (await ann.until("reply", id=question["id"]))["data"] == {"price": 1200}
            assert asked == [{**question, "connection": ann.welcome["connection"]}]
            failed = await ann.ask("call", call="order.quote", data={"item": "sand", "count": 1})
            assert (failed["code"], failed["details"]) == ("call_failed", {"reason": "unknown_item"})
            headers = {"Authorization": f"Bearer {harness.token('ann')}"}
            async with server.http.post(f"{server.url}/call", json=request, headers=headers) as response:
                assert (response.status, (await response.json())["data"]) == (200, {"price": 1200})
            forged = {"webhook-id": "q", "webhook-timestamp": str(int(time.time())), "webhook-signature": "forged"}
            async with server.http.post(f"{url}/tidewire", data="{}", headers=forged) as response:
                assert response.status == 401
    finally:
        await runner.cleanup()


# --- scripts ----------------------------------------------------------------------------------------------------------

CLIENT = ROOT / "clients" / "js"
GLOBALS = """
import type { Tidewire as Client } from 'tidewire';
import type {} from 'tidewire/react';
declare global {
  // What the examples take for given: functions of an application, and values.
  var show: (...values: any[]) => void, render: (...values: any[]) => void, prepend: (...values: any[]) => void;
  var reload: () => void;
  var markSent: (id: string) => void, showMessages: (...values: any[]) => void, showMembers: (...values: any[]) => void;
  var showMetric: (value: any) => void, fetchToken: () => Promise<string>;
  var Tidewire: typeof import('tidewire').Tidewire;
  var token: () => Promise<string>, me: string, x: number, y: number, client: Client, room: ReturnType<Client['channel']>;
}
"""

TYPES = """
export interface Contract {
  channels: { 'room:{room}': { events: { 'chat.message': { data: { text: string }; delivery: 'durable'; publish: true } } } };
}
"""


def script_blocks() -> list[tuple[str, str, Block]]:
    """File name, page and block of each script that is checked."""
    return [
        (f"{page.replace('/', '-').removesuffix('.md')}-{block.line}.{block.language}", page, block)
        for page, runners in RUNNERS.items()
        for block in blocks(ROOT / page)
        if block.language in ("js", "ts") and runners.get(kind(block)) == SCRIPT and not FOREIGN.search(block.text)
    ]


async def node(*command: str | Path) -> tuple[int | None, str]:
    """Runs a program to its end. Returns its exit status and what it has printed."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    async with asyncio.timeout(240):
        printed, _ = await process.communicate()
    return process.returncode, printed.decode()


@pytest.mark.docs
async def test_scripts_of_the_pages_fit_the_client(tmp_path: Path) -> None:
    found = script_blocks()
    assert len(found) >= 8
    for name, _, block in found:
        (tmp_path / name).write_text(block.text, encoding="utf-8")
    (tmp_path / "globals.d.ts").write_text(GLOBALS)
    (tmp_path / "contract.d.ts").write_text(TYPES)
    await node("npm", "--prefix", CLIENT, "run", "--silent", "build")
    exported = json.loads((CLIENT / "package.json").read_text(encoding="utf-8"))["exports"]
    paths = {f"tidewire{name[1:]}": [str(CLIENT / entry["types"])] for name, entry in exported.items()}
    options = {
        "allowJs": True, "checkJs": True, "strict": True, "noImplicitAny": False, "noEmit": True, "skipLibCheck": True,
        "target": "ES2022", "module": "ESNext", "moduleResolution": "bundler", "moduleDetection": "force",
        "lib": ["ES2023", "DOM", "DOM.Iterable"], "paths": paths, "jsx": "react-jsx",
        "typeRoots": [str(CLIENT / "node_modules" / "@types")], "types": ["node"],
    }  # fmt: skip
    (tmp_path / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*"]}))
    tsc = CLIENT / "node_modules" / "typescript" / "bin" / "tsc"
    status, printed = await node("node", tsc, "--project", tmp_path, "--pretty", "false")
    pages = {name: f"{page}:{block.line}" for name, page, block in found}
    text = re.sub(r"[^\s(]*?([\w.-]+\.(?:js|ts))\(", lambda file: f"{pages.get(file[1], file[1])} + (", printed)
    assert status == 0, text


async def test_polling_shows_each_change_once(tmp_path: Path) -> None:
    """The loop of docs/when-not.md in Node.js, against a server with an ETag that fails once."""
    [block] = of_kind("docs/when-not.md", "js")
    (tmp_path / "poll.mjs").write_text(
        block.text
        + """
import { createServer } from 'node:http';
const answers = ['a', 'a', null, 'b', 'b'];
const asked = [];
const shown = [];
const server = createServer((request, response) => {
  asked.push(request.headers['if-none-match'] ?? '');
  const value = answers[Math.min(asked.length, answers.length) - 1];
  if (value === null) return response.destroy();
  if (request.headers['if-none-match'] === `"${value}"`) return response.writeHead(304).end();
  response.writeHead(200, { ETag: `"${value}"`, 'Content-Type': 'application/json' }).end(JSON.stringify(value));
}).listen(0, '127.0.0.1', () => {
  poll(`http://127.0.0.1:${server.address().port}`, (value) => shown.push(value), 1);
  const done = setInterval(() => {
    if (asked.length < answers.length) return;
    clearInterval(done);
    console.log(JSON.stringify({ shown, asked: asked.slice(0, answers.length) }));
    process.exit();
  }, 5);
});
"""
    )
    _, printed = await node("node", tmp_path / "poll.mjs")
    assert json.loads(printed) == {"shown": ["a", "b"], "asked": ["", '"a"', '"a"', '"a"', '"b"']}


def test_types_of_the_page_are_used_with_the_client() -> None:
    """tests/unit/test_python_types.py compares the types with what the command prints."""
    types, use = (block.text for block in of_kind("docs/types.md", "python"))
    module = ModuleType("events")
    exec(types, module.__dict__)
    fake = FakeTidewire()
    assert use.startswith("from events import ChatMessage\n")
    exec(use.partition("\n")[2], {"ChatMessage": module.ChatMessage, "client": fake.client()})
    assert [event.data for event in fake.events("room:42")] == [{"text": "hi", "mood": "calm"}]


def test_workflow_compares_two_contracts(tmp_path: Path) -> None:
    [block] = of_kind("docs/types.md", "workflow")
    steps = yaml.safe_load(block.text)["jobs"]["contract"]["steps"]
    script = steps[-1]["run"]
    files = write_files(ROOT / "docs/types.md", tmp_path / "files")

    def git(*words: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        subprocess.run(["git", *identity, *words], cwd=tmp_path / "checkout", check=True, capture_output=True)

    (tmp_path / "checkout").mkdir()
    git("init", "--initial-branch=main")
    (tmp_path / "checkout" / "contract.yaml").write_text(files["contract.yaml"])
    git("add", "contract.yaml")
    git("commit", "-m", "old")
    git("update-ref", "refs/remotes/origin/main", "HEAD")
    (tmp_path / "checkout" / "contract.yaml").write_text(files["new.yaml"])
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "GITHUB_BASE_REF": "main",
        "HOME": str(tmp_path),
    }
    ran = subprocess.run(
        ["bash", "-e", "-c", script], cwd=tmp_path / "checkout", env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 1, ran.stderr
    assert "for publishers:" in ran.stdout


# --- commands ---------------------------------------------------------------------------------------------------------

CLONE = Rule(r"^(git clone|cd tidewire$)", skip="the test has a checkout")
SETUP = Rule(r"^scripts/setup\.sh ", skip="the checkout is set up")
DEMO = Rule(r"^make run$", serve=".venv/bin/tidewire serve --demo")
OTHER = Rule(
    r"^(npm|npx|pipx?|mkdir app && cd app|make (test|image|kind)|docker|helm) ?",
    skip="installs packages, or needs programs that the tests of packages, image and chart have",
)
STREAM = Rule(  # what has come by then may be in one frame or in two
    r"^curl -N",
    until='"type":"subscribed"',
    shows=(
        r"retry: \d+",
        r"\ndata: .*\{\"type\":\"welcome\"",
        '"type":"receipt"',
        r'"type":"subscribed","id":null,"channel":"room:',
    ),
)
SECRETS = """
(umask 077; openssl rand -base64 48 > secret; openssl rand -hex 32 > api-key)
export TIDEWIRE_CONTRACT=contract.yaml TIDEWIRE_AUTH__SECRET_FILE=secret TIDEWIRE_API__KEY_FILE=api-key
"""
OWN = """\
channels:
  "room:{room}":
    subscribe: grant
    history: {events: 5000, ttl: 30d, cacheable: true}
    events:
      chat.message: {publish: subscriber, delivery: durable}
"""
START = f"{SECRETS}.venv/bin/tidewire serve >service.log 2>&1 &\n"


def own_service(path: str, before: str, rules: tuple[Rule, ...], replace: dict[str, str] | None = None) -> Page:
    """A page whose commands go to a service that the reader has."""
    return Page(
        path,
        rules,
        files={"contract.yaml": OWN},
        before=f"{START}{READY}\n{before}",
        replace={
            "https://events.example.com": "http://127.0.0.1:8080",
            **(replace or {}),
        },
    )


MANY = """
python3 -c 'import json; print(json.dumps([{"type": "chat.message", "data": {"text": "hi"}}] * 852))' > events.json
for i in 1 2 3 4 5; do curl -sS -o /dev/null -H "Authorization: Bearer $(cat api-key)" -H 'Content-Type: application/json' \\
    -d @events.json http://127.0.0.1:8080/api/v1/channels/room:42/events; done
TOKEN=$(.venv/bin/tidewire token --user ann --grant 'room:*')
"""
SIX = """
for i in 1 2 3 4 5 6; do curl -sS -o /dev/null -H "Authorization: Bearer $(cat api-key)" -H 'Content-Type: application/json' \\
    -d '{"type": "chat.message", "data": {"text": "hi"}}' http://127.0.0.1:8080/api/v1/channels/room:42/events; done
"""
POLLED = """
RECEIPT=$(curl -sS http://127.0.0.1:8080/poll -H 'Content-Type: application/json' \\
    -H "Authorization: Bearer $(.venv/bin/tidewire token --user curl --grant 'room:*')" \\
    -d '{"subscriptions": [{"channel": "room:42"}]}' | python3 -c 'import json, sys; print(json.load(sys.stdin)["receipt"])')
"""
PAGES = {
    page.path: page
    for page in (
        Page("README.md", (DEMO, OTHER)),
        Page("docs/start/curl.md", (CLONE, DEMO, STREAM)),
        Page(
            "docs/start/python.md",
            (CLONE, DEMO, Rule("follow.py", until="hello from Python")),
        ),
        Page(
            "docs/start/first-chat.md",
            (
                CLONE,
                SETUP,
                Rule(r"^mkdir chat$", skip="the test has made it"),
                Rule(r"tidewire serve$", serve="../.venv/bin/tidewire serve"),
                Rule("backend.py$", until="CTRL"),
            ),
            folder="chat",
        ),
        Page(
            "docs/recipes/README.md",
            (Rule(r"tidewire serve$", serve="../.venv/bin/tidewire serve"), Rule("serve.py$", until="CTRL")),
            folder="recipe",
            files=files(ROOT / "docs" / "recipes" / "chat.md"),
        ),
        Page(
            "docs/webhooks.md",
            (
                Rule(r"tidewire serve$", serve=".venv/bin/tidewire serve"),
                Rule(r"receiver\.py$", background=True),
                Rule("tidewire listen", until="→ 204"),
            ),
        ),
        Page(
            "docs/start/own-application.md",
            (
                Rule(r"tidewire serve$", serve=".venv/bin/tidewire serve"),
                Rule(r"tidewire tail", background=True),
            ),
        ),
        own_service(
            "docs/streams.md",
            SIX + POLLED,
            (STREAM,),
            {'"receipt": "v1.…"': '"receipt": "\'"$RECEIPT"\'"'},
        ),
        own_service(
            "docs/history-pages.md",
            MANY,
            (
                Rule(
                    "cdn.example.com",
                    skip="a shortened address; tests/integration/test_history_pages.py follows whole ones",
                ),
            ),
        ),
        Page("docs/types.md", (OTHER, Rule("tidewire diff", status=1))),
        Page(
            "docs/start/typescript.md",
            (Rule(r"tidewire serve &$", serve="tidewire serve"), OTHER),
            before=f"mkdir node_modules && ln -s {CLIENT} node_modules/tidewire && export NODE_OPTIONS=--experimental-websocket",
        ),
    )
}


@pytest.mark.docs
@pytest.mark.parametrize("path", pages_with("console", CONSOLE))
async def test_commands_of_a_page_print_what_it_shows(path: str, tmp_path: Path) -> None:
    faults = await play(PAGES[path], tmp_path)
    assert not faults, "\n\n".join(faults)
