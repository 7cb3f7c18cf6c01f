"""nginx, as ingress-nginx, F5's controller and NGINX Gateway Fabric write its configuration."""

from __future__ import annotations

import signal

from tests.e2e.engine import AS_INSTALLED, Engine, replaced, workers
from tests.e2e.front import PLAIN, Front, seconds

_HEAD = """\
daemon off;
worker_processes 1;
error_log stderr warn;
pid {folder}/nginx.pid;
worker_shutdown_timeout {linger}s;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  proxy_read_timeout {idle}s;
  proxy_send_timeout {idle}s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
"""
_UPGRADE = ["proxy_set_header Upgrade $http_upgrade", "proxy_set_header Connection $connection_upgrade"]
_APPEND = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for"
_PREFIX = "nginx.ingress.kubernetes.io/"


class Nginx(Engine):
    """One worker, so that who serves what is plain."""

    program = "nginx"
    presets = ("ingress nginx", "ingress f5-nginx", "gateway ngf")
    sticky_presets = ("ingress nginx", "ingress f5-nginx")
    older_presets = ("gateway ngf@2.5",)

    def _command_line(self) -> list[str]:
        return [self._executable(), "-e", "stderr", "-p", str(self.folder), "-c", str(self.folder / "nginx.conf")]

    def _configure(self) -> None:
        head = _HEAD.format(folder=self.folder, linger=self.linger, idle=AS_INSTALLED)
        fronts = [self._front(number, front) for number, front in enumerate(self.fronts)]
        (self.folder / "nginx.conf").write_text(head + f"  # {self.generation}\n" + "".join(fronts) + "}\n")

    def _front(self, number: int, front: Front) -> str:
        upstream, location = _TRANSLATED[front.preset](front)
        servers = [f"server 127.0.0.1:{node} max_fails=0" for node in front.nodes]
        secure = ""
        if front.tls:
            assert self.certificates is not None
            secure = (
                f"http2 on; ssl_certificate {self.certificates.certificate}; "
                f"ssl_certificate_key {self.certificates.key};"
            )
        told = [
            "proxy_http_version 1.1",
            "proxy_set_header Host $http_host",
            f"proxy_pass http://front{number}",
            *location,
        ]
        paths = "".join(f"    location {path} {{ {'; '.join(told)}; }}\n" for path in front.paths)
        return (
            f"  upstream front{number} {{ {'; '.join([*servers, *upstream])}; }}\n"
            f"  server {{\n    listen 127.0.0.1:{front.port}{' ssl' if front.tls else ''};\n    {secure}\n"
            f"{paths}    location / {{ return 404; }}\n  }}\n"
        )

    async def _apply(self, front: Front) -> None:
        await self.reload()

    async def reload(self) -> None:
        """`nginx -s reload`: a new worker takes what comes, the old one ends with its last connection or its time."""
        self.generation += 1
        self._configure()
        before = workers(self.process.pid)
        self.process.send_signal(signal.SIGHUP)
        await replaced(before, self.process.pid, "nginx has a new worker")

    async def retire(self) -> None:
        """SIGQUIT, as ingress-nginx's /wait-shutdown and the image's STOPSIGNAL have it."""
        self.process.send_signal(signal.SIGQUIT)


def _as_installed(_: Front) -> tuple[list[str], list[str]]:
    return [], [*_UPGRADE, _APPEND]


def _ingress_nginx(front: Front) -> tuple[list[str], list[str]]:
    """kubernetes/ingress-nginx, rootfs/etc/nginx/template/nginx.tmpl. Its affinity is Lua; nginx's own `sticky` does the same."""
    told = {key.removeprefix(_PREFIX): value for key, value in front.annotations("Ingress").items()}
    # Forwarding headers of others are replaced, unless the controller's ConfigMap says use-forwarded-headers.
    location = [*_UPGRADE, "proxy_set_header X-Forwarded-For $remote_addr"]
    for key, directive in (("proxy-read-timeout", "proxy_read_timeout"), ("proxy-send-timeout", "proxy_send_timeout")):
        if key in told:
            location.append(
                f"{directive} {int(told[key])}s"
            )  # a number of seconds; the controller ignores anything else
    if "proxy-buffering" in told:
        location.append(f"proxy_buffering {told['proxy-buffering']}")
    upstream = []
    if told.get("affinity") == "cookie":
        life = f" expires={told['session-cookie-max-age']}s" if "session-cookie-max-age" in told else ""
        upstream.append(f"sticky cookie {told.get('session-cookie-name', 'INGRESSCOOKIE')}{life} path=/")
    return upstream, location


def _f5(front: Front) -> tuple[list[str], list[str]]:
    """nginx/kubernetes-ingress, internal/configs/version1/nginx.ingress.tmpl."""
    told = {key.removeprefix("nginx.org/"): value for key, value in front.annotations("Ingress").items()}
    services = {
        path["backend"]["service"]["name"] for rule in front.spec("Ingress")["rules"] for path in rule["http"]["paths"]
    }
    location = [_APPEND]
    if services <= set(told.get("websocket-services", "").split(",")):
        location += _UPGRADE
    for key in ("proxy-read-timeout", "proxy-send-timeout"):
        if key in told:
            seconds(told[key])
            location.append(f"{key.replace('-', '_')} {told[key]}")
    if "proxy-buffering" in told:
        location.append(f"proxy_buffering {'on' if told['proxy-buffering'].lower() == 'true' else 'off'}")
    upstream = []
    if "sticky-cookie-services" in told:
        service, _, cookie = told["sticky-cookie-services"].removeprefix("serviceName=").partition(" ")
        assert service in services
        upstream.append(f"sticky cookie {cookie}")
    return upstream, location


def _fabric(front: Front) -> tuple[list[str], list[str]]:
    """nginx/nginx-gateway-fabric, ProxySettingsPolicy."""
    policy = front.spec("ProxySettingsPolicy") or {}
    timeout = policy.get("timeout", {})
    location = [*_UPGRADE, _APPEND]
    location += [f"proxy_{name}_timeout {timeout[name]}" for name in ("connect", "read", "send") if name in timeout]
    if policy.get("buffering", {}).get("disable"):
        location.append("proxy_buffering off")
    return [], location


_TRANSLATED = {
    PLAIN: _as_installed,
    "ingress nginx": _ingress_nginx,
    "ingress f5-nginx": _f5,
    "gateway ngf": _fabric,
    "gateway ngf@2.5": _fabric,
}
