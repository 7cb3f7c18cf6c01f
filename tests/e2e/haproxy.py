"""HAProxy, as HAProxy Technologies' controller and HAProxy Ingress (jcmoraisjr) write its configuration."""

from __future__ import annotations

import asyncio
import signal

from tests.e2e.controllers import haproxytech
from tests.e2e.engine import AS_INSTALLED, Engine, replaced, workers
from tests.e2e.front import PLAIN, Front

_HEAD = """\
global
  # generation {generation}
  hard-stop-after {linger}s
  stats socket {folder}/admin.sock mode 600 level admin
defaults
  mode http
  option redispatch
  timeout connect 5s
  timeout http-request 5s
  timeout client {idle}s
  timeout server {idle}s
  timeout tunnel {idle}s
"""
_PREFIX = "haproxy-ingress.github.io/"


class HAProxy(Engine):
    """With its master, as controllers run it."""

    program = "haproxy"
    presets = ("ingress haproxytech", "ingress jcmoraisjr")
    sticky_presets = presets

    def _command_line(self) -> list[str]:
        return [self._executable(), "-W", "-f", str(self.folder / "haproxy.cfg")]

    def _configure(self) -> None:
        head = _HEAD.format(folder=self.folder, linger=self.linger, idle=AS_INSTALLED, generation=self.generation)
        fronts = [self._front(number, front) for number, front in enumerate(self.fronts)]
        (self.folder / "haproxy.cfg").write_text(head + "".join(fronts))

    def _front(self, number: int, front: Front) -> str:
        client, backend = _TRANSLATED[front.preset](front)
        secure = f" ssl crt {self.combined} alpn h2,http/1.1" if front.tls else ""
        # Controllers keep empty slots, so that endpoints come without a reload.
        servers = [
            f"server slot{slot} 127.0.0.1:{node} cookie slot{slot}{'' if node in front.nodes else ' disabled'}"
            for slot, node in enumerate(front.slots)
        ]
        frontend = [
            f"bind 127.0.0.1:{front.port}{secure}",
            "option forwardfor",
            *client,
            f"use_backend nodes{number} if {{ path_beg {' '.join(front.paths)} }}",
            f"http-request deny status 404 unless {{ path_beg {' '.join(front.paths)} }}",
        ]
        return (
            f"frontend front{number}\n"
            + "".join(f"  {line}\n" for line in frontend)
            + f"backend nodes{number}\n"
            + "".join(f"  {line}\n" for line in [*backend, *servers])
        )

    async def _apply(self, front: Front) -> None:
        """Over the runtime socket, as controllers do: connections that a server has stay."""
        number = self.fronts.index(front)
        for slot, node in enumerate(front.slots):
            state = "ready" if node in front.nodes else "maint"
            said = await self._command(f"set server nodes{number}/slot{slot} state {state}")
            assert not said.strip(), said

    async def _command(self, line: str) -> str:
        reader, writer = await asyncio.open_unix_connection(str(self.folder / "admin.sock"))
        try:
            writer.write(line.encode() + b"\n")
            return (await reader.read()).decode()
        finally:
            writer.close()

    async def reload(self) -> None:
        """SIGUSR2 to the master: new processes take what comes, the old one ends with its last connection or its time."""
        self.generation += 1
        self._configure()
        before = workers(self.process.pid)
        self.process.send_signal(signal.SIGUSR2)
        await replaced(before, self.process.pid, "HAProxy has a new worker")

    async def retire(self) -> None:
        """SIGUSR1, the image's STOPSIGNAL."""
        self.process.send_signal(signal.SIGUSR1)


def _as_installed(_: Front) -> tuple[list[str], list[str]]:
    return [], ["balance roundrobin"]


def _haproxytech(front: Front) -> tuple[list[str], list[str]]:
    """haproxytech/kubernetes-ingress: annotations of the Service, timeouts from the controller's ConfigMap."""
    told = front.annotations("Service")
    backend = [f"balance {told.get('haproxy.org/load-balance', 'roundrobin')}"]
    if name := told.get("haproxy.org/cookie-persistence"):
        backend += [f"cookie {name} dynamic indirect nocache insert", "dynamic-cookie-key only-for-tests"]
    timeouts = haproxytech()
    client = [f"timeout client {timeouts['timeout-client']}"]
    backend += [
        f"timeout {name.removeprefix('timeout-')} {timeouts[name]}" for name in ("timeout-server", "timeout-tunnel")
    ]
    return client, backend


def _jcmoraisjr(front: Front) -> tuple[list[str], list[str]]:
    """jcmoraisjr/haproxy-ingress, rootfs/etc/templates/haproxy/haproxy.tmpl."""
    told = {key.removeprefix(_PREFIX): value for key, value in front.annotations("Ingress").items()}
    backend = ["balance roundrobin"]
    backend += [
        f"timeout {name} {told[f'timeout-{name}']}" for name in ("tunnel", "server") if f"timeout-{name}" in told
    ]
    if told.get("affinity") == "cookie":
        backend.append(f"cookie {told.get('session-cookie-name', 'INGRESSCOOKIE')} insert indirect nocache httponly")
    return [], backend


_TRANSLATED = {PLAIN: _as_installed, "ingress haproxytech": _haproxytech, "ingress jcmoraisjr": _jcmoraisjr}
