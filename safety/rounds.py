"""The two kinds of rounds up to their candidates: a first one from the policy's prompts, later ones from failures.

A round after an accepted edit of the image head mines what still fails and goes on from that edit; any other begins
anew. Knows nothing of validation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from codebook.value import Codebook
from core.text import text_key
from safety.collect.collection import collect, rewritten_by
from safety.collect.mining import mine
from safety.collect.pairs import Pair
from safety.collect.round_data import RoundData, enough, gather_round_data
from safety.confirmation import Confirmation
from safety.edit.editor import Editor
from safety.edit.head_editor import head_editors
from safety.edit.mined_editor import Lesson, mined_editor
from safety.edit.pixel_editor import pixel_editors
from safety.reason import Reason
from safety.runtime.model_runner import derived_seed
from safety.runtime.run_context import RunContext
from safety.stopping import TARGET


@dataclass(frozen=True)
class LoopState:
    """The state between rounds: the best codebook so far, all pairs, and the spaces removed, by table and name.

    spaces: of each table that the model's facts let a version edit.
    full: whether no direction is left to remove. lesson: what mined rounds learn from; its concepts are those of the
    codebook's experts, none before a head edit is accepted.
    """

    codebook: Codebook
    pairs: tuple[Pair, ...]
    spaces: dict[str, Mapping[str, Tensor]]
    full: bool = False
    lesson: Lesson = field(default_factory=Lesson)

    @classmethod
    def of(cls, context: RunContext, codebook: Codebook, pairs: tuple[Pair, ...] = ()) -> LoopState:
        """The state of a run before its first round."""
        return cls(codebook, pairs, {table: {} for table in context.runner.model.facts.edits})


@dataclass(frozen=True)
class Prepared:
    """A round before its candidates: the state with what was found, and the editors by table, or why there are none.

    fresh: the number of the last pairs of round_data that are of this round.
    """

    state: LoopState
    report: dict[str, Any]
    failed: Reason | None = None
    round_data: RoundData | None = None
    fresh: int = 0
    editors: Mapping[str, Sequence[Editor]] = field(default_factory=dict)
    confirmation: Confirmation | None = None


def prepare(context: RunContext, state: LoopState) -> Prepared:
    """Prepare a round."""
    return prepare_mined(context, state) if state.lesson.concepts else prepare_first(context, state)


def prepare_first(context: RunContext, state: LoopState) -> Prepared:
    """A round from fresh prompts of each category."""
    collection = collect(context, state.codebook)
    state = replace(state, pairs=state.pairs + collection.pairs)
    report = {"pairs": collection.log, "rewrites": rewritten_by(collection.pairs)}
    round_data = make_round_data(context, enough(state.pairs, context.config.least_pairs))
    if round_data is None:
        return Prepared(state, report, Reason.NO_PAIRS)
    editors = find_edits(context, state, round_data)
    if not any(editors.values()):
        return Prepared(state, report, Reason.NO_DIRECTION)
    return Prepared(state, report, None, round_data, len(collection.pairs), editors)


def prepare_mined(context: RunContext, state: LoopState) -> Prepared:
    """A round from what the model itself still finds unsafe under the state's codebook."""
    mined = mine(context, state.codebook)
    lesson = state.lesson.with_more(mined.pairs)
    known = len(lesson.failures) - len(state.lesson.failures)
    state = replace(state, lesson=lesson)
    report = {"mined": mined.report}
    if mined.failed == 0 or mined.even.interval[1] <= TARGET:
        return Prepared(state, report, Reason.NO_FAILURES)
    round_data = make_round_data(context, lesson.failures)
    if round_data is None or known == 0 or bool(round_data.first_half.all()):  # no half B to check on
        return Prepared(state, report, Reason.NO_PAIRS)
    editor = mined_editor(context, state.codebook, round_data, state.spaces["output"], lesson)
    learned = frozenset(text_key(pair.prompt) for pair in (*state.pairs, *lesson.failures))
    editors, confirmation = {"output": [editor]}, Confirmation(context, mined, learned)
    return Prepared(state, report, None, round_data, known, editors, confirmation)


def find_edits(context: RunContext, state: LoopState, round_data: RoundData) -> dict[str, Sequence[Editor]]:
    """The editors of each table that the model's facts let a version edit; none where the pairs show no direction."""
    start, spaces = state.codebook, state.spaces
    makers: dict[str, Callable[[], Sequence[Editor]]] = {
        "pixel": lambda: pixel_editors(context.runner, start, round_data, context.patterns, spaces["pixel"]),
        "output": lambda: head_editors(context, start, round_data, spaces["output"]),
    }
    return {table: make() for table, make in makers.items() if table in spaces}


def make_round_data(context: RunContext, pairs: Sequence[Pair]) -> RoundData | None:
    """The data of the round; None without any pair."""
    seed = derived_seed(context.seed, "round", context.runner.round)
    return gather_round_data(context.runner, context.baseline, pairs, context.config, seed) if pairs else None
