"""What the service finds in its pod: variables, and files as a kubelet lays them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chart.tools import Document

_DATA = "..2026_11_23_00_00_00.000000000"


@dataclass(frozen=True)
class PodView:
    """The files stand below `root`, and paths in variables and settings say so."""

    root: Path
    environ: dict[str, str]

    @property
    def config(self) -> Path:
        """The settings file."""
        return Path(self.environ["TIDEWIRE_CONFIG"])


def lay(documents: list[Document], root: Path, given: Mapping[str, Mapping[str, str]] | None = None) -> PodView:
    """Makes the view. `given`: the content of Secrets and ConfigMaps that are not the chart's, by name.

    Raises KeyError for what the pod could not be started without.
    """
    [spec] = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "Deployment"]
    [container] = [one for one in spec["containers"] if one["name"] == "tidewire"]
    held = {**_held(documents), **(given or {})}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    for mount in container["volumeMounts"]:
        folder = root / mount["mountPath"].lstrip("/")
        _lay_volume(folder, _files(volumes[mount["name"]], held), root)
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    return PodView(root, {name: _moved(value, root) for name, value in variables.items()})


def _held(documents: list[Document]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for document in documents:
        if document["kind"] == "ConfigMap":
            found.setdefault(document["metadata"]["name"], {}).update(document.get("data", {}))
        elif document["kind"] == "Secret":
            data = {name: base64.b64decode(text).decode() for name, text in document["data"].items()}
            found.setdefault(document["metadata"]["name"], {}).update(data)
    return found


def _files(volume: Mapping[str, Any], held: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    if "emptyDir" in volume:
        return {}
    files: dict[str, str] = {}
    for source in volume["projected"]["sources"] if "projected" in volume else [volume]:
        origin = source.get("configMap") or source["secret"]
        content = held[origin.get("name") or origin["secretName"]]
        items = origin.get("items") or [{"key": key, "path": key} for key in content]
        files.update({item["path"]: content[item["key"]] for item in items})
    return files


def _lay_volume(folder: Path, files: Mapping[str, str], root: Path) -> None:
    """As the kubelet's atomic writer: the files in a folder with a date, `..data` leading to it, links to what is in there."""
    (folder / _DATA).mkdir(parents=True)
    (folder / "..data").symlink_to(_DATA)
    for path, text in files.items():
        file = folder / _DATA / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_moved(text, root), encoding="utf-8")
        top = folder / path.split("/", maxsplit=1)[0]
        if not top.is_symlink():
            top.symlink_to(f"..data/{top.name}")


def _moved(text: str, root: Path) -> str:
    return text.replace("/etc/tidewire", f"{root}/etc/tidewire")
