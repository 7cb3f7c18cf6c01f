"""Traefik: an Ingress's annotations, and the static configuration of k8s/controllers/traefik."""

from __future__ import annotations

import signal
from typing import Any

import aiohttp
import yaml

from tests.e2e.controllers import traefik
from tests.e2e.engine import AS_INSTALLED, Engine
from tests.e2e.front import PLAIN, Front
from tests.stores.process import HOST, free_port, until

_STICKY = "traefik.ingress.kubernetes.io/service.sticky.cookie"


class Traefik(Engine):
    """Its dynamic configuration is a file that it watches, in the place of the API server that it watches in a cluster."""

    program = "traefik"
    presets = ("ingress traefik",)
    sticky_presets = presets

    def _command_line(self) -> list[str]:
        return [self._executable(), f"--configFile={self.folder / 'static.yaml'}"]

    def _prepare(self) -> None:
        super()._prepare()
        if self.port == 0:
            self.port = free_port()

    def _configure(self) -> None:
        entries: dict[str, Any] = {"traefik": {"address": f"{HOST}:{self.port}"}}
        for number, front in enumerate(self.fronts):
            plain = {"readTimeout": f"{AS_INSTALLED}s", "idleTimeout": f"{AS_INSTALLED}s"}
            installed = {"respondingTimeouts": plain, "lifeCycle": {"graceTimeOut": f"{self.linger}s"}}
            transport = installed if front.preset == PLAIN else traefik()["transport"]
            entries[f"front{number}"] = {"address": f"{HOST}:{front.port}", "transport": transport}
        static = {
            "global": {"checkNewVersion": False, "sendAnonymousUsage": False},
            "log": {"level": "INFO"},
            "api": {"insecure": True},
            "entryPoints": entries,
            "providers": {
                "file": {"filename": str(self.folder / "dynamic.yaml"), "watch": True},
                "providersThrottleDuration": "100ms",
            },
        }
        (self.folder / "static.yaml").write_text(yaml.safe_dump(static))
        self._write_dynamic()

    def _write_dynamic(self) -> None:
        routers, services = {}, {}
        for number, front in enumerate(self.fronts):
            name = f"front{number}"
            rule = " || ".join(f"PathPrefix(`{path}`)" for path in front.paths)
            routers[name] = {"entryPoints": [name], "rule": rule, "service": name, **({"tls": {}} if front.tls else {})}
            services[name] = {"loadBalancer": _balancer(front)}
        dynamic: dict[str, Any] = {"http": {"routers": routers, "services": services}}
        if self.generation:  # something that changes, and means nothing
            dynamic["http"]["middlewares"] = {
                f"generation{self.generation}": {"headers": {"customRequestHeaders": {"X-G": "1"}}}
            }
        if self.certificates is not None:
            pair = {"certFile": str(self.certificates.certificate), "keyFile": str(self.certificates.key)}
            dynamic["tls"] = {"certificates": [pair]}
        # Whole at once: it reads the file whenever it changes.
        fresh = self.folder / "dynamic.new"
        fresh.write_text(yaml.safe_dump(dynamic))
        fresh.replace(self.folder / "dynamic.yaml")

    async def _answers(self) -> bool:
        return await super()._answers() and all([await self._leads(front) for front in self.fronts])

    async def _apply(self, front: Front) -> None:
        self._write_dynamic()

        async def known() -> bool:
            return await self._leads(front)

        await until(known, "Traefik knows the endpoints")

    async def reload(self) -> None:
        """It has no reload: what it watches has changed."""
        self.generation += 1
        self._write_dynamic()

        async def known() -> bool:
            return await self._ask(f"middlewares/generation{self.generation}@file") is not None

        await until(known, "Traefik has read its file")

    async def retire(self) -> None:
        """SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    async def _leads(self, front: Front) -> bool:
        service = await self._ask(f"services/front{self.fronts.index(front)}@file")
        if service is None:
            return False
        return {server["url"] for server in service["loadBalancer"]["servers"]} == {_url(node) for node in front.nodes}

    async def _ask(self, what: str) -> Any:
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"http://{HOST}:{self.port}/api/http/{what}") as response:
                    return await response.json() if response.status == 200 else None
            except aiohttp.ClientError:
                return None


def _url(node: int) -> str:
    return f"http://{HOST}:{node}"


def _balancer(front: Front) -> dict[str, Any]:
    """traefik/traefik, pkg/provider/kubernetes/ingress/annotations.go: what the Service says of its load balancer."""
    balancer: dict[str, Any] = {"servers": [{"url": _url(node)} for node in front.nodes]}
    told = front.annotations("Service")
    if told.get(_STICKY) == "true":
        cookie: dict[str, Any] = {}
        if name := told.get(f"{_STICKY}.name"):
            cookie["name"] = name
        if told.get(f"{_STICKY}.httponly") == "true":
            cookie["httpOnly"] = True
        balancer["sticky"] = {"cookie": cookie}
    return balancer
