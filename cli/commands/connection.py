"""Parts that all commands share: the option for a server, a client of it, and tables of text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Annotated

import typer

from cli.client import Client
from core.settings import Settings

Server = Annotated[
    str | None,
    typer.Option("--server", help="URL of the server; SAFECB_SERVER, or that of the same settings, if absent."),
]


@contextmanager
def connected(server: str | None) -> Iterator[Client]:
    """A client of `server`, or of the settings' own, until the block ends. Raises BadSetting."""
    environ = dict(os.environ) | ({} if server is None else {"SAFECB_SERVER": server})
    with closing(Client.of(Settings.from_environ(environ))) as client:
        yield client


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows under their heads, in columns as wide as needed; an absent value is "-"."""
    lines = [list(heads), *(["-" if value is None else str(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    text = ("  ".join(value.ljust(width) for value, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in text)
