"""A client of the API server that installs CRDs and asks which objects it takes."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.chart.tools import Document
from tests.cluster.client import WITHIN, eventually
from tests.cluster.crds import Crd

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"


class Api:
    """The API server that a kubeconfig with a token leads to."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        config = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
        cluster = config["clusters"][0]["cluster"]
        self._host = urlsplit(cluster["server"]).netloc
        self._context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._headers = {
            "Authorization": f"Bearer {config['users'][0]['user']['token']}",
            "Content-Type": "application/json",
        }

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and the decoded body of its answer."""
        connection = http.client.HTTPSConnection(self._host, timeout=WITHIN, context=self._context)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, json.loads(text) if text.startswith("{") else text

    def ensure_namespace(self, name: str) -> None:
        """Makes a namespace, if it is not there."""
        status, told = self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        assert status in {201, 409}, told

    @contextmanager
    def installed(self, crds: Sequence[Crd]) -> Iterator[None]:
        """Has these CRDs served inside the block, and gone after it."""
        try:
            for crd in crds:
                status, told = self.call("POST", _CRDS, crd)
                assert status == 201, told
            for crd in crds:
                eventually(partial(self._serves, crd), f"{crd['metadata']['name']} is not served")
            yield
        finally:
            names = [crd["metadata"]["name"] for crd in crds]
            for name in names:
                self.call("DELETE", f"{_CRDS}/{name}")
            for name in names:
                eventually(partial(self._lacks, name), f"{name} stays")

    def _lacks(self, crd: str) -> bool:
        return self.call("GET", f"{_CRDS}/{crd}")[0] == 404

    def _serves(self, crd: Crd) -> bool:
        spec = crd["spec"]
        return all(
            spec["names"]["plural"] in self._plurals(f"{spec['group']}/{version['name']}").values()
            for version in spec["versions"]
            if version["served"]
        )

    def _plurals(self, api_version: str) -> dict[str, str]:
        """Kind → name of its resource."""
        status, told = self.call("GET", f"/apis/{api_version}")
        return (
            {one["kind"]: one["name"] for one in told["resources"] if "/" not in one["name"]} if status == 200 else {}
        )

    def refusals(self, documents: Iterable[Document]) -> list[str]:
        """What the server has against custom resources; unknown fields are refused. It stores none of them."""
        return [told for document in documents if (told := self._refusal(document)) is not None]

    def _refusal(self, document: Document) -> str | None:
        api_version, kind = document["apiVersion"], document["kind"]
        plural = self._plurals(api_version).get(kind)
        if plural is None:
            return f"there is no {kind} in {api_version}"
        path = f"/apis/{api_version}/namespaces/{document['metadata']['namespace']}/{plural}"
        status, told = self.call("POST", f"{path}?dryRun=All&fieldValidation=Strict", document)
        return None if status == 201 else f"{kind}: {told['message']}"
