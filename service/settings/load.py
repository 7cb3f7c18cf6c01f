"""Loads the settings from a YAML file and from the environment, which overrides the file. Reports all faults together."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.contract.document import Document, Fault, Faults, Place, did_you_mean, read
from service.core.limits import CONNECT_HOOK_RATE, Limits
from service.protocol.unique_keys import DuplicateKeyError, reject_duplicate_keys
from service.settings.model import (
    MAX_PORT,
    PREFIX,
    Broker,
    HookEndpoint,
    Hooks,
    Setting,
    Settings,
    WebhookEndpoint,
    Webhooks,
    all_settings,
)

CONFIG = "TIDEWIRE_CONFIG"
"""The variable that names the settings file."""
OTHER_VARIABLES = ("TIDEWIRE_CONFIG", "TIDEWIRE_DEMO_SEED", "TIDEWIRE_DEMO_SPEED")
"""Variables with the prefix that are not settings. The last two are for the demo's backend."""


class SettingsFaults(Faults):
    """All faults of settings that cannot be used."""

    def __init__(self, faults: Iterable[Fault], usable: Settings) -> None:
        super().__init__(faults)
        self.usable = usable
        """The valid settings, with defaults for the rest, to look for further faults."""


def load_settings(path: Path | None, environ: Mapping[str, str]) -> Settings:
    """Loads the settings file, if given, and the environment.

    Raises SettingsFaults with all faults of both. A fault never contains the value of a secret.
    """
    loading = _Loader(path, environ)
    found = loading.settings()
    if loading.faults:
        raise SettingsFaults(loading.faults, found)
    return found


class _Loader:
    """Merges the two sources, and records the source of each value."""

    def __init__(self, path: Path | None, environ: Mapping[str, str]) -> None:
        self.faults: list[Fault] = []
        self._variables: dict[Place, str] = {}
        self._file = str(path) if path else "settings"
        self._document = self._read(path) if path else None
        self._is_unreadable = path is not None and self._document is None
        # A rate has two parts. Setting one keeps the default of the other.
        self._values: dict[str, Any] = {
            "limits": dataclasses.asdict(Limits()),
            "hooks": {"connect": {"rate": dataclasses.asdict(CONNECT_HOOK_RATE)}},
        }
        if self._document is not None:
            _merge(self._values, self._document.value)
        for place, name, value in _from_environment(environ, self.faults):
            self._variables[place] = name
            _put(self._values, place, value)

    def _read(self, path: Path) -> Document | None:
        document = read(path, self.faults)
        if document is not None and not isinstance(document.value, dict):
            self.faults.append(document.fault((), "settings are a mapping of names to values"))
            return None
        if document is not None:
            _make_absolute(document.value, path.parent)
        return document

    def settings(self) -> Settings:
        """Returns the settings. Defaults replace faulty values, so that the rest is still checked."""
        wrong: set[Place] = set()
        while True:
            try:
                found = Settings(**self._values)
            except ValidationError as error:
                for fault in error.errors(include_url=False, include_context=False, include_input=False):
                    place = fault["loc"]
                    if place not in wrong:  # else it is missing only because it was removed
                        self._report(place, fault["type"], fault["msg"])
                    wrong.add(place)
                    _drop(self._values, place[:-1] if fault["type"] == "missing" else place)
            else:
                self._contradictions(found, wrong)
                return found

    def _report(self, place: Place, kind: str, message: str) -> None:
        if kind in ("extra_forbidden", "unexpected_keyword_argument"):
            name = ".".join(map(str, place))
            self._fault(place, f"there is no setting {name!r}{did_you_mean(str(place[-1]), _names_beside(place))}")
        elif kind == "missing":
            self._fault(place, f"{'.'.join(map(str, place))} is missing")
        else:
            self._fault(place, f"{'.'.join(map(str, place))}: {_sentence(message)}")

    def _contradictions(self, found: Settings, wrong: Iterable[Place]) -> None:
        if self._is_unreadable:
            return  # what seems to be missing may be in the file
        faulty = {place[0] for place in wrong} | {place[0] for place in self._refused_variables()}
        for place, reason in _contradictions(found):
            if place[0] not in faulty:
                self._fault(place, reason)

    def _refused_variables(self) -> Iterator[Place]:
        """Yields settings whose variable was refused. They are not reported as missing as well."""
        names = {fault.file for fault in self.faults}
        for setting in all_settings():
            if names & {setting.variable, f"{setting.variable}_FILE"}:
                yield setting.place

    def _fault(self, place: Place, reason: str) -> None:
        for length in range(len(place), 0, -1):
            if name := self._variables.get(place[:length]):
                self.faults.append(Fault(name, None, reason))
                return
        lines = self._document.lines if self._document else {}
        given = [place[:length] for length in range(len(place), 0, -1) if place[:length] in lines]
        self.faults.append(Fault(self._file, lines[given[0]] if given else None, reason))


def _contradictions(found: Settings) -> Iterator[tuple[Place, str]]:
    """Yields faults between settings that are valid one by one."""
    issuers = [issuer.issuer for issuer in found.all_issuers()]
    if not found.demo and not issuers and not found.auth.anonymous and found.hooks.connect.endpoint is None:
        yield (
            ("auth", "secret"),
            "nobody could get in: set auth.secret (TIDEWIRE_AUTH__SECRET or TIDEWIRE_AUTH__SECRET_FILE), auth.issuers, "
            "auth.anonymous or hooks.connect.endpoint; `tidewire serve --demo` makes its own credentials",
        )
    if not found.demo and found.contract is None:
        yield ("contract",), "there is no contract: set contract (TIDEWIRE_CONTRACT) to its file"
    if found.auth.cookie is not None and (not found.origins or "*" in found.origins):
        yield (
            ("auth", "cookie"),
            "a cookie comes with every site's requests: set origins to the sites that may connect, without '*'",
        )
    for index, issuer in enumerate(found.auth.issuers):
        if issuers.count(issuer.issuer) > 1:
            yield ("auth", "issuers", index, "issuer"), "appears twice; a token's `iss` could not tell which is meant"
    keys = found.all_api_keys()
    for index, key in enumerate(found.api.keys):
        if [other.name for other in keys].count(key.name) > 1:
            yield ("api", "keys", index, "name"), "appears twice; the log could not tell which is meant"
        if [other.key for other in keys].count(key.key) > 1:
            yield ("api", "keys", index, "key"), "appears twice; it could not tell its tenant"
    yield from _contradicting_hooks(found.hooks)
    yield from _contradicting_webhooks(found.webhooks)
    yield from _contradicting_ports(found)
    yield from _contradicting_files(found.broker)
    if found.workers > 1 and found.broker.url == "memory://":
        yield (
            ("broker", "url"),
            f"{found.workers} workers need a broker that they share, and memory:// is one process's own: start a Redis or Valkey "
            "on this machine and set broker.url (TIDEWIRE_BROKER__URL) to redis://127.0.0.1:6379, or leave workers at 1",
        )


def _contradicting_hooks(hooks: Hooks) -> Iterator[tuple[Place, str]]:
    yield from _contradicting_endpoints("hooks", hooks.endpoints)
    connect = hooks.connect
    if connect.endpoint is not None and not _has_endpoint(hooks.endpoints, connect.endpoint, connect.tenant):
        yield (
            ("hooks", "connect", "endpoint"),
            f"hooks.endpoints has no endpoint {connect.endpoint!r} for the tenant {connect.tenant!r} (hooks.connect.tenant)",
        )


def _contradicting_webhooks(webhooks: Webhooks) -> Iterator[tuple[Place, str]]:
    yield from _contradicting_endpoints("webhooks", webhooks.endpoints)
    clients = webhooks.clients
    if clients.endpoint is None:
        if clients.tenant is not None:
            yield ("webhooks", "clients", "tenant"), "has no effect without webhooks.clients.endpoint: set that, too"
    elif not _has_endpoint(webhooks.endpoints, clients.endpoint, clients.tenant):
        tenant = "" if clients.tenant is None else f" for the tenant {clients.tenant!r} (webhooks.clients.tenant)"
        yield ("webhooks", "clients", "endpoint"), f"webhooks.endpoints has no endpoint {clients.endpoint!r}{tenant}"


def _has_endpoint(endpoints: Iterable[HookEndpoint | WebhookEndpoint], name: str, tenant: str | None) -> bool:
    return any(one.name == name and (tenant is None or tenant in one.tenants) for one in endpoints)


def _contradicting_endpoints(
    group: str, endpoints: Iterable[HookEndpoint | WebhookEndpoint]
) -> Iterator[tuple[Place, str]]:
    seen: set[tuple[str, str]] = set()
    for index, endpoint in enumerate(endpoints):
        place = (group, "endpoints", index)
        for tenant in dict.fromkeys(endpoint.tenants):
            if (endpoint.name, tenant) in seen:
                yield (
                    (*place, "tenants"),
                    f"an endpoint {endpoint.name!r} for the tenant {tenant!r} comes before this one",
                )
            seen.add((endpoint.name, tenant))
        if endpoint.ca is not None and endpoint.url is not None and not endpoint.url.startswith("https:"):
            yield (*place, "ca"), "is for TLS, which url does not use: begin it with https"


def _contradicting_ports(found: Settings) -> Iterator[tuple[Place, str]]:
    if not found.ops_port:
        return  # every listener takes a free one
    last = found.ops_port + found.workers - 1
    if found.port == found.ops_port and found.host == found.ops_host:
        yield ("ops_port",), "is the same as port; the two listeners need one each"
    elif found.ops_port < found.port <= last and found.host == found.ops_host:
        yield (
            ("ops_port",),
            f"the {found.workers} workers use ops ports {found.ops_port} to {last}, and port is among them",
        )
    if last > MAX_PORT:
        yield (
            ("ops_port",),
            f"the {found.workers} workers would use ops ports up to {last}; there are none above {MAX_PORT}",
        )


_TLS_FILES = ("ca", "certificate", "private_key")


def _contradicting_files(broker: Broker) -> Iterator[tuple[Place, str]]:
    """Yields faults of files for TLS: whoever sets them must not get an unencrypted connection."""
    if broker.url.partition("://")[0].partition("+")[0] not in ("rediss", "tls"):
        for name in _TLS_FILES:
            if getattr(broker, name) is not None:
                yield ("broker", name), "is for TLS, which broker.url does not use: begin it with rediss or tls"
    elif broker.private_key is not None and broker.certificate is None:
        yield ("broker", "private_key"), "has no certificate: set broker.certificate too"


# --- the environment -------------------------------------------------------------------------------------------------

# Variables that Kubernetes (and Docker links) set in every container beside a Service named `tidewire`.
_SERVICE_LINK = re.compile(r"TIDEWIRE_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?|PORT_\d+_(?:TCP|UDP)(?:_\w+)?)")
_LINKED = re.compile(r"(?:tcp|udp)://\S+")


_BYTE_ORDER_MARK = "\ufeff"


def _from_environment(environ: Mapping[str, str], faults: list[Fault]) -> Iterator[tuple[Place, str, Any]]:
    """Yields every setting in the environment: place, variable, value. An empty variable sets nothing."""
    known = {setting.variable: setting for setting in all_settings()}
    files = {f"{variable}_FILE": setting for variable, setting in known.items() if setting.is_secret}
    for name, text in sorted(environ.items()):
        if not name.startswith(PREFIX) or name in OTHER_VARIABLES or not text or _is_service_link(name, text):
            continue
        setting = known.get(name) or files.get(name)
        if setting is None:
            faults.append(Fault(name, None, f"there is no such setting{did_you_mean(name, [*known, *files])}"))
            continue
        if name in files:
            if environ.get(setting.variable):
                faults.append(Fault(name, None, f"is set beside {setting.variable}; set only one of them"))
                continue
            content = _secret_file(name, text, faults)
            if content is None:
                continue
            text = content
        try:
            yield setting.place, name, _value(setting, text)
        except DuplicateKeyError as error:
            faults.append(Fault(name, None, str(error)))
        except ValueError:
            faults.append(Fault(name, None, "is not a JSON list"))


def _is_service_link(name: str, text: str) -> bool:
    return _SERVICE_LINK.fullmatch(name) is not None or (
        name == "TIDEWIRE_PORT" and _LINKED.fullmatch(text) is not None
    )


def _secret_file(name: str, path: str, faults: list[Fault]) -> str | None:
    """Reads a secret from a file, without surrounding white space, such as the last newline."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        faults.append(Fault(name, None, f"{path} cannot be read: {read_failure(error)}"))
    except UnicodeDecodeError:
        faults.append(Fault(name, None, f"{path} is not UTF-8 text"))
    else:
        if not text:
            faults.append(Fault(name, None, f"{path} is empty"))
        elif text.startswith(_BYTE_ORDER_MARK):
            faults.append(Fault(name, None, f"{path} begins with a byte order mark: save it as UTF-8 without one"))
        else:
            return text
    return None


def read_failure(error: OSError) -> str:
    """Returns why a file cannot be read; for missing permissions, with the user."""
    reason = error.strerror or str(error)
    return f"{reason} for user {os.geteuid()}" if isinstance(error, PermissionError) else reason


def _value(setting: Setting, text: str) -> Any:
    """Converts the value of a variable: lists are JSON; `origins` may also be separated by commas."""
    if setting.name == "origins" and not text.lstrip().startswith("["):
        return [word.strip() for word in text.split(",")]
    if not setting.is_list:
        return text
    value = json.loads(text, object_pairs_hook=reject_duplicate_keys)
    if not isinstance(value, list):
        raise ValueError("not a list")  # noqa: TRY004  # reported like any other text that is not a JSON list
    return value


# --- values -----------------------------------------------------------------------------------------------------------


def _names_beside(place: Place) -> Iterator[str]:
    """Yields the valid names at the place of an unknown one."""
    for setting in all_settings():
        if setting.place[: len(place) - 1] == place[:-1]:
            yield setting.place[len(place) - 1]
        elif setting.place == place[:-2]:
            yield from setting.entry_names


def _sentence(message: str) -> str:
    if message.startswith("Value error, "):
        return message.removeprefix("Value error, ")  # a message of this project
    text = message.removeprefix("Input ")
    return text[:1].lower() + text[1:]


def _make_absolute(values: dict[str, Any], folder: Path) -> None:
    """Resolves paths in a settings file against its folder, independent of the working directory."""
    issuers = values["auth"].get("issuers") if isinstance(values.get("auth"), dict) else None
    entries = [entry for entry in issuers if isinstance(entry, dict)] if isinstance(issuers, list) else []
    broker = values.get("broker")
    files = [(broker, name) for name in _TLS_FILES] if isinstance(broker, dict) else []
    for group in ("hooks", "webhooks"):
        endpoints = values[group].get("endpoints") if isinstance(values.get(group), dict) else None
        for entry in endpoints if isinstance(endpoints, list) else []:
            files += [(entry, name) for name in ("secrets_file", "ca")] if isinstance(entry, dict) else []
    for holder, name in [(values, "contract"), *((entry, "jwks_file") for entry in entries), *files]:
        if isinstance(holder.get(name), str):
            holder[name] = str(folder / holder[name])


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value


def _put(values: dict[str, Any], place: tuple[str | int, ...], value: Any) -> None:
    holder: Any = values
    for step in place[:-1]:
        if not isinstance(holder.get(step), dict):
            holder[step] = {}
        holder = holder[step]
    holder[place[-1]] = value


def _drop(values: dict[str, Any], place: Place) -> None:
    """Removes a faulty value from its mapping; for a value in a list, removes the list."""
    holder: Any = values
    for depth, step in enumerate(place):
        last = depth == len(place) - 1
        if last or not isinstance(holder.get(step), dict):
            holder.pop(step, None)
            return
        holder = holder[step]
