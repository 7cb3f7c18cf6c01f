#!/usr/bin/env python3
"""Runs uv with the index, the certificates and the proxy of pip's configuration.

    .venv/bin/python scripts/run_uv.py pip sync --python .venv requirements/run.lock

uv does not read pip's configuration, and `pip config` needs a pip, which .venv has not. On a machine that reaches only its own
mirror, that configuration is all there is. This script runs the uv beside this Python. Variables of uv that say where
files come from, such as UV_DEFAULT_INDEX, override pip's options. Variables that change what is installed are dropped.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from configparser import Error, RawConfigParser
from pathlib import Path

_SECTIONS = ("global", "install")
"""Sections of pip's files. The later one overrides the earlier one."""
_KEPT = (
    *("UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_INSECURE_HOST", "UV_KEYRING_PROVIDER"),
    *("UV_SYSTEM_CERTS", "UV_HTTP_", "UV_OFFLINE", "UV_CACHE_DIR", "UV_NO_CACHE", "UV_LINK_MODE", "UV_CONCURRENT_"),
)
"""Prefixes of uv's variables that say where files come from and how."""
_FALSE = {"", "0", "false", "no", "off"}
"""False values of pip's switches, in any case."""


def main(arguments: list[str]) -> None:
    """Replaces this process by uv."""
    uv = Path(sys.executable).with_name("uv")
    options = pip_options(os.environ, Path(sys.prefix))
    environment = uv_environment(options, os.environ)
    if "--upgrade" in arguments and "UV_EXCLUDE_NEWER" in os.environ:  # only new versions depend on a date
        environment["UV_EXCLUDE_NEWER"] = os.environ["UV_EXCLUDE_NEWER"]
    try:
        os.execve(uv, [str(uv), *no_index(options, arguments)], environment)
    except OSError as error:
        sys.exit(f"run_uv: {uv}: {error.strerror}; scripts/setup.sh run installs it")


def pip_options(environment: Mapping[str, str], prefix: Path) -> dict[str, str]:
    """Returns what `pip install` in the environment at `prefix` reads from files and variables: option → value, never empty.

    https://pip.pypa.io/en/stable/topics/configuration/
    """
    options: dict[str, str] = {}
    for section in _SECTIONS:
        for file in _files(environment, prefix):
            options.update(_read(file, section))
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            options[_option(name.removeprefix("PIP_"))] = value
    return options


def _files(environment: Mapping[str, str], prefix: Path) -> list[Path]:
    """Returns pip's files; later ones override earlier ones."""
    own = environment.get("PIP_CONFIG_FILE", "")
    if own == os.devnull:
        return []
    home = Path(environment.get("HOME", "~")).expanduser()
    apple = sys.platform == "darwin"
    library = Path("Library/Application Support/pip/pip.conf")
    folders = (environment.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    files = (
        [Path("/") / library] if apple else [*(Path(each, "pip/pip.conf") for each in folders), Path("/etc/pip.conf")]
    )
    if not (own and Path(own).exists()):
        user = Path(environment.get("XDG_CONFIG_HOME") or home / ".config", "pip/pip.conf")
        files += [home / ".pip/pip.conf", home / library if apple and (home / library.parent).is_dir() else user]
    return [*files, prefix / "pip.conf", *([Path(own)] if own else [])]


def _read(file: Path, section: str) -> dict[str, str]:
    parser = RawConfigParser()
    try:
        parser.read(file, encoding="utf-8")
    except (Error, UnicodeDecodeError) as error:
        sys.exit(f"run_uv: pip's configuration {file} cannot be read: {error}")
    if not parser.has_section(section):
        return {}
    return {_option(name): value for name, value in parser.items(section) if value}


def _option(name: str) -> str:
    """PIP_INDEX_URL's INDEX_URL, a file's index_url, --index-url: index-url."""
    option = name.lower().replace("_", "-").removeprefix("--")
    return "timeout" if option == "default-timeout" else option


def uv_environment(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment for uv that corresponds to pip's options."""
    mapped = {"UV_SYSTEM_CERTS": "true"}
    if index := options.get("index-url"):
        mapped["UV_DEFAULT_INDEX"] = index
    if more := options.get("extra-index-url"):
        mapped["UV_INDEX"] = " ".join(more.split())
    if links := [link for link in options.get("find-links", "").split() if _exists(link)]:
        mapped["UV_FIND_LINKS"] = ",".join(links)
    if hosts := options.get("trusted-host"):
        mapped["UV_INSECURE_HOST"] = " ".join(hosts.split())
    # pip reads these two variables as well.
    cert = options.get("cert") or environment.get("REQUESTS_CA_BUNDLE") or environment.get("CURL_CA_BUNDLE")
    if cert:
        path = Path(cert).expanduser()
        mapped["SSL_CERT_DIR" if path.is_dir() else "SSL_CERT_FILE"] = str(path)
    if client := options.get("client-cert"):
        mapped["SSL_CLIENT_CERT"] = str(Path(client).expanduser())
    if proxy := options.get("proxy"):
        mapped |= {"HTTP_PROXY": proxy, "HTTPS_PROXY": proxy}
    if timeout := options.get("timeout"):
        mapped["UV_HTTP_TIMEOUT"] = timeout.partition(".")[0]
    ours = {
        # Files are chosen by hash, so it does not matter which index has them: as with pip, any may.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        # Not the user's uv.toml: with its cutoff dates, say, uv would not find what the locks name.
        "UV_NO_CONFIG": "true",
        # The Python is the machine's.
        "UV_PYTHON_DOWNLOADS": "never",
    }
    others = {name: value for name, value in environment.items() if not name.startswith("UV_")}
    kept = {name: value for name, value in environment.items() if name.startswith(_KEPT)}
    return {**others, **mapped, **kept, **ours}


def _exists(link: str) -> bool:
    """Whether a link exists. pip ignores a missing folder; uv fails."""
    return "://" in link or Path(link).expanduser().exists()


def no_index(options: Mapping[str, str], arguments: list[str]) -> list[str]:
    """Returns the arguments, with `--no-index` where pip has it: uv has no variable for it."""
    asks = arguments[:2] in (["pip", "sync"], ["pip", "install"], ["pip", "compile"])
    if asks and options.get("no-index", "").lower() not in _FALSE:
        return [*arguments, "--no-index"]
    return arguments


if __name__ == "__main__":
    main(sys.argv[1:])
