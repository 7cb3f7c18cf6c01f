"""A real control plane of Kubernetes on loopback: etcd, API server, controller manager, scheduler.

Nodes and the pods on them are played by `kubelet.py`; everything else (admission, quotas, controllers, garbage collection,
evictions) is Kubernetes' own.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from pathlib import Path

import aiohttp
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.chart.tools import ROOT
from tests.cluster.programs import control_plane
from tests.stores.certificates import Certificates
from tests.stores.process import HOST, Group, Server, free_port

TOKEN = "admin"  # of a server that only this machine reaches, for as long as the tests run
_SERVICE_IPS = "10.96.0.0/16,fd00:96::/108"
"""Two families, so that `ipFamilies` can be tried."""


class _Part(Server):
    """One of the parts; answers GET `health` over HTTP."""

    health = "/healthz"
    scheme = "https"

    def _command_line(self) -> list[str]:
        return [str(control_plane()), self.name, *self._arguments()]

    def _arguments(self) -> list[str]:
        raise NotImplementedError

    async def _answers(self) -> bool:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.get(
                    f"{self.scheme}://{HOST}:{self.port}{self.health}", ssl=_unchecked(), headers=headers
                ) as answer,
            ):
                return answer.status == 200
        except (OSError, aiohttp.ClientError, TimeoutError):
            return False


class _Etcd(_Part):
    health = "/health"
    scheme = "http"

    def __init__(self) -> None:
        super().__init__("etcd")

    def _prepare(self) -> None:
        self._peers = f"http://{HOST}:{free_port()}"

    def _arguments(self) -> list[str]:
        own = f"http://{HOST}:{self.port}"
        return [
            "--data-dir=data",
            "--unsafe-no-fsync",
            f"--listen-client-urls={own}",
            f"--advertise-client-urls={own}",
            f"--listen-peer-urls={self._peers}",
            f"--initial-advertise-peer-urls={self._peers}",
            f"--initial-cluster=default={self._peers}",
        ]


class APIServer(_Part):
    """The API server. `kubeconfig` is the file that leads an administrator to it."""

    health = "/readyz"

    def __init__(self, etcd: Server) -> None:
        super().__init__("kube-apiserver")
        self._etcd = etcd

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://{HOST}:{self.port}"

    @property
    def kubeconfig(self) -> Path:
        """For Helm, kubectl and the other parts."""
        return self.folder / "kubeconfig"

    @property
    def key(self) -> Path:
        """What service accounts' tokens are signed with."""
        return self.folder / "accounts.key"

    @property
    def certificates(self) -> Certificates:
        """The authority of its certificate."""
        return self._certificates

    def _prepare(self) -> None:
        self._certificates = Certificates(self.folder)
        private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        (self.folder / "accounts.pub").write_bytes(
            private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        )
        (self.folder / "tokens.csv").write_text(f'{TOKEN},admin,admin,"system:masters"\n')
        cluster = {"server": self.url, "certificate-authority": str(self._certificates.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": TOKEN}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _arguments(self) -> list[str]:
        return [
            f"--etcd-servers=http://{HOST}:{self._etcd.port}",
            f"--bind-address={HOST}",
            f"--secure-port={self.port}",
            f"--tls-cert-file={self._certificates.certificate}",
            f"--tls-private-key-file={self._certificates.key}",
            "--token-auth-file=tokens.csv",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={_SERVICE_IPS}",
            f"--service-account-signing-key-file={self.key}",
            "--service-account-key-file=accounts.pub",
            "--service-account-issuer=https://kubernetes.default.svc",
            # No load balancer leads pods to it: there are none that run.
            "--endpoint-reconciler-type=none",
        ]


class _Controller(_Part):
    """A part that works on what the API server holds."""

    def __init__(self, name: str, api: APIServer, *more: str) -> None:
        super().__init__(name)
        self._api = api
        self._more = more

    def _prepare(self) -> None: ...

    def _arguments(self) -> list[str]:
        return [
            f"--kubeconfig={self._api.kubeconfig}",
            f"--bind-address={HOST}",
            f"--secure-port={self.port}",
            "--cert-dir=certificates",
            "--leader-elect=false",
            "--authorization-always-allow-paths=/healthz",
            *self._more,
        ]


class _Kubelet(Server):
    """Plays the nodes (`kubelet.py`). Writes a file when it has registered them; listens on nothing."""

    def __init__(self, api: APIServer) -> None:
        super().__init__("kubelet")
        self._api = api

    def _prepare(self) -> None: ...

    def _environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT)}

    def _command_line(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "tests.cluster.kubelet",
            self._api.url,
            TOKEN,
            str(self._api.certificates.ca),
            "ready",
        ]

    async def _answers(self) -> bool:
        return (self.folder / "ready").exists()


class Storage(Group):
    """etcd and the API server alone: enough to ask which objects it takes."""

    async def _build(self) -> None:
        etcd = _Etcd()
        await self._launch(etcd)
        self.api = APIServer(etcd)
        await self._launch(self.api)

    @property
    def kubeconfig(self) -> Path:
        """The file that leads an administrator to it."""
        return self.api.kubeconfig


class ControlPlane(Storage):
    """All of it. Starts in some ten seconds."""

    async def _build(self) -> None:
        await super()._build()
        controllers = _Controller(
            "kube-controller-manager",
            self.api,
            f"--service-account-private-key-file={self.api.key}",
            f"--root-ca-file={self.api.certificates.ca}",
            # The autoscaler looks every 15 s by itself.
            "--horizontal-pod-autoscaler-sync-period=1s",
        )
        await self._launch(controllers, _Controller("kube-scheduler", self.api), _Kubelet(self.api))


def _unchecked() -> ssl.SSLContext:
    """For the parts' own certificates, which nobody signed."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def _main() -> None:
    """`python -m tests.cluster.control_plane`: starts one to try things by hand, and prints what leads to it."""
    async with ControlPlane() as plane:
        print(f"export KUBECONFIG={plane.kubeconfig}   # until Ctrl-C or SIGTERM; process {os.getpid()}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
