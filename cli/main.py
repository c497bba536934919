"""Entry point of the command `safecb`. Its settings are the SAFECB_ variables; see core/settings.py."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version

from cli import demo, improve, serve
from cli.commands import COMPLETING
from core.wire import HOPELESS, SPINNING

CHECK, DRAW, EVALUATE, IMPROVE, VERIFY = "check", "draw", "evaluate", "improve", "verify"  # have options of their own
FOR_PEOPLE = {
    "generate": "draw a prompt on the running server, into PNG files",
    "jobs": "see, follow and cancel improve jobs",
    "flags": "see, approve and reject flags",
    "codebooks": "see, compare, activate and roll back versions, also without a server",
    "key": "make a key for the file of SAFECB_KEYS",
    "convert": "write a checkpoint with pickled weights anew as safetensors",
    "completion": "print the completion script of a shell",
    "doctor": "check a set-up, and name the fix of each fault",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code, 2 without a command."""
    if COMPLETING in os.environ:
        return complete()
    parser = argparse.ArgumentParser(prog="safecb", description="Text to image with a safer codebook.")
    parser.add_argument("--version", action="version", version=f"safecb {version('safecb')}")
    commands = parser.add_subparsers(dest="command")
    for name, (help_text, _) in COMMANDS.items():
        commands.add_parser(name, help=help_text, add_help=name not in OWN_OPTIONS)
    options, rest = parser.parse_known_args(arguments)
    if options.command in OWN_OPTIONS:
        return OWN_OPTIONS[options.command](rest)
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command is None:
        parser.print_help(sys.stderr)
        return HOPELESS
    return COMMANDS[options.command][1]()


def complete() -> int:
    """Tell a shell how the words typed so far go on; see cli/commands/completion.py."""
    from cli.commands.app import app
    from cli.commands.completion import answer

    answer(app, {name: text for name, (text, _) in COMMANDS.items() if name not in FOR_PEOPLE})
    return 0


def worker() -> int:
    """Run a worker in this process: for a machine of its own, with SAFECB_REDIS_URL set."""
    from worker.main import main  # lazily: no other command needs torch

    return main()


def server() -> int:
    """Become a server: for a machine or container of its own, with SAFECB_REDIS_URL set where there are workers."""
    os.execve(sys.executable, [sys.executable, "-m", "app.server"], serve.server_environ(os.environ))


def evaluate(arguments: Sequence[str] = ()) -> int:
    """Evaluate codebooks in this process; imported here, since the other commands need neither torch nor safety.

    OpenMP, which comes with torch, waits as in a worker.
    """
    os.environ.setdefault(*SPINNING)
    from cli.evaluate import main as command

    return command(arguments)


def draw(arguments: Sequence[str] = ()) -> int:
    """Draw a file of prompts in this process; imported here for the same reason."""
    os.environ.setdefault(*SPINNING)
    from cli.draw import main as command

    return command(arguments)


def check(arguments: Sequence[str] = ()) -> int:
    """Check in this process whether an improve job could begin; imported here, as for `evaluate`."""
    os.environ.setdefault(*SPINNING)
    from cli.check import main as command

    return command(arguments)


def verify(arguments: Sequence[str] = ()) -> int:
    """Verify a model in this process; imported here, as for `evaluate`."""
    os.environ.setdefault(*SPINNING)
    from cli.verify.command import main as command

    return command(arguments)


def for_people(name: str, arguments: Sequence[str] = ()) -> int:
    """Run one of FOR_PEOPLE, which typer parses; imported here, since `serve` and `worker` do without."""
    from cli.commands.app import run

    return run([name, *arguments])


OWN_OPTIONS: Mapping[str, Callable[[Sequence[str]], int]] = {
    IMPROVE: improve.main,
    CHECK: check,
    EVALUATE: evaluate,
    DRAW: draw,
    VERIFY: verify,
    **{name: partial(for_people, name) for name in FOR_PEOPLE},
}
COMMANDS: Mapping[str, tuple[str, Callable[[], int]]] = {
    "serve": ("start Redis, a worker and the server", serve.main),
    "server": ("start a server alone", server),
    "worker": ("start a worker alone", worker),
    IMPROVE: ("run an improve job on the running server", improve.main),
    VERIFY: ("verify a model before it is served: parity, images, judge, speed", verify),
    CHECK: ("check whether an improve job could begin, without a server", check),
    EVALUATE: ("measure codebooks on a file of prompts", evaluate),
    DRAW: ("draw a file of prompts for another harness", draw),
    **{name: (text, partial(for_people, name)) for name, text in FOR_PEOPLE.items()},
    "demo": ("show the main job on the running server", demo.main),
}

if __name__ == "__main__":
    sys.exit(main())
