"""scripts/run_uv.py: uv is told what pip is configured with."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run_uv import no_index, pip_options, uv_environment

ROOT = Path(__file__).resolve().parents[2]
OLDEST_PIP = ROOT / ".venv" / "oldest-pip"
PIP_ITSELF = """
import json, sys
sys.prefix = sys.argv[1]
from pip._internal.commands import create_command
options = create_command("install").parser.parse_args([])[0]
print(json.dumps({
    "index-url": options.index_url, "extra-index-url": options.extra_index_urls, "no-index": options.no_index,
    "find-links": options.find_links, "trusted-host": options.trusted_hosts, "cert": options.cert,
    "client-cert": options.client_cert, "proxy": options.proxy, "timeout": options.timeout,
}))
"""


class Machine:
    """A home with pip's files in it."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.prefix = folder / "prefix"
        self.environment = {"HOME": str(self.home), "XDG_CONFIG_DIRS": str(folder / "xdg")}
        self.places = {
            "global": folder / "xdg/pip/pip.conf",
            "legacy": self.home / ".pip/pip.conf",
            "user": self.home / ".config/pip/pip.conf",
            "site": self.prefix / "pip.conf",
            "own": folder / "own.conf",
        }

    def write(self, place: str, text: str) -> None:
        self.places[place].parent.mkdir(parents=True, exist_ok=True)
        self.places[place].write_text(text)
        if place == "own":
            self.environment["PIP_CONFIG_FILE"] = str(self.places[place])

    def options(self, **environment: str) -> dict[str, str]:
        return pip_options({**self.environment, **environment}, self.prefix)

    def uv(self, **environment: str) -> dict[str, str]:
        return uv_environment(self.options(**environment), environment)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_variable_wins_over_every_file(machine: Machine) -> None:
    machine.write("own", "[install]\nindex-url = https://own.example\n")
    assert machine.uv()["UV_DEFAULT_INDEX"] == "https://own.example"
    assert machine.uv(PIP_INDEX_URL="https://variable.example")["UV_DEFAULT_INDEX"] == "https://variable.example"


def test_variable_of_uv_wins_over_pips_option(machine: Machine) -> None:
    found = machine.uv(
        PIP_INDEX_URL="https://pip.example", UV_DEFAULT_INDEX="https://uv.example", UV_SYSTEM_CERTS="false"
    )
    assert (found["UV_DEFAULT_INDEX"], found["UV_SYSTEM_CERTS"]) == ("https://uv.example", "false")


def test_variables_that_change_what_is_installed_are_not_passed_on(machine: Machine) -> None:
    others = {
        "UV_NO_EDITABLE": "1",
        "UV_REQUIRE_HASHES": "1",
        "UV_EXCLUDE_NEWER": "2020-01-01",
        "UV_INDEX_STRATEGY": "first-index",
    }
    found = machine.uv(UV_CACHE_DIR="/cache", HTTPS_PROXY="http://proxy.example", **others)
    assert (found["UV_CACHE_DIR"], found["HTTPS_PROXY"]) == ("/cache", "http://proxy.example")
    assert not {"UV_NO_EDITABLE", "UV_REQUIRE_HASHES", "UV_EXCLUDE_NEWER"} & set(found)
    assert found["UV_INDEX_STRATEGY"] == "unsafe-best-match"


def test_options_with_several_values_are_separated_as_uv_reads_them(machine: Machine, tmp_path: Path) -> None:
    machine.write(
        "user",
        f"[global]\nextra_index_url =\n    https://a.example\n    https://b.example\ntrusted-host = a.example b.example\n"
        f"[install]\nfind-links = {tmp_path} {tmp_path}/missing https://c.example/links\n",
    )
    found = machine.uv()
    assert found["UV_INDEX"] == "https://a.example https://b.example"
    assert found["UV_INSECURE_HOST"] == "a.example b.example"
    assert found["UV_FIND_LINKS"] == f"{tmp_path},https://c.example/links"


def test_certificates_proxy_and_timeout_are_passed_on(machine: Machine, tmp_path: Path) -> None:
    machine.write(
        "own",
        f"[global]\ncert = {tmp_path}/ca.pem\nclient-cert = ~/client.pem\nproxy = http://proxy.example:3128\ntimeout = 7.5\n",
    )
    found = machine.uv(SSL_CERT_FILE="/etc/other.pem")
    assert found["SSL_CERT_FILE"] == f"{tmp_path}/ca.pem"
    assert found["SSL_CLIENT_CERT"] == str(Path("~/client.pem").expanduser())
    assert found["HTTP_PROXY"] == found["HTTPS_PROXY"] == "http://proxy.example:3128"
    assert found["UV_HTTP_TIMEOUT"] == "7"
    assert machine.uv(PIP_CERT=str(tmp_path))["SSL_CERT_DIR"] == str(tmp_path)
    found = machine.uv(PIP_CONFIG_FILE=os.devnull, REQUESTS_CA_BUNDLE="/etc/ca.pem", SSL_CERT_FILE="/etc/other.pem")
    assert found["SSL_CERT_FILE"] == "/etc/ca.pem"


def test_machine_without_configuration_leaves_uvs_index_alone(machine: Machine) -> None:
    machine.write("user", "[global]\nindex-url = https://user.example\n")
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": ""}
    assert set(machine.options(**nothing)) == {"config-file"}
    assert not {"UV_DEFAULT_INDEX", "UV_INDEX", "UV_FIND_LINKS", "SSL_CERT_FILE"} & set(machine.uv(**nothing))


@pytest.mark.parametrize(("value", "asked"), [("1", True), ("true", True), ("no", False), ("0", False)])
def test_no_index_becomes_an_argument_of_what_reads_an_index(machine: Machine, value: str, asked: bool) -> None:
    options = machine.options(PIP_NO_INDEX=value)
    assert no_index(options, ["pip", "sync", "x.lock"]) == ["pip", "sync", "x.lock", *(["--no-index"] if asked else [])]
    assert no_index(options, ["venv", ".venv"]) == ["venv", ".venv"]


def test_unreadable_file_of_pip_is_named(machine: Machine) -> None:
    machine.write("user", "index-url = outside of a section\n")
    with pytest.raises(SystemExit, match=r"pip\.conf cannot be read"):
        machine.options()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pip 22.3, which is asked, runs on Python 3.11 only")
@pytest.mark.parametrize("environment", [{}, {"PIP_INDEX_URL": "https://v.example", "PIP_DEFAULT_TIMEOUT": "9"}])
@pytest.mark.parametrize(
    "places",
    [("global",), ("global", "legacy"), ("legacy", "user"), ("user", "site"), ("user", "own"), ("site", "own")],
)
def test_files_are_read_as_pip_reads_them(
    machine: Machine, places: tuple[str, ...], environment: dict[str, str]
) -> None:
    assert OLDEST_PIP.is_dir(), "run scripts/setup.sh quick"
    for place in places:
        machine.write(
            place,
            f"[global]\nindex_url = https://global.{place}.example\ncert = /{place}.pem\nno-index = {place == 'user'}\n"
            f"[install]\nextra-index-url = https://1.{place}.example\n    https://2.{place}.example\n"
            f"[download]\nindex-url = https://never.example\n[freeze]\ntimeout = 1\n",
        )
        if place == places[0]:
            machine.write(
                place,
                machine.places[place].read_text().replace("[install]", "[install]\nindex-url = https://x.example"),
            )
    answer = subprocess.run(
        [sys.executable, "-c", PIP_ITSELF, str(machine.prefix)],
        env={**machine.environment, **environment, "PYTHONPATH": str(OLDEST_PIP), "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    said = json.loads(answer.stdout)
    ours = machine.options(**environment)
    assert ours.get("index-url", "https://pypi.org/simple") == said["index-url"]
    assert (ours.get("no-index", "False") == "True") == said["no-index"]
    assert ours.get("cert") == said["cert"]
    assert float(ours.get("timeout", "15")) == said["timeout"]
    assert ours.get("extra-index-url", "").split() == said["extra-index-url"]
