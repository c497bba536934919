"""Measures several machines on one bucket and one Redis, phase by phase, against bars.

`python -m benchmarks.scale` writes docs/results/scale.{json,md}; it exits with 1 where a bar is missed. With `--phases`
the results of the other phases stay as they are.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import results
from benchmarks.scale import answers, images, kills, moves, outages, shares
from benchmarks.scale.fleet.fleet import Fleet, fleet
from benchmarks.scale.page import missed, page

NAME = "scale"
Phase = Callable[[Fleet], dict[str, Any]]


def phases_of(arguments: argparse.Namespace) -> list[dict[str, Phase]]:
    """Return the phases by name: those of a fleet with straight lines to the bucket, and those of one with another."""
    straight: dict[str, Phase] = {
        "moves": lambda fleet: moves.measure(fleet, arguments.moves),
        "images": lambda fleet: images.measure(fleet, arguments.images),
        "shares": lambda fleet: shares.measure(fleet, arguments.requests, arguments.revocations),
        "kills": lambda fleet: kills.measure(fleet, arguments.kills),
    }
    faulty: dict[str, Phase] = {
        "outages": lambda fleet: outages.measure(fleet, arguments.cut),
        "answers": lambda fleet: answers.measure(fleet, arguments.calls),
    }
    return [straight, faulty]


def measure(groups: Sequence[Mapping[str, Phase]], calls: int) -> dict[str, Any]:
    """Run the phases, each group on a fleet of its own."""
    done: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="safecb-") as folder:
        for number, group in enumerate(groups):
            if not group:
                continue
            with fleet(Path(folder) / str(number), has_line=number == 1, calls=calls if number == 1 else 0) as machines:
                for name, phase in group.items():
                    began = time.monotonic()
                    done[name] = phase(machines)
                    done[name]["minutes"] = round((time.monotonic() - began) / 60, 1)
                    print(json.dumps({name: done[name]}, indent=1), flush=True)
    return done


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moves", type=int, default=1000)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=20, help="of servers, and of workers")
    parser.add_argument("--cut", type=float, default=30.0, help="seconds for which the bucket is away; Redis for twice")
    parser.add_argument("--calls", type=int, default=240, help="moves over a line that loses answers")
    parser.add_argument("--requests", type=int, default=10_000, help="of which a canary gets a share")
    parser.add_argument("--revocations", type=int, default=20)
    parser.add_argument("--phases", nargs="+", default=[], help="run these alone")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="the folder of the results")
    arguments = parser.parse_args()
    groups = phases_of(arguments)
    if unknown := set(arguments.phases) - {name for group in groups for name in group}:
        parser.error(f"no such phase: {', '.join(sorted(unknown))}")
    selected = [
        {name: phase for name, phase in group.items() if name in (arguments.phases or group)} for group in groups
    ]
    began, about = time.monotonic(), results.circumstances()
    done = measure(selected, arguments.calls)
    about["minutes"] = round((time.monotonic() - began) / 60, 1)
    results.FOLDER = arguments.out
    order = [name for group in groups for name in group]
    known = _earlier(arguments.out / f"{NAME}.json") if arguments.phases else {}
    merged = {name: (known | done)[name] for name in order if name in known | done}
    results.write(NAME, {"about": about, "phases": merged}, page(about, merged))
    print("\n".join(page(about, merged)))
    return 1 if missed(merged) else 0


def _earlier(path: Path) -> dict[str, Any]:
    """Return the phases of an earlier run."""
    with suppress(FileNotFoundError):
        return dict(json.loads(path.read_text(encoding="utf-8"))["phases"])
    return {}


if __name__ == "__main__":
    sys.exit(main())
