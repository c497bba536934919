"""The command line's subcommands that typer parses. Knows their names; knows nothing of what they do."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from cli.commands import codebooks, completion, convert, doctor, flags, generate, jobs, key
from core.errors import SafeCBError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text to image with a safer codebook.",
)
app.command("generate")(generate.generate)
app.command("doctor")(doctor.doctor)
app.command("key")(key.key)
app.command("convert")(convert.convert)
app.command("completion")(completion.completion)
app.add_typer(jobs.app, name="jobs")
app.add_typer(flags.app, name="flags")
app.add_typer(codebooks.app, name="codebooks")


def run(arguments: Sequence[str]) -> int:
    """Run one command; return its exit code: 1 and one line for an error, 2 for a wrong use."""
    try:
        app(args=list(arguments), prog_name="safecb")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except SafeCBError as error:
        print(f"safecb: {error}", file=sys.stderr)
        return 1
    return 0
