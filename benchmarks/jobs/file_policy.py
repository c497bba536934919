"""The embedded model's default job by its own policy, and by the same prompts read from a file.

The file path knows no noun: FilePolicy reads what `write_out` wrote, the second judge is a plain judge. Both codebooks
are measured by the referee on the held-out prompts of either policy. `python -m benchmarks.jobs.file_policy` writes
docs/results/file_policy.{json,md}; killed and called again with the same `--work`, it goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.results import circumstances, table, write
from codebook.tensors import codebook_hash
from codebook.value import Codebook
from engine.model import ImageModel
from engine.registry import load_model
from safety.evaluate.assessment import assess
from safety.judges.names import parse_judge
from safety.loop import ImproveRequest, improve
from safety.policy.emoji.classifier_judge import referee
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.files.file_policy import FilePolicy
from safety.policy.files.write_out import COUNTS, write_out
from safety.policy.policy import Policy
from safety.runtime.run_context import RunContext, prepare_run

GROUPS = ("levels", "categories", "look_alikes", "benign")


class Lines:
    """Progress as lines of a log, one a phase."""

    def __init__(self) -> None:
        self._last = ""

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.runtime.progress.Progress."""
        if phase != self._last:
            print(f"{time.strftime('%H:%M:%S')} round {round}: {phase}, {total}", flush=True)
            self._last = phase


def run(
    model: ImageModel, policy: Policy, work: Path, seed: int, rounds: int
) -> tuple[RunContext, Codebook, list[Any]]:
    """One job: its context, its last accepted codebook (the base where there is none), and its rounds in short."""
    second = parse_judge("beside", model, model.base_codebook().pixel.device)
    context = prepare_run(model, ImproveRequest(None, None, rounds, seed), policy, second, work, Lines())
    best, results = context.runner.base, []
    for result in improve(context, best):
        best = result.codebook or best
        gates = {name: gate["passed"] for name, gate in result.gates.items() if "passed" in gate}
        results.append({"round": result.round, "reason": result.reason, "stop": result.stop, "gates": gates})
        print(results[-1], flush=True)
    return context, best, results


def rows(tables: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the Markdown table: a row for each group of prompts, a column for each codebook."""
    first = next(iter(tables.values()))
    return [
        {"prompts": f"{group}: {name}", **{codebook: cells[name] for codebook, cells in columns.items()}}
        for group in GROUPS
        if group in first
        for columns in [{codebook: _cells(measured[group]) for codebook, measured in tables.items()}]
        for name in next(iter(columns.values()))
    ]


def _cells(group: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a group by name: rates after the edit, harmful and degenerate or right, with their intervals."""
    if "after" in group:
        return {"shows its prompt": _rate(group["after"])}
    return {
        f"{name}, {kind}": _rate(sides["after"][rate])
        for name, sides in group.items()
        for rate, kind in (("hr", "harmful"), ("vr", "degenerate"))
    }


def _rate(rate: Mapping[str, Any]) -> str:
    return f"{rate['value']:.3f} ({rate['low']:.3f}-{rate['high']:.3f}), n = {rate['n']}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for both jobs' results")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    about, model = circumstances(), load_model("embedded", "cpu", "auto")
    own, path = EmojiPolicy(), arguments.work / "policy.csv"
    count = write_out(own, path, COUNTS, arguments.seed)
    policies: dict[str, Policy] = {"own policy": own, "file": FilePolicy.read(path)}
    runs = {
        name: run(model, policy, arguments.work / name.replace(" ", "-"), arguments.seed, arguments.rounds)
        for name, policy in policies.items()
    }
    judge = referee(model)
    sets = {
        name: {other: assess(context, context.runner.base, best, judge) for other, (_, best, _) in runs.items()}
        for name, (context, _, _) in runs.items()
    }
    rounds = {name: results for name, (_, _, results) in runs.items()}
    hashes = {name: codebook_hash(best) for name, (_, best, _) in runs.items()}
    page = [
        "# The embedded model improved by a file of prompts",
        "",
        "Written by `python -m benchmarks.jobs.file_policy`.",
        "",
    ]
    page += [f"{key}: {value}  " for key, value in {**about, "rows of the file": count, "seed": arguments.seed}.items()]
    for name, tables in sets.items():
        page += ["", f"## Held-out prompts of the {name}", "", *table(rows(tables))]
    page += ["", "## Rounds", ""]
    page += [f"- {name}: {hashes[name][:12]}; {', '.join(r['reason'] for r in rounds[name])}" for name in runs]
    write("file_policy", {"about": about, "hashes": hashes, "rounds": rounds, "heldout": sets}, page)


if __name__ == "__main__":
    main()
