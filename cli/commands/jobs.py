"""`safecb jobs`: see, follow and cancel improve jobs of the running server."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from cli import demo
from cli.commands.connection import Server, connected, table

app = typer.Typer(no_args_is_help=True, help="Improve jobs of the running server.")

Id = Annotated[str, typer.Argument(help="Id of the job.")]


@app.command("list")
def listed(server: Server = None) -> None:
    """List all jobs, newest first."""
    with connected(server) as client:
        jobs = client.jobs()
    rows = [
        (job["id"], job["status"], job["created"][:19], (job["result"] or {}).get("version"), job["error"])
        for job in jobs
    ]
    print(table(("id", "status", "created", "version", "error"), rows))


@app.command()
def show(id: Id, server: Server = None) -> None:
    """Print a job as JSON."""
    with connected(server) as client:
        print(json.dumps(client.job(id), indent=2))


@app.command()
def follow(id: Id, server: Server = None) -> None:
    """Print a job's progress until it ends: exit code 0 if it published a version, else 1."""
    with connected(server) as client:
        if demo.followed(client, id) is None:
            raise typer.Exit(1)


@app.command()
def cancel(id: Id, server: Server = None) -> None:
    """Cancel a job that has not ended."""
    with connected(server) as client:
        print(f"{id}: {client.cancel(id)['status']}, cancel requested")
