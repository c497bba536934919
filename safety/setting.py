"""What stays the same over the rounds of one run: prompts, validation panel, baseline.

Made once at the start. The rounds themselves are in `safety/loop.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from codebook.errors import BadInput
from engine.model import ImageModel
from safety.baseline import Baseline, take_baseline
from safety.contexts import Contexts, read_contexts
from safety.exam import Exam
from safety.gates.g9_hygiene import refuse_shared
from safety.gates.result import GateResult
from safety.plan import Plan
from safety.prompts import PAIR, VALIDATION, Prompt, PromptWriter, is_readable
from safety.request import ImproveRequest
from safety.studio import Studio
from safety.taxonomy import Taxonomy, read_taxonomy
from safety.trial import BENIGN, NEIGHBOUR, Panel

SYNONYMS = 0.4  # share of the prompts for the router that say a harm by another name


@dataclass(frozen=True)
class Setting:
    """given: the operator's own prompts, and flagged ones.

    writer: goes on writing prompts for pairs, none of which are in a set here. hygiene: G9 over all sets.
    """

    studio: Studio
    plan: Plan
    seed: int
    taxonomy: Taxonomy
    categories: tuple[str, ...]
    given: tuple[Prompt, ...]
    writer: PromptWriter
    panel: Panel
    exam: Exam
    baseline: Baseline
    contexts: Contexts
    hygiene: GateResult

    def fresh_prompts(self) -> dict[str, tuple[Prompt, ...]]:
        """New prompts for pairs, by category."""
        return {name: self.writer.harmful(name, PAIR, self.plan.pair_prompts) for name in self.categories}


def prepare(studio: Studio, request: ImproveRequest, plan: Plan) -> Setting:
    """Write the prompts and take the baseline.

    Raises BadInput for an unknown category, a prompt the model cannot read, or one that a validation set holds.
    """
    taxonomy = read_taxonomy()
    categories = _chosen(request, taxonomy)
    for text in request.prompts or ():
        studio.model.check_prompt(text)
    writer = PromptWriter(taxonomy, random.Random(request.seed))
    panel = Panel.of(_groups(writer, categories, plan), request.seed)
    retention, canaries = writer.benign(PAIR, plan.retention), _canaries(writer, categories, plan.canaries // 2)
    routed = {name: writer.harmful(name, PAIR, plan.contexts, SYNONYMS) for name in categories}
    routed_benign = writer.benign(PAIR, 2 * plan.contexts)
    exam = Exam.of(taxonomy, categories, plan, request.seed)
    given = _given(studio.model, request, [*panel.prompts, *exam.prompts, *retention, *canaries])
    hygiene = refuse_shared(
        {
            "validation": panel.prompts,
            "test": exam.prompts,
            "benign": retention,
            "canaries": canaries,
            "contexts": [*routed_benign, *(prompt for group in routed.values() for prompt in group)],
            "pairs": given,
        }
    )
    baseline = take_baseline(studio, retention, canaries, plan, request.seed)
    contexts = read_contexts(studio, routed, [*routed_benign, *retention])
    return Setting(
        studio, plan, request.seed, taxonomy, categories, given, writer, panel, exam, baseline, contexts, hygiene
    )


def _chosen(request: ImproveRequest, taxonomy: Taxonomy) -> tuple[str, ...]:
    for name in request.categories or ():
        if name not in taxonomy.categories:
            raise BadInput("categories", name, f"some of {', '.join(taxonomy.categories)}")
    return request.categories or taxonomy.categories


def _given(model: ImageModel, request: ImproveRequest, held: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The operator's prompts, and what users flagged, but for what a set to measure on holds or nobody can read."""
    given = [Prompt(text, "", "", text) for text in request.prompts or ()]
    taken = {prompt.key for prompt in [*held, *given]}
    for text, category in request.flagged:
        prompt = Prompt(text, category or "", "", text)
        if prompt.key not in taken and is_readable(model, text):
            taken.add(prompt.key)
            given.append(prompt)
    return tuple(given)


def _groups(writer: PromptWriter, categories: Sequence[str], plan: Plan) -> list[tuple[str, Sequence[Prompt]]]:
    harmful = [(name, writer.harmful(name, VALIDATION, plan.harmful)) for name in categories]
    alike = [(NEIGHBOUR + name, writer.neighbours(name, VALIDATION, plan.neighbours)) for name in categories]
    return [*harmful, (BENIGN, writer.benign(VALIDATION, plan.benign)), *alike]


def _canaries(writer: PromptWriter, categories: Sequence[str], total: int) -> list[Prompt]:
    """About `total` harmful prompts, as many of each category."""
    each = -(-total // len(categories))
    return [prompt for name in categories for prompt in writer.harmful(name, PAIR, each)][:total]
