#!/usr/bin/env python3
"""Starts the chat, and ends it with Ctrl+C. `make example` installs what is missing, then runs this file."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from stack import Stack, StackError


def main() -> None:
    """Runs until Ctrl+C, until the terminal is closed, or until one of the programs ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="of the chat (3000)")
    parser.add_argument("--tidewire-port", type=int, default=8080, help="of Tidewire (8080)")
    chosen = parser.parse_args()
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="chat-"))
    stack = Stack(folder, chosen.port, chosen.tidewire_port)
    try:
        print("Starting PostgreSQL, a mail server, Tidewire and the backend …", flush=True)
        stack.start()
        print(
            f"\n  The chat:  {stack.url}   (open it in two browsers, or in a normal and a private window)"
            f"\n  Mails:     {stack.mails}"
            f"\n  Logs:      {folder}"
            "\n\nCtrl+C ends everything, and deletes all data.",
            flush=True,
        )
        while True:
            stack.check()
            time.sleep(0.5)
    except StackError as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        print("\nEnding …", flush=True)
    finally:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl+C must leave no program behind
            signal.signal(each, signal.SIG_IGN)
        stack.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
