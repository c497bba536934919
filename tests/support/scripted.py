"""A scripted improve job for the worker's tests: the real attempt, journal, store and queue around a loop that waits.

The loop ends round n when the test makes the file `pass-n` in the home folder, and keeps what it made in `work`, as
the real one does. So a test decides in which round a process dies.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from codebook.value import Codebook
from core.settings import Settings
from engine.model import ImageModel, ImageRequest, ModelFacts, TextVerdict, Verdict
from safety.loop import ImproveRequest, Progress, RoundResult
from safety.outcome import RunFacts
from safety.reason import Reason
from worker.allowed_job import AllowedJob
from worker.attempt import Loop, run

CODES, DIM = 16, 8
KNOWS_NO_WEAPONS = "knows-no-weapons"  # a second judge


class ScriptedJob(AllowedJob):
    """Allows the scripted jobs in place of the real ones."""

    functions = MappingProxyType(
        {"improve": "tests.support.scripted.improve", "shadow": "tests.support.trials.scripted_shadow.shadow"}
    )


def improve(job_id: str) -> None:
    """The job: as worker.jobs.improve, with the scripted model and loop."""
    run(job_id, Settings.from_environ(os.environ), lambda settings: StillModel(), ScriptedLoop())


class StillModel:
    """A model with a codebook and nothing to draw: the scripted loop asks for no image."""

    facts = ModelFacts(
        family="janus",
        model_id="still",
        model_hash="0" * 64,
        grid=(2, 2),
        image_size=4,
        codes=CODES,
        code_dim=DIM,
        feature_dim=4,
        hidden_dim=4,
        normalised=True,
        pixel_table_feeds_lm=False,
        max_prompt_tokens=8,
        categories=("gore",),
    )
    device = torch.device("cpu")

    def base_codebook(self) -> Codebook:
        return Codebook("v0", "janus", "0" * 64, torch.eye(CODES, DIM) + 0.5)

    def check_prompt(self, prompt: str) -> None:
        raise NotImplementedError

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        raise NotImplementedError

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        raise NotImplementedError

    def judge(self, images: Tensor) -> list[Verdict]:
        raise NotImplementedError

    def rewrite(self, prompts: Sequence[str], attempt: int = 0) -> list[str]:
        raise NotImplementedError

    def judge_texts(self, texts: Sequence[str]) -> list[TextVerdict]:
        raise NotImplementedError

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        raise NotImplementedError

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def head(self, features: Tensor) -> Tensor:
        raise NotImplementedError


class ScriptedLoop(Loop):
    """Its rounds are all accepted; the prompt "break" makes the first one fail, "break later" what follows the last."""

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> Iterator[RoundResult]:
        home = Path(os.environ["SAFECB_HOME"])
        work.mkdir(exist_ok=True)
        (home / "job_process.pid").write_text(str(os.getpid()))
        if request.prompts == ("break",):
            raise RuntimeError("the loop broke")
        for number in range(1, request.max_rounds + 1):
            done = work / f"round-{number}"
            if not done.exists():
                _wait(home, number, watch)
                done.touch()
            yield _outcome(start, number, request)
        if request.prompts == ("break later",):
            raise RuntimeError("the loop broke")

    def assess(
        self, model: ImageModel, start: Codebook, end: Codebook, request: ImproveRequest, work: Path, watch: Progress
    ) -> dict[str, Any]:
        return {"before": start.version, "after": end.version}


def _wait(home: Path, number: int, watch: Progress) -> None:
    begun = home / f"begun-{number}"
    watch.report("draw", 0, 2, number)
    begun.touch()
    while not (home / f"pass-{number}").exists():
        watch.report("draw", 1, 2, number)
        time.sleep(0.02)
    watch.report("draw", 2, 2, number)


def _outcome(start: Codebook, number: int, request: ImproveRequest) -> RoundResult:
    draft = Codebook("draft", start.family, start.model_hash, start.pixel + 0.1 * number)
    judge = request.second_judge or "beside"
    self_judged = ("weapons",) if judge == KNOWS_NO_WEAPONS else ()
    return RoundResult(
        round=number,
        accepted=True,
        reason=Reason.ACCEPTED,
        codebook=draft,
        figures={"hr": 0.5 / number},
        gates={"validity": {"passed": True}},
        report={
            "round": number,
            "flagged": [list(flag) for flag in request.flagged],
            "self_judged": list(self_judged),
        },
        images={},
        run=RunFacts(request.policy or "open", judge, ("gore",), self_judged),
    )
