"""`safecb codebooks shadow` and `canary`: trials of a version on the running server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cli.commands.connection import Server, connected, table
from codebook.trials.rule import MARGIN, PAIRS

Version = Annotated[str, typer.Argument(help="Codebook version.")]


def shadow(
    version: Annotated[str | None, typer.Argument(help="Version to compare; without one, print the state.")] = None,
    share: Annotated[float, typer.Option(help="Share of the live images that is compared.")] = 0.5,
    pairs: Annotated[int, typer.Option(help="Pairs after which it ends undecided.")] = PAIRS,
    margin: Annotated[float, typer.Option(help="Share of bad images by which it may be worse at most.")] = MARGIN,
    steps: Annotated[bool, typer.Option(help="Roll the version out in steps if it is as good.")] = True,
    end: Annotated[bool, typer.Option("--end", help="End the comparison that goes on.")] = False,
    server: Server = None,
) -> None:
    """Compare a version with the active one on live images, unseen by callers; or print or end the comparison."""
    with connected(server) as client:
        if version is not None:
            client.shadow(version, share=share, pairs=pairs, margin=margin, steps=steps)
        if end:
            client.end_shadow()
        state = client.shadow_state()
    print("\n".join(shadow_lines(state)))


def canary(version: Version, server: Server = None) -> None:
    """Let a version draw 1 % of the traffic, then 10 and 50 %, then all, as long as the guard does not end it."""
    with connected(server) as client:
        record = client.canary(version)
    print(f"{version} draws {record['traffic'][version]:.0%} of the traffic; {record['version']} is active")


def shadow_lines(state: dict[str, Any]) -> list[str]:
    """The state of a comparison in words."""
    decided = state["decision"] or state["status"]
    lines = (f"e worse ({state['retreat_at']:.0f})", f"e as good ({state['promote_at']:.0f})")
    rows = [
        [name, *(str(counts[key]) for key in ("worse", "equal", "better")), *_evidence(counts)]
        for name, counts in state["measures"].items()
    ]
    first = f"{state['version']}: {decided}, {state['pairs']} of at most {state['most']} pairs; job {state['job']}"
    return [first, table(("measure", "worse", "equal", "better", *lines), rows)]


def _evidence(counts: dict[str, Any]) -> list[str]:
    return [f"{counts[key]:.3g}" for key in ("e_worse", "e_within")]
