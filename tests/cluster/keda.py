"""KEDA's real admission webhook, before the API server."""

from __future__ import annotations

import base64
import os
import subprocess
from pathlib import Path

import aiohttp
import yaml

from tests.chart.tools import ROOT, Document
from tests.cluster.control_plane import APIServer
from tests.cluster.programs import go, keda_webhooks
from tests.stores.certificates import Certificates
from tests.stores.process import HOST, Server, free_port

MODULE = "github.com/kedacore/keda/v2"
_PATH = "/validate-keda-sh-v1alpha1-scaledobject"


def definitions() -> list[Document]:
    """The CRDs of the KEDA whose webhook runs, from its module (tests/cluster/keda/go.mod)."""
    folder = subprocess.run(
        [go(), "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", MODULE],
        cwd=ROOT / "tests" / "cluster" / "keda",
        env={**os.environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    return [yaml.safe_load(file.read_text()) for file in sorted(Path(folder, "config/crd/bases").glob("*.yaml"))]


class KedaWebhook(Server):
    """Judges ScaledObjects, once the API server has its `configuration`. The CRDs of KEDA have to be there before it starts."""

    def __init__(self, api: APIServer) -> None:
        super().__init__("keda-webhooks")
        self._api = api

    def configuration(self) -> Document:
        """What makes the API server ask it."""
        authority = base64.b64encode(self._certificates.ca.read_bytes()).decode()
        webhook = {
            "name": "vscaledobject.kb.io",
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
            "clientConfig": {"url": f"https://{HOST}:{self.port}{_PATH}", "caBundle": authority},
            "rules": [
                {
                    "apiGroups": ["keda.sh"],
                    "apiVersions": ["v1alpha1"],
                    "operations": ["CREATE", "UPDATE"],
                    "resources": ["scaledobjects"],
                }
            ],
        }
        return {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            "metadata": {"name": "keda-admission"},
            "webhooks": [webhook],
        }

    def _prepare(self) -> None:
        self._certificates = Certificates(self.folder)
        (self.folder / "tls.crt").write_bytes(self._certificates.certificate.read_bytes())
        (self.folder / "tls.key").write_bytes(self._certificates.key.read_bytes())
        self._health = free_port()

    def _environment(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self._api.kubeconfig)}

    def _command_line(self) -> list[str]:
        return [
            str(keda_webhooks()),
            f"--port={self.port}",
            f"--cert-dir={self.folder}",
            f"--health-probe-bind-address={HOST}:{self._health}",
            "--metrics-bind-address=0",
        ]

    async def _answers(self) -> bool:
        context = self._certificates.client_context()
        try:
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://{HOST}:{self._health}/readyz") as answer:
                    if answer.status != 200:
                        return False
                async with session.get(f"https://{HOST}:{self.port}{_PATH}", ssl=context):
                    return True
        except (OSError, aiohttp.ClientError):
            return False
