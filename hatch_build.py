"""Compiles service/web/ws/native.c while a wheel or an editable install is built, where that can be done.

Where it can't (no compiler, not Linux) the build goes on: the wheel is a pure one, and the service writes to each connection by
itself. `TIDEWIRE_BUILD_NATIVE=always` makes that an error, `never` makes the pure wheel anywhere. docs/adr/0019-native-send.md.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SWITCH = "TIDEWIRE_BUILD_NATIVE"
SOURCE = Path("service/web/ws/native.c")
LIBRARY = Path("service/web/ws/_native.so")
_FLAGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC")


class NativeBuildHook(BuildHookInterface[Any]):
    """What hatchling calls (`[tool.hatch.build.targets.wheel.hooks.custom]`)."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles; `version` is "editable" for an install that runs from the checkout, where the library then lies.

        Raises RuntimeError where it always has to and cannot.
        """
        wanted = os.environ.get(SWITCH, "")
        if wanted not in ("", "always", "never"):
            raise RuntimeError(f"{SWITCH} is {wanted!r}; it can be 'always' or 'never'")
        if wanted == "never":
            return  # what lies there is the checkout's own; .gitignore keeps it out of wheels
        root = Path(self.root)
        (root / LIBRARY).unlink(missing_ok=True)  # one of another source, or for another machine
        fault = build(root)
        if fault is not None and wanted == "always":
            raise RuntimeError(f"{SOURCE} is not compiled, and {SWITCH} is {wanted!r}: {fault}")
        if fault is not None:
            self.app.display_warning(
                f"{SOURCE} is not compiled, so fan-outs and connects will cost more processor time: {fault}"
            )
        elif version != "editable":
            build_data["force_include"][str(root / LIBRARY)] = str(LIBRARY)
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


def build(root: Path) -> str | None:
    """Makes the library in the tree at `root`; gives the reason if that is not possible."""
    if sys.platform != "linux":
        return f"it is for Linux, not {sys.platform}"
    compiler = _compiler()
    if compiler is None:
        return "there is no C compiler (cc, gcc or clang, or what CC names)"
    # Beside its place and then moved there: a service may be running with the one that is there.
    made = root / LIBRARY.with_suffix(f".{os.getpid()}")
    try:
        command = [*compiler, *_FLAGS, "-o", str(made), str(root / SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{shlex.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}"
        made.replace(root / LIBRARY)
    finally:
        made.unlink(missing_ok=True)
    return None


def _compiler() -> list[str] | None:
    for command in (os.environ.get("CC", ""), "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None
