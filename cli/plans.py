"""The plan of an improve job as lines of text: phases, images, time and memory.

Knows the JSON of a plan. Knows nothing of how one comes about.
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


def duration(seconds: float | None) -> str:
    """Seconds in words."""
    if seconds is None:
        return "unknown"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
