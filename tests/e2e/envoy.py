"""Envoy, as Envoy Gateway, Istio and Contour configure it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp

from tests.e2e.engine import AS_INSTALLED, Engine
from tests.e2e.front import PLAIN, Front, seconds
from tests.stores.process import HOST, free_port, until

_TYPE = "type.googleapis.com/envoy."
_HTTP = _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = _TYPE + "extensions.filters.http.router.v3.Router"
_TLS = _TYPE + "extensions.transport_sockets.tls.v3.DownstreamTlsContext"


class Envoy(Engine):
    """Its listeners and endpoints are files that it watches, in the place of a control plane."""

    program = "envoy"
    presets = ("gateway envoy-gateway", "gateway istio", "ingress contour")
    sticky_presets = presets
    older_presets = ("gateway envoy-gateway@1.7",)

    def _command_line(self) -> list[str]:
        drain = ["--drain-time-s", str(self.linger), "--drain-strategy", "immediate"]
        # Two of them would share memory by default, and one would not start.
        alone = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"]
        return [self._executable(), "-c", str(self.folder / "bootstrap.json"), *alone, *drain]

    def _prepare(self) -> None:
        super()._prepare()
        if self.port == 0:
            self.port = free_port()

    def _configure(self) -> None:
        def watched(name: str) -> dict[str, Any]:
            return {"path_config_source": {"path": str(self.folder / name)}, "resource_api_version": "V3"}

        clusters = []
        for number, front in enumerate(self.fronts):
            cluster: dict[str, Any] = {
                "name": f"front{number}",
                "type": "EDS",
                "eds_cluster_config": {"eds_config": watched(f"endpoints{number}.json")},
                "connect_timeout": "5s",
                "lb_policy": _TRANSLATED[front.preset](front)[1],
            }
            clusters.append(cluster)
            self._write_endpoints(number, front)
        self._write_listeners()
        bootstrap = {
            "node": {"id": "tests", "cluster": "tests"},
            "admin": {"address": _address(self.port)},
            "dynamic_resources": {"lds_config": watched("listeners.json")},
            "static_resources": {"clusters": clusters},
        }
        self._write("bootstrap.json", bootstrap)

    def _write(self, name: str, content: object) -> None:
        # It looks at files that are moved into their place.
        fresh = self.folder / f"{name}.new"
        fresh.write_text(json.dumps(content))
        fresh.replace(self.folder / name)

    def _write_endpoints(self, number: int, front: Front) -> None:
        endpoints = [{"endpoint": {"address": _address(node)}} for node in front.nodes]
        assignment = {
            "@type": _TYPE + "config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": f"front{number}",
            "endpoints": [{"lb_endpoints": endpoints}],
        }
        self._write(f"endpoints{number}.json", {"version_info": str(front.nodes), "resources": [assignment]})

    def _write_listeners(self) -> None:
        resources = [self._listener(number, front) for number, front in enumerate(self.fronts)]
        self._write("listeners.json", {"version_info": str(self.generation), "resources": resources})

    def _listener(self, number: int, front: Front) -> dict[str, Any]:
        route, _ = _TRANSLATED[front.preset](front)
        routes = [{"match": {"prefix": path}, "route": {"cluster": f"front{number}", **route}} for path in front.paths]
        manager = {
            "@type": _HTTP,
            "stat_prefix": _prefix(number, self.generation),
            "stream_idle_timeout": f"{AS_INSTALLED}s",
            "use_remote_address": True,
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [{"name": "router", "typed_config": {"@type": _ROUTER}}],
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        }
        chain: dict[str, Any] = {"filters": [{"name": "http", "typed_config": manager}]}
        if front.tls:
            assert self.certificates is not None
            pair = {
                "certificate_chain": _file(self.certificates.certificate),
                "private_key": _file(self.certificates.key),
            }
            common = {"tls_certificates": [pair], "alpn_protocols": ["h2", "http/1.1"]}
            chain["transport_socket"] = {"name": "tls", "typed_config": {"@type": _TLS, "common_tls_context": common}}
        return {
            "@type": _TYPE + "config.listener.v3.Listener",
            "name": f"front{number}",
            "address": _address(front.port),
            "filter_chains": [chain],
        }

    async def _answers(self) -> bool:
        if not await super()._answers():
            return False
        return all([await self._leads(number, front) for number, front in enumerate(self.fronts)])

    async def _apply(self, front: Front) -> None:
        number = self.fronts.index(front)
        self._write_endpoints(number, front)

        async def known() -> bool:
            return await self._leads(number, front)

        await until(known, "Envoy knows the endpoints")

    async def reload(self) -> None:
        """A listener that changes is drained and replaced; routes and endpoints change in place."""
        self.generation += 1
        self._write_listeners()

        async def known() -> bool:
            said = json.dumps(await self._ask("config_dump?resource=dynamic_listeners"))
            return all(_prefix(number, self.generation) in said for number in range(len(self.fronts)))

        await until(known, "Envoy has new listeners")

    async def retire(self) -> None:
        """As Envoy Gateway's shutdown manager begins it; SIGTERM would cut at once, and comes after its drainTimeout."""
        async with aiohttp.ClientSession() as http:
            for what in ("healthcheck/fail", "drain_listeners?graceful&skip_exit"):
                async with http.post(f"http://{HOST}:{self.port}/{what}") as response:
                    assert response.status == 200, await response.text()

    async def _leads(self, number: int, front: Front) -> bool:
        said = await self._ask("clusters?format=json")
        if said is None:
            return False
        clusters = {one["name"]: one.get("host_statuses", []) for one in said.get("cluster_statuses", [])}
        hosts = clusters.get(f"front{number}", [])
        return {host["address"]["socket_address"]["port_value"] for host in hosts} == set(front.nodes)

    async def _ask(self, what: str) -> Any:
        async with aiohttp.ClientSession() as http:
            try:
                async with http.get(f"http://{HOST}:{self.port}/{what}") as response:
                    return await response.json(content_type=None)
            except aiohttp.ClientError:
                return None


def _prefix(number: int, generation: int) -> str:
    """Of a listener's statistics: a change that costs nothing and shows in what Envoy tells of itself."""
    return f"front{number}-{generation}."


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": HOST, "port_value": port}}


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path)}


def _lasting(duration: str) -> str:
    """A duration of Gateway API (`1h`) as protobuf's JSON has it (`3600s`)."""
    return f"{seconds(duration):g}s"


def _as_installed(_: Front) -> tuple[dict[str, Any], str]:
    return {"timeout": f"{AS_INSTALLED}s"}, "ROUND_ROBIN"


def _route(front: Front) -> dict[str, Any]:
    """Gateway API, HTTPRoute: timeouts.request is the route's timeout, and 0s is none."""
    [rule] = front.spec("HTTPRoute")["rules"]
    request = rule.get("timeouts", {}).get("request")
    return {"timeout": _lasting(request) if request is not None else f"{AS_INSTALLED}s"}


def _gateway(front: Front) -> tuple[dict[str, Any], str]:
    """envoyproxy/gateway, internal/xds/translator/route.go: BackendTrafficPolicy's timeouts are the route's.

    Without an idle time of its own (older versions have none) the route's follows from its request timeout: none from none.
    """
    route = _route(front)
    policy = front.spec("BackendTrafficPolicy") or {}
    http = policy.get("timeout", {}).get("http", {})
    if "requestTimeout" in http:
        route["timeout"] = _lasting(http["requestTimeout"])
    if "streamIdleTimeout" in http:
        route["idle_timeout"] = _lasting(http["streamIdleTimeout"])
    elif "timeout" in route:
        request = seconds(route["timeout"])
        route["idle_timeout"] = f"{max(request, 3600.0) if request else 0:g}s"
    balancer = policy.get("loadBalancer", {})
    if balancer.get("type") != "ConsistentHash":
        return route, "ROUND_ROBIN"
    cookie = balancer["consistentHash"]["cookie"]
    return {**route, "hash_policy": [_hash(cookie["name"], cookie.get("ttl"))]}, "MAGLEV"


def _istio(front: Front) -> tuple[dict[str, Any], str]:
    """istio/istio, pilot/pkg/networking/core: a DestinationRule's httpCookie. Its gateways set no idle time of streams."""
    route = {**_route(front), "idle_timeout": "0s"}
    rule = front.spec("DestinationRule")
    if rule is None:
        return route, "ROUND_ROBIN"
    cookie = rule["trafficPolicy"]["loadBalancer"]["consistentHash"]["httpCookie"]
    return {**route, "hash_policy": [_hash(cookie["name"], cookie["ttl"])]}, "RING_HASH"


def _contour(front: Front) -> tuple[dict[str, Any], str]:
    """projectcontour/contour, internal/envoy/v3/route.go: `infinity` is 0s, and what is not said is Envoy's default."""
    [told] = {
        json.dumps({k: v for k, v in route.items() if k != "conditions"}) for route in front.spec("HTTPProxy")["routes"]
    }
    spec = json.loads(told)
    assert spec["enableWebsockets"]
    policy = spec.get("timeoutPolicy", {})
    route = {"timeout": f"{AS_INSTALLED}s"}
    for key, name in (("response", "timeout"), ("idle", "idle_timeout")):
        if key in policy:
            route[name] = "0s" if policy[key] == "infinity" else _lasting(policy[key])
    if spec.get("loadBalancerPolicy", {}).get("strategy") != "Cookie":
        return route, "ROUND_ROBIN"
    return {**route, "hash_policy": [_hash("X-Contour-Session-Affinity", "0s")]}, "RING_HASH"


def _hash(name: str, life: str | None) -> dict[str, Any]:
    return {"cookie": {"name": name, "path": "/", **({"ttl": _lasting(life)} if life is not None else {})}}


_TRANSLATED = {
    PLAIN: _as_installed,
    "gateway envoy-gateway": _gateway,
    "gateway envoy-gateway@1.7": _gateway,
    "gateway istio": _istio,
    "ingress contour": _contour,
}
