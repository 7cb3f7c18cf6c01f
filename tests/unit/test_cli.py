"""The `tidewire` command: check, token, serve and development credentials."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest
import structlog

from service import app, assets, process
from service.__main__ import COMMANDS, main
from service.adapters.clock import SystemClock
from service.adapters.http_fetch import HttpFetch
from service.adapters.jwt.authenticator import JwtAuthenticator
from service.adapters.jwt.issuer import Issuer
from service.cli import demo
from service.cli.development import Development, load_development, needs_development
from service.cli.options import service_url
from service.contract.gate import Gate
from service.contract.load import load
from service.core.identity import Grant, backend
from service.realtime import remover
from service.settings import Settings
from tests.support import harness

ROOT = Path(__file__).resolve().parents[2]
CONTRACTS = Path(__file__).parent / "contracts"
SECRET = "a toy secret of at least thirty-two bytes"


@pytest.fixture(autouse=True)
def _empty_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("TIDEWIRE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[app.Service, app.Companion | None]]:
    """Every service that would have been run."""
    calls: list[tuple[app.Service, app.Companion | None]] = []

    def serve(service: app.Service, companion: app.Companion | None = None) -> int:
        calls.append((service, companion))
        return 0

    monkeypatch.setattr(process, "serve", serve)
    return calls


# --- check -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", [[], ["--contract"]])
def test_check_reports_each_fault_with_its_line(option: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    path = CONTRACTS / "five_faults.yaml"
    assert main(["check", *option, str(path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split(": ")[0] for line in err.splitlines()] == [f"{path}:{line}" for line in (3, 6, 7, 14, 19)]


def test_check_of_good_contract_prints_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(CONTRACTS / "good.yaml")]) == 0
    contract = CONTRACTS / "good.yaml"
    said = f"{contract}: good: 4 channels, 8 event types, hash {load(contract).hash}\n"
    assert capsys.readouterr() == (said, "")


def test_check_accepts_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(assets.demo_folder() / "contract.yaml")]) == 0
    assert "good" in capsys.readouterr().out


def test_check_reports_settings_and_contract_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.yaml").write_text(f"contract: {CONTRACTS / 'five_faults.yaml'}\nport: high\nauth: {{}}\n")
    monkeypatch.setenv("TIDEWIRE_CONFIG", "settings.yaml")
    assert main(["check"]) == 1
    told = [line.split(": ")[0].rpartition("/")[2] for line in capsys.readouterr().err.splitlines()]
    assert sorted(told) == sorted(
        ["settings.yaml:2", "settings.yaml:3", *(f"five_faults.yaml:{line}" for line in (3, 6, 7, 14, 19))]
    )


def test_check_without_settings_names_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 1
    err = capsys.readouterr().err
    assert "TIDEWIRE_AUTH__SECRET" in err
    assert "TIDEWIRE_CONTRACT" in err


def test_command_runs_as_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service", "check", str(CONTRACTS / "five_faults.yaml")],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 5)


# --- development credentials -------------------------------------------------------------------------------------------


def test_development_credentials_are_random_stored_and_private(tmp_path: Path) -> None:
    first = load_development()
    assert load_development() == first
    assert load_development(tmp_path / "other").secret != first.secret
    assert len(first.secret) >= 32
    assert len(first.api_key) >= 24
    assert stat.S_IMODE(Path(".tidewire").stat().st_mode) == 0o700
    for file in (first.secret_file, first.api_key_file):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(file.name for file in Path(".tidewire").iterdir()) == [".gitignore", "api-key", "secret"]
    assert first.secret not in repr(first)
    assert first.api_key not in repr(first)


def test_development_credentials_with_lax_permissions_are_tightened() -> None:
    found = load_development()
    found.secret_file.chmod(0o644)
    found.folder.chmod(0o755)
    assert load_development() == found
    assert stat.S_IMODE(found.secret_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(found.folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("command", [["token", "--user", "ann"], ["serve", "--demo"]])
def test_development_credentials_too_short_are_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = load_development()
    found.secret_file.write_text("\n")
    assert main(command) == 1
    assert (
        capsys.readouterr().err == ".tidewire/secret: is shorter than 32 bytes: remove it, and a new one is generated\n"
    )
    (tmp_path / "elsewhere").write_text("")
    for file in Path(".tidewire").iterdir():
        file.unlink()
    Path(".tidewire").rmdir()
    Path(".tidewire").symlink_to(tmp_path / "elsewhere")
    assert main(command) == 1
    assert "development credentials are kept in the folder .tidewire: File exists" in capsys.readouterr().err


async def test_development_credentials_of_two_starts_at_once_are_equal(tmp_path: Path) -> None:
    found = await asyncio.gather(*(asyncio.to_thread(load_development, tmp_path / "both") for _ in range(8)))
    assert len({credentials.secret for credentials in found}) == 1


def test_development_credentials_fill_only_what_is_missing() -> None:
    found = Development(Path("x"), "d" * 40, "k" * 30)
    mine = made(demo=True, auth={"secret": SECRET}, api={"key": "a" * 24})
    assert not needs_development(mine)
    assert found.complete(mine) == mine
    filled = found.complete(Settings(demo=True))
    assert needs_development(Settings(demo=True))
    assert not needs_development(filled)
    assert filled.all_issuers()[0].secret is not None
    assert filled.all_api_keys()[0].key.get_secret_value() == "k" * 30


# --- token -------------------------------------------------------------------------------------------------------------


def made_credentials() -> bool:
    """Whether development credentials have been made here."""
    return Path(".tidewire").exists()


def made(**groups: Any) -> Settings:
    """Settings from values as a file would give them."""
    return Settings(**groups)


async def identity_of(token: str, secret: str) -> Any:
    issuer = Issuer(issuer="tidewire", audience="tidewire", algorithm="HS256", secret=secret)
    fetch = HttpFetch()
    try:
        return await JwtAuthenticator([issuer], SystemClock(), fetch).authenticate(token)
    finally:
        await fetch.close()


async def test_token_without_settings_uses_development_secret(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--user", "agent-1", "--grant", "room:*", "--grant", "board:**"]) == 0
    out, err = capsys.readouterr()
    assert ".tidewire/secret, generated now" in err
    assert main(["token", "--user", "agent-1"]) == 0
    assert "generated now" not in capsys.readouterr().err
    identity = await identity_of(out.strip(), load_development().secret)
    assert (identity.user, identity.tenant) == ("agent-1", "default")
    assert identity.grants == (Grant("room:*"), Grant("board:**"))
    assert load_development().secret not in out + err


async def test_token_for_a_subscription_has_an_audience_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token", "--user", "ann", "--grant", "room:1", "--subscription"]) == 0
    claims = jwt.decode(capsys.readouterr().out.strip(), options={"verify_signature": False})
    assert (claims["aud"], claims["grants"]) == ("tidewire:subscription", ["room:1"])


async def test_token_uses_configured_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", SECRET)
    assert main(["token", "--user", "ann", "--tenant", "acme", "--ttl", "90s", "--info", '{"name": "Ann"}']) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert not made_credentials()
    identity = await identity_of(out.strip(), SECRET)
    assert (identity.user, identity.tenant) == ("ann", "acme")
    assert json.loads(identity.info) == {"name": "Ann"}
    claims = jwt.decode(out.strip(), SECRET, algorithms=["HS256"], audience="tidewire")
    assert claims["exp"] - claims["iat"] == 90


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--user"),
        (["--user", ""], "a user is 1 to 128"),
        (["--user", "a", "--grant", "room:**:x"], "'**' may only be the last segment"),
        (["--user", "a", "--ttl", "12"], "is not a duration"),
        (["--user", "a", "--ttl", "0s"], "at least 1s"),
        (["--user", "a", "--info", "{"], "is not JSON"),
    ],
)
def test_token_with_bad_claims_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["token", *arguments])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


# --- serve -------------------------------------------------------------------------------------------------------------


def test_serve_refuses_what_check_refuses(
    started: list[tuple[app.Service, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["serve"]) == 1
    assert "TIDEWIRE_AUTH__SECRET" in capsys.readouterr().err
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("TIDEWIRE_CONTRACT", str(CONTRACTS / "five_faults.yaml"))
    assert main(["serve"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 5
    assert started == []
    assert not made_credentials()


def test_serve_with_good_settings_starts(
    started: list[tuple[app.Service, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("TIDEWIRE_CONTRACT", str(CONTRACTS / "good.yaml"))
    assert main(["serve"]) == 0
    [(service, companion)] = started
    assert companion is None
    assert service.settings.all_api_keys() == ()
    assert capsys.readouterr() == ("", "")
    assert not made_credentials()


@pytest.mark.parametrize("by_variable", [True, False])
def test_demo_generates_credentials_and_announces_them_once_it_listens(
    by_variable: bool,
    tmp_path: Path,
    started: list[tuple[app.Service, Any]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if by_variable:
        monkeypatch.setenv("TIDEWIRE_DEMO", "1")
    assert main(["serve"] if by_variable else ["serve", "--demo"]) == 0
    [(service, companion)] = started
    found = load_development()
    settings = service.settings
    assert companion is not None
    assert (settings.demo, settings.host) == (True, "127.0.0.1")
    assert settings.auth.secret is not None
    assert settings.auth.secret.get_secret_value() == found.secret
    assert [key.key.get_secret_value() for key in settings.all_api_keys()] == [found.api_key]
    assert capsys.readouterr() == ("", ""), "a service that cannot listen must not advertise another one's page"

    (tmp_path / "backend.py").touch()
    monkeypatch.setattr(demo, "demo_folder", lambda: tmp_path)

    async def listen() -> None:
        async with companion(4321):
            pass

    asyncio.run(listen())
    out, err = capsys.readouterr()
    assert out == ""
    for told in (
        "not for production",
        "http://127.0.0.1:4321/",
        ".tidewire/secret",
        "tidewire token --user agent-1 --grant 'room:*'",
        "curl -sS",
    ):
        assert told in err
    assert found.secret not in err, "logs are collected"
    assert found.api_key not in err
    assert found.api_key not in err


def test_demo_with_configured_secrets_generates_none(
    started: list[tuple[app.Service, Any]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", SECRET)
    monkeypatch.setenv("TIDEWIRE_API__KEY", "k" * 30)
    assert main(["serve", "--demo"]) == 0
    assert len(started) == 1
    assert capsys.readouterr().err == ""
    assert not made_credentials()


def test_demo_that_cannot_store_credentials_names_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".tidewire").write_text("a file, where the folder has to be")
    assert main(["serve", "--demo"]) == 1
    assert capsys.readouterr().err == (
        "settings: development credentials are kept in the folder .tidewire: File exists; start it in a folder that "
        "you may write to, or set "
        "auth.secret and api.key\n"
    )


def test_demo_sample_event_passes_the_gate() -> None:
    channel, kind, data = demo.SAMPLE
    gate = Gate(load(assets.demo_folder() / "contract.yaml"))
    published = gate.validate(
        backend("default"), channel=channel, type=kind, data=data.encode(), id="1", key=None, sender=None, at=1
    )  # fmt: skip
    assert published.channel.name == channel


async def test_demo_tokens_are_accepted() -> None:
    settings = made(demo=True, auth={"secret": SECRET})
    identity = await identity_of(demo.agent_token(settings, "agent-1"), SECRET)
    assert identity.user == "agent-1"
    assert json.loads(identity.info) == {"name": "Agent 1"}


async def test_demo_backend_starts_and_ends_with_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the backend that writes down what it was given."""
    (tmp_path / "backend.py").write_text(
        "import json, os, signal, sys, pathlib\n"
        "kept = {name: value for name, value in os.environ.items() if name.startswith('TIDEWIRE_')}\n"
        "pathlib.Path('given.new').write_text(json.dumps(kept)); os.rename('given.new', 'given')\n"
        "os.mkfifo('never'); open('never').read()\n"
    )
    monkeypatch.setattr(demo, "demo_folder", lambda: tmp_path)
    monkeypatch.setenv("TIDEWIRE_AUTH__SECRET", "must not be passed on")
    monkeypatch.setenv("TIDEWIRE_DEMO_SPEED", "3")
    settings = made(demo=True, host="0.0.0.0", auth={"secret": SECRET}, api={"key": "k" * 30})
    async with asyncio.timeout(20), demo.companion(settings)(1234):
        while not (tmp_path / "given").exists():  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.01)
    given = json.loads((tmp_path / "given").read_text())
    token = given.pop("TIDEWIRE_TOKEN")
    assert given == {
        "TIDEWIRE_URL": "http://127.0.0.1:1234",
        "TIDEWIRE_API_KEY": "k" * 30,
        "TIDEWIRE_DEMO_SPEED": "3",
    }
    assert (await identity_of(token, SECRET)).user == "support-bot"


async def test_demo_backend_that_ends_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backend.py").write_text("raise SystemExit(3)")
    monkeypatch.setattr(demo, "demo_folder", lambda: tmp_path)
    settings = made(demo=True, auth={"secret": SECRET}, api={"key": "k" * 30})
    with structlog.testing.capture_logs() as logged:
        async with asyncio.timeout(20), demo.companion(settings)(1):
            while not logged:  # noqa: ASYNC110  # another process ends
                await asyncio.sleep(0.01)
    assert logged == [{"event": "demo_backend_ended", "status": 3, "log_level": "error"}]


async def test_demo_backend_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backend.py").write_text(
        "import os, pathlib, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path('pid.new').write_text(str(os.getpid())); os.rename('pid.new', 'pid')\n"
        "os.mkfifo('never'); open('never').read()\n"
    )
    monkeypatch.setattr(demo, "demo_folder", lambda: tmp_path)
    monkeypatch.setattr(demo, "STOP_TIMEOUT", 0.1)
    settings = made(demo=True, auth={"secret": SECRET}, api={"key": "k" * 30})
    async with asyncio.timeout(20), demo.companion(settings)(1):
        while not (tmp_path / "pid").exists():  # noqa: ASYNC110  # another process writes it
            await asyncio.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


# --- where the service is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "found"),
    [
        (None, "127.0.0.1", "http://127.0.0.1:7001"),
        (None, "0.0.0.0", "http://127.0.0.1:7001"),
        (None, "::", "http://127.0.0.1:7001"),
        ("https://example.com/", "0.0.0.0", "https://example.com"),
    ],
)
def test_service_url_prefers_the_option_over_settings(
    url: str | None, host: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEWIRE_PORT", "7001")
    monkeypatch.setenv("TIDEWIRE_HOST", host)
    assert service_url(argparse.Namespace(url=url, config=None)) == found


# --- publish -----------------------------------------------------------------------------------------------------------


async def run(*arguments: str) -> int:
    """The command in a thread of its own: it has its own event loop, and the service needs this one."""
    return await asyncio.to_thread(main, list(arguments))


async def test_publish_prints_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server:
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        assert await run("publish", "room:1", "chat.message", '{"text": "hi"}', "--id", "m-1", *common) == 0
        assert await run("publish", "room:1", "chat.message", '{"text": "hi"}', "--id", "m-1", *common) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["id"], first["offset"], first["duplicate"]) == ("m-1", 1, False)
    assert (second["id"], second["offset"], second["duplicate"]) == ("m-1", 1, True)


async def test_publish_changes_and_removes_values_under_a_condition(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server, server.client("ann", query="?features=removal") as ann:
        await ann.subscribe("doc:1")
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        event = ["publish", "doc:1", "doc.cursor"]
        assert await run(*event, '{"user": "ann"}', "--if-rev", "0", *common) == 0
        assert await run(*event, '{"user": "ann"}', "--if-rev", "0", *common) == 1
        assert "conflict" in capsys.readouterr().err
        assert await run(*event, "--remove", "--key", "ann", "--if-rev", "1", *common) == 0
        assert json.loads(capsys.readouterr().out)["rev"] == 2
        await ann.until("doc.cursor", removed=True, key="ann")


async def test_publish_leaves_out_the_connection_that_it_excludes(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server, server.client("ann") as ann, server.client("ben") as ben:
        for client in (ann, ben):
            await client.subscribe("room:1")
        common = [
            "--from",
            "ann",
            "--exclude",
            ann.welcome["connection"],
            "--url",
            server.url,
            "--api-key",
            harness.API_KEY,
        ]
        assert await run("publish", "room:1", "chat.typing", "{}", *common) == 0
        await ben.until("chat.typing")
        await ann.silence(but="presence.joined")
        assert await run("publish", "room:1", "chat.typing", "{}", *common[2:]) == 1
    assert "forbidden" in capsys.readouterr().err


async def test_publish_sends_null_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server:
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        assert await run("publish", "log:1", "log.entry", "null", *common) == 0
        page = await server.publish("log:1", {"type": "log.entry", "data": None})
    assert page["offset"] == 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "DATA is missing"),
        (["--remove"], "--remove needs --key"),
        (["{}", "--remove", "--key", "ann"], "no DATA"),
        (["{}", "--if-rev", "x"], "--if-rev"),
    ],
)
def test_publish_with_arguments_that_do_not_fit_is_refused(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["publish", "doc:1", "doc.cursor", *arguments])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


async def test_publish_refused_prints_the_faults(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server:
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        assert await run("publish", "room:1", "chat.message", '{"text": 1}', *common) == 1
        assert await run("publish", "room:1", "chat.mesage", "{}", *common) == 1
        assert await run("publish", "room:1", "chat.message", "{}", "--url", server.url, "--api-key", "wrong") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "invalid_data: data does not match the schema of chat.message\n  $.data.text: 1 is not of type" in err
    assert "unknown_event" in err
    assert "did you mean 'chat.message'?" in err
    assert "invalid_api_key" in err


async def test_publish_uses_the_first_key_it_finds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = ["publish", "room:1", "chat.message", '{"text": "hi"}', "--url"]
    async with harness.serving(api={"keys": [], "key": load_development().api_key}) as server:
        assert await run(*event, server.url) == 0
        monkeypatch.setenv("TIDEWIRE_API__KEY", "x" * 30)
        assert await run(*event, server.url) == 1
    assert "invalid_api_key" in capsys.readouterr().err


def test_publish_without_key_or_service_fails_with_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["publish", "room:1", "chat.message", "{}"]) == 1
    assert "TIDEWIRE_API__KEY" in capsys.readouterr().err
    assert main(["publish", "room:1", "chat.message", "{}", "--api-key", "x", "--url", "http://127.0.0.1:1"]) == 1
    assert "http://127.0.0.1:1/api/v1/channels/room%3A1/events" in capsys.readouterr().err


async def test_presence_prints_the_number_of_users_of_each_channel(capsys: pytest.CaptureFixture[str]) -> None:
    async with harness.serving() as server, server.client("ann") as ann:
        await ann.subscribe("room:1")
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        assert await run("presence", "room:2", "room:1", *common) == 0
        assert capsys.readouterr().out == "0\troom:2\n1\troom:1\n"
        assert await run("presence", "room:1", "board:1", *common) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "no_presence" in err
    assert "(at $.channels[1])" in err


def test_publish_with_data_that_is_not_json_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["publish", "room:1", "chat.message", "hello"])
    assert "is not JSON" in capsys.readouterr().err


# --- taking back --------------------------------------------------------------------------------------------------------


async def test_remove_purge_and_erase_print_the_result(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remover, "MAX_EXAMINED_CHANNELS", 1)
    async with harness.serving() as server:
        common = ["--url", server.url, "--api-key", harness.API_KEY]
        for channel in ("room:1", "room:2"):
            event = {"type": "chat.message", "id": "m-1", "data": {"text": "hi"}, "from": "ann"}
            await server.publish(channel, [event, {**event, "id": "m-2"}])
        assert await run("remove", "room:1", "m-1", *common) == 0
        assert await run("remove", "room:1", "m-1", "--offset", "2", *common) == 1
        assert await run("erase", "ann", *common) == 0
        assert await run("purge", "room:1", *common) == 0
        assert await run("erase", "ann", "--cursor", "/", *common) == 1
    out, err = capsys.readouterr()
    removed, erased, purged = [json.loads(line) for line in out.splitlines() if line.startswith("{")]  # others are logs
    assert (removed["id"], removed["offset"]) == ("m-1", 1)
    assert erased == {"removed": 3, "channels": 2}
    assert (purged["channel"], purged["offset"]) == ("room:1", 4)
    assert "not_found: the channel keeps no such event" in err
    assert "continue with --cursor '/'" in err


@pytest.mark.parametrize("command", [["remove", "room:1", "m"], ["purge", "room:1"], ["erase", "ann"]])
def test_taking_back_without_key_fails_with_reason(capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main(command) == 1
    assert "TIDEWIRE_API__KEY" in capsys.readouterr().err


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert all(f"    {command} " in out for command in COMMANDS)


def test_demo_warning_is_a_box() -> None:
    stream = io.StringIO()
    print(
        demo.format_warning(Settings(demo=True, host="::1"), Development(Path(".tidewire"), "s", "k"), 8080),
        file=stream,
    )
    lines = stream.getvalue().splitlines()
    box = lines[: lines.index(lines[0], 1) + 1]
    assert len({len(line) for line in box}) == 1
    assert "http://[::1]:8080/" in stream.getvalue()


@pytest.mark.parametrize(
    ("called", "on_path", "shown"),
    [
        (".venv/bin/tidewire", None, "| token    .venv/bin/tidewire token"),
        ("/opt/venv/bin/tidewire", "/opt/venv/bin/tidewire", "| token    tidewire token"),
        ("service/__main__.py", None, "| token    tidewire token"),
    ],
)
def test_demo_warning_names_a_command_that_works(
    called: str, on_path: str | None, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [called, "serve", "--demo"])
    monkeypatch.setattr("shutil.which", lambda _command: on_path)
    assert shown in demo.format_warning(Settings(demo=True), Development(Path(".tidewire"), "s", "k"), 8080)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "cannot be read: the JWKS is not JSON"),
        ('{"keys": []}', "holds no ES256 key"),
    ],
)
def test_check_reports_unusable_key_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, reason: str
) -> None:
    keys = tmp_path / "keys.json"
    if content is not None:
        keys.write_text(content)
    config = tmp_path / "config.yaml"
    config.write_text(
        f"contract: {Path(__file__).parents[1] / 'contract.yaml'}\n"
        f"auth: {{issuers: [{{issuer: i, audience: a, algorithm: ES256, jwks_file: {keys}}}]}}\n"
    )
    assert main(["check", "--config", str(config)]) == 1
    assert reason in capsys.readouterr().err
