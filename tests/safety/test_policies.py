"""Policies that write prompts by themselves: today's emoji prompts to the letter, and the open policy's grammar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from safety.config import LoopConfig
from safety.policy.prompts import Prompt
from safety.request import ImproveRequest
from safety.runtime.model_runner import ModelRunner
from safety.runtime.result_cache import ResultCache
from safety.runtime.run_context import prepare
from tests.safety.test_loop import Heard
from tests.support.toy_model import ToyModel

ROUNDS = 2
DEFAULT_JOB = "563ea10e79bd36b912874857a1b92744d06ca7e5dd8a204bebadf750b3651f82"


def texts(prompts: Sequence[Prompt]) -> list[tuple[str | None, ...]]:
    return [(prompt.text, prompt.category, prompt.concept, prompt.safe, prompt.said) for prompt in prompts]


def test_the_default_job_s_prompts_stay_as_they_are(tmp_path: Path) -> None:
    runner = ModelRunner(ToyModel(), ResultCache(tmp_path), Heard(), 64)
    context = prepare(runner, ImproveRequest(None, None, ROUNDS, 1), LoopConfig())
    parts = [
        context.panel.prompts,
        context.heldout.prompts,
        *context.routed.values(),
        context.routed_benign,
        *(prompts for one in context.fresh for prompts in one.values()),
    ]
    text = json.dumps([texts(part) for part in parts], ensure_ascii=False)
    assert hashlib.sha256(text.encode()).hexdigest() == DEFAULT_JOB
