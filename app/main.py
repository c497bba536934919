"""The command `safecb`. Its settings are the SAFECB_ variables; see codebook/settings.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing

from app import demo, serve
from app.client import Client
from codebook.errors import SafeCBError
from codebook.settings import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="safecb", description="Text to image with a safer codebook.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (help_text, _) in COMMANDS.items():
        commands.add_parser(name, help=help_text)
    chosen: str = parser.parse_args(arguments).command
    return COMMANDS[chosen][1]()


def worker() -> int:
    """Become the worker: for a machine of its own, with SAFECB_REDIS_URL set."""
    os.execv(sys.executable, [sys.executable, "-m", "worker.main"])


def improve() -> int:
    """Run an improve job on the running server to its end: 0 where it published a version, else 1."""
    try:
        with closing(Client.of(Settings.from_environ(os.environ))) as client:
            return 1 if demo.improve(client) is None else 0
    except SafeCBError as error:
        print(f"safecb: {error}", file=sys.stderr)
        return 1


COMMANDS: Mapping[str, tuple[str, Callable[[], int]]] = {
    "serve": ("start Redis, a worker and the server", serve.main),
    "worker": ("start a worker alone", worker),
    "improve": ("run an improve job on the running server", improve),
    "demo": ("show the main job on the running server", demo.main),
}

if __name__ == "__main__":
    sys.exit(main())
