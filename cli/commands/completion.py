"""`safecb completion`: the script by which a shell completes commands, options and their values.

A shell asks by running `safecb` with an environment variable set; `answer` replies to that.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import completion_init, get_completion_script  # type: ignore[attr-defined]  # no __all__

from cli.commands import COMPLETING

_FREE = {"ignore_unknown_options": True, "allow_extra_args": True}


class Shell(StrEnum):
    """Shells whose completion is known."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that is to complete.")]) -> None:
    """Print a shell's completion script: `source <(safecb completion bash)`."""
    print(get_completion_script(prog_name="safecb", complete_var=COMPLETING, shell=shell))


def answer(app: typer.Typer, others: Mapping[str, str]) -> None:
    """Print what a shell asks for. others: help texts of the commands that `app` does not parse, by name."""
    for name, text in others.items():
        app.command(name, help=text, context_settings=_FREE)(lambda: None)
    completion_init()
    app(args=[], prog_name="safecb", complete_var=COMPLETING, standalone_mode=False)
