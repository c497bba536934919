"""`safecb flags`: see, approve and reject flags of the running server."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.commands.connection import Server, connected, table

app = typer.Typer(no_args_is_help=True, help="Flags on images of the running server.")

Id = Annotated[str, typer.Argument(help="Id of the flag.")]


@app.command("list")
def listed(
    state: Annotated[str | None, typer.Option(help="accepted, review or rejected; all if absent.")] = None,
    server: Server = None,
) -> None:
    """List flags, newest first."""
    with connected(server) as client:
        flags = client.flags(state)
    rows = [(f["id"], f["state"], f["made"][:19], f["codebook"], f["category"], f["prompt"][:60]) for f in flags]
    print(table(("id", "state", "made", "codebook", "category", "prompt"), rows))


@app.command()
def approve(
    id: Id,
    category: Annotated[str | None, typer.Option(help="A category in place of its own.")] = None,
    server: Server = None,
) -> None:
    """Approve a flag: the next improve job learns from it."""
    with connected(server) as client:
        print(f"{id}: {client.approve(id, category)['state']}")


@app.command()
def reject(id: Id, server: Server = None) -> None:
    """Reject a flag: no job will learn from it."""
    with connected(server) as client:
        print(f"{id}: {client.reject(id)['state']}")
