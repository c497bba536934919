"""The plan of an improve job as lines of text: phases, images, time and memory; and its rounds, once they have ended.

Knows their JSON. Knows nothing of how either comes about.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

GIB = 2**30


def plan_lines(plan: Mapping[str, Any]) -> Iterator[str]:
    """A line a phase, then the sums."""
    yield "plan:"
    for phase in plan["phases"]:
        name = f"{phase['phase']}, round {phase['round']}" if phase["round"] else phase["phase"]
        yield f"  {name:22} {phase['images']:6} images  {duration(phase['seconds']):>9}"
    time = duration(plan["seconds"])
    yield f"  {'in all':22} {plan['images_planned']:6} images  {time:>9}"
    yield f"memory: about {plan['memory'] / GIB:.2f} GiB of features and logits beside the model"


def round_line(row: Mapping[str, Any]) -> str:
    """A round of a job: the outcome, the figures that decided, and the version."""
    line = f"round {row['round']}: {row['reason']} {row['version'] or row.get('fault') or ''}".rstrip()
    decision = row.get("decision")
    if decision is None:
        return line
    fresh = decision.get("confirmed")
    if fresh is None:
        return f"{line} (gain {decision['gain']:.3f}, at least {decision['needed']:.3f}; p {decision['p']:.2g})"
    count, sides = fresh["after"]["svr"]["n"], [fresh[side]["svr"]["value"] for side in ("before", "after")]
    gain = "safe and valid {:.3f} before, {:.3f} after".format(*sides)
    return f"{line} ({count} fresh prompts: {gain}; p {fresh['p']:.2g}, below {fresh['limit']:.2g} is wanted)"


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
