"""The command `safecb`. Its settings are the SAFECB_ variables; see core/settings.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import NoReturn

from cli import demo, serve
from cli.client import Client
from core.errors import SafeCBError
from core.settings import Settings

EVALUATE = "evaluate"  # has options of its own


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = argparse.ArgumentParser(prog="safecb", description="Text to image with a safer codebook.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (help_text, _) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=name != EVALUATE)
    options, rest = parser.parse_known_args(arguments)
    if options.command == EVALUATE:
        become("cli.evaluate", rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return COMMANDS[options.command][1]()


def become(module: str, arguments: Sequence[str] = ()) -> NoReturn:
    """Go on as another module of the project: this package imports neither worker nor safety."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def worker() -> int:
    """Become the worker: for a machine of its own, with SAFECB_REDIS_URL set."""
    become("worker.main")


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
    EVALUATE: ("measure codebooks on a file of prompts", lambda: become("cli.evaluate")),
    "demo": ("show the main job on the running server", demo.main),
}

if __name__ == "__main__":
    sys.exit(main())
