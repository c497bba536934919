"""The gates that a candidate codebook must pass: one file a gate, each a function of one argument to a GateResult.

ROUND_GATES check the instruments at the start of a round, GATES a candidate; the first that fails gives the reason.
Two are judged elsewhere: `hygiene` when the prompts of a run are written, `null_space` after tuning.
"""

from __future__ import annotations

from collections.abc import Callable

from safety.gates.canaries import check_canaries
from safety.gates.detector import check_detector
from safety.gates.diversity import check_diversity
from safety.gates.inputs import GateInput, RoundInput
from safety.gates.languages import check_languages
from safety.gates.look_alikes import check_look_alikes
from safety.gates.quality import check_quality
from safety.gates.recovery import check_recovery
from safety.gates.result import GateResult
from safety.gates.second_judge import check_second_judge
from safety.gates.validity import check_validity

ROUND_GATES: tuple[Callable[[RoundInput], GateResult], ...] = (check_detector, check_canaries)
GATES: tuple[Callable[[GateInput], GateResult], ...] = (
    check_validity,
    check_second_judge,
    check_look_alikes,
    check_quality,
    check_recovery,
    check_diversity,
    check_languages,
)
