"""Runs the `console` blocks of a page, in their order and in one shell, and compares what they print with the page.

A line that begins with `$ ` is a command; it goes on after a backslash. The lines below it are its output, where `…` stands
for any text, and a generated id for any other. A block below the comment `<!-- output -->` is the output of the command
before it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.docs.blocks import ROOT, blocks, files
from tests.stores.process import free_port
from tests.support.harness import eventually

DEADLINE = 150.0
"""Seconds for all commands of a page, on a busy machine."""
READY = (
    'for i in $(seq 600); do curl -sf "http://127.0.0.1:$TIDEWIRE_OPS_PORT/readyz" >/dev/null && break; sleep 0.1; done'
)
_SEPARATOR = "\x1e"
_GENERATED = re.compile(
    r'(?<=")(?:[0-9a-f]{16}|(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{16})(?=")'  # ids and epochs
    r'|(?<="at":)\d+'
)


@dataclass(frozen=True, slots=True)
class Step:
    """A command, and what the page says that it prints."""

    line: int
    command: str
    output: str


@dataclass(frozen=True, slots=True)
class Rule:
    """How commands that match a pattern are run."""

    pattern: str
    """Searched in the command."""
    skip: str = ""
    """Why such a command is not run: a reason for readers of the test."""
    serve: str = ""
    """The command that runs in the background in its place, until the end of the page. Its service must become ready."""
    background: bool = False
    """The command itself runs in the background."""
    until: str = ""
    """The command never ends: lines are read from it until one matches this pattern."""
    shows: Sequence[str] = ()
    """Patterns of which each is in the output, where the page shows one of several outputs."""
    status: int = 0
    """Its exit status."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page whose commands run."""

    path: str
    rules: Sequence[Rule] = ()
    folder: str = "."
    """Where the files of the page belong, in the checkout."""
    files: dict[str, str] = field(default_factory=dict)
    """Files that the page takes for given."""
    before: str = ""
    """Commands that come first: what another page has led to."""
    replace: dict[str, str] = field(default_factory=dict)
    """Addresses that the page uses, and what stands for them in the test: a shell variable is allowed."""


def steps(path: Path) -> list[Step]:
    """The commands of a page."""
    found: list[Step] = []
    for block in blocks(path):
        if block.language == "console":
            found += _commands(block.text, block.line)
        elif block.marker == "output":
            assert found, f"{path}:{block.line}: output before the first command"
            found[-1] = replace(found[-1], output=block.text)
    return found


def _commands(text: str, line: int) -> list[Step]:
    found: list[Step] = []
    goes_on = False
    for number, each in enumerate(text.splitlines(), line + 1):
        if goes_on:
            found[-1] = replace(found[-1], command=f"{found[-1].command}\n{each}")
        elif each.startswith("$ "):
            found.append(Step(number, each[2:], ""))
        else:
            assert found, f"line {number}: output before the first command"
            found[-1] = replace(found[-1], output=f"{found[-1].output}{each}\n")
        goes_on = (goes_on or each.startswith("$ ")) and each.endswith("\\")
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether a command has printed what the page shows."""
    pattern, end = "", 0
    text = re.sub(r"\n *", "", shown.strip()) if shown.lstrip().startswith("{") else shown.strip()
    for found in re.finditer(rf"…|{_GENERATED.pattern}", text):
        pattern += re.escape(text[end : found.start()])
        pattern += ".*?" if found[0] == "…" else r"\d+" if found[0].isdigit() else "[A-Za-z0-9_-]+"
        end = found.end()
    pattern += re.escape(text[end:])
    return re.search(pattern, printed, re.DOTALL) is not None


async def play(page: Page, folder: Path, then: Callable[[dict[str, int]], Awaitable[None]] | None = None) -> list[str]:
    """Runs the commands of a page in a copy of the checkout's layout, and returns what differs from the page. `then` runs
    after the last command, while what the commands have started goes on; it gets the port that stands for each port of the page.
    """
    checkout = folder / "checkout"
    here = checkout / page.folder
    here.mkdir(parents=True)
    (checkout / ".venv").symlink_to(sys.prefix)
    for name in ("clients", "demo", "scripts"):
        (checkout / name).symlink_to(ROOT / name)
    ports = {"8080": free_port(), "9090": free_port(), "3000": free_port()}

    def local(text: str) -> str:
        for old, new in page.replace.items():
            text = text.replace(old, new)
        for old, port in ports.items():
            text = re.sub(rf"(?<=[:= ]){old}\b", str(port), text)
        return text

    for name, text in {**page.files, **files(ROOT / page.path)}.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(local(text), encoding="utf-8")
    ran: list[tuple[Step, Rule]] = []
    script = [f"cd {checkout}\n{local(page.before)}"]
    for step in steps(ROOT / page.path):
        rule = next((rule for rule in page.rules if re.search(rule.pattern, step.command)), None)
        if rule and rule.skip:
            continue
        command = local(step.command)
        if rule and rule.serve:
            command = f"{local(rule.serve)} >>{folder}/service.log 2>&1 &\n{READY}"
        elif rule and rule.background:
            command = f"{_bare(command)} >{folder}/background-{len(ran)}.log 2>&1 &"
        elif rule and rule.until:
            command = f"sed -uE '/{rule.until}/q' < <({_bare(command)})"
        ran.append((step, rule or Rule("")))
        script.append(f"{command}\nprintf '\\n{_SEPARATOR}%s\\n' \"$?\"")
    assert ran, f"{page.path} has no command that runs"
    printed, log = await _bash("\n".join([*script, "read -r _"]), folder, ports, len(ran), then)
    faults = []
    for (step, rule), (output, status) in zip(ran, printed, strict=False):
        if status != str(rule.status):
            faults.append(f"{page.path}:{step.line}: {step.command}\nexit status {status}:\n{output}")
        elif missing := [each for each in rule.shows if not re.search(each, output)]:
            faults.append(f"{page.path}:{step.line}: {step.command}\nmissing: {missing}\nprinted:\n{output}")
        elif not rule.shows and not matches(local(step.output), output):
            faults.append(f"{page.path}:{step.line}: {step.command}\nshown:\n{step.output}\nprinted:\n{output}")
    if len(printed) < len(ran):
        step, _ = ran[len(printed)]
        faults.append(f"{page.path}:{step.line}: {step.command}\ndid not end in {DEADLINE} s")
    return [f"{fault}\n{log}" for fault in faults]


def _bare(command: str) -> str:
    """A command without the comment at its end."""
    return re.sub(r"\s+# .*$", "", command)


async def _bash(
    script: str,
    folder: Path,
    ports: dict[str, int],
    commands: int,
    then: Callable[[dict[str, int]], Awaitable[None]] | None,
) -> tuple[list[tuple[str, str]], str]:
    """Runs a script. Returns output and exit status of each command that has ended, and the end of the service's log."""
    (folder / "page.sh").write_text(script, encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TIDEWIRE_", "PYTHONASYNCIO"))}
    environment = {name: value for name, value in kept.items() if "proxy" not in name.lower()} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "TIDEWIRE_PORT": str(ports["8080"]),
        "TIDEWIRE_OPS_PORT": str(ports["9090"]),
        "PYTHONUNBUFFERED": "1",
    }
    output = folder / "output"
    with output.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *("bash", folder / "page.sh"),
            cwd=folder,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=file,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )

    def printed() -> list[str]:
        return output.read_text(encoding="utf-8", errors="replace").split(_SEPARATOR)

    try:
        with suppress(AssertionError):  # the first command without a result is reported
            await eventually(lambda: len(printed()) > commands and bool(printed()[-1]), within=DEADLINE)
        if then is not None and len(printed()) > commands:
            await then(ports)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and with it what the script has started
        await process.wait()
    parts = printed()
    statuses = [part.partition("\n")[0] for part in parts[1:]]
    outputs = [parts[0], *(part.partition("\n")[2] for part in parts[1:])]
    log = folder / "service.log"
    return list(zip(outputs, statuses, strict=False)), log.read_text(errors="replace")[-3000:] if log.exists() else ""
