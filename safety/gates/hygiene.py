"""G9: prompts for pairs, validation and measuring are disjoint, by hash after normalising."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations

from core.errors import BadInput
from safety.gates.result import GateResult
from safety.policy.prompts import Prompt

THRESHOLD = "no prompt in two sets"


def g9_hygiene(sets: Mapping[str, Iterable[Prompt]]) -> GateResult:
    """Compare every two sets."""
    keys = {name: {prompt.key for prompt in prompts} for name, prompts in sets.items()}
    shared = {f"{a}&{b}": len(keys[a] & keys[b]) for a, b in combinations(sorted(keys), 2)}
    figures = {"sizes": {name: len(found) for name, found in keys.items()}, "shared": shared}
    return GateResult("G9", not any(shared.values()), figures, THRESHOLD)


def refuse_shared(sets: Mapping[str, Iterable[Prompt]]) -> GateResult:
    """The gate at the start of a run. Raises BadInput naming `prompts` where two sets share one."""
    result = g9_hygiene(sets)
    if not result.passed:
        shared = sorted(pair for pair, count in result.figures["shared"].items() if count)
        raise BadInput("prompts", ", ".join(shared), "prompts for pairs that no validation set holds")
    return result
