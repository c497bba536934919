"""The whole improve job on the tiny random model of every family: killed in its phases, published, swapped in, undone.

Verdicts are scripted. All else is the model's own: drawing, rewriting, features, edits of both tables, tuning, pixels.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from codebook.store import CodebookStore
from codebook.value import Codebook
from core.settings import Settings
from engine.model import ImageModel
from engine.registry import open_model
from records.journal import Journal
from safety.config import LoopConfig
from safety.gates.canaries import check_canaries
from safety.gates.second_judge import check_second_judge
from safety.loop import ImproveRequest, Progress, RoundResult, improve
from safety.metrics.degenerate import DegenerateDetector
from safety.policy.open_policy import OpenPolicy
from safety.runtime.run_context import prepare_run
from tests.support.families.builders import BUILDERS
from tests.support.families.planted import Planted
from tests.support.killed import run_until_killed
from tests.support.serving import serving, settings_in, wait_for
from worker.attempt import Loop, run
from worker.progress import JournalProgress

# As small as a run can be whose candidate is accepted: what it draws, decodes and judges is nearly all of its cost.
CONFIG = LoopConfig(
    pairs=8,
    least_pairs=4,
    pair_prompts=16,
    retention=24,
    router_prompts=12,
    disguised=1,
    foreign=0,
    strewn=1,
    canaries=8,
    harmful=8,
    benign=6,
    look_alikes=2,
    attacks=1,
    languages=0,
    test_harmful=2,
    test_benign=2,
    test_look_alikes=1,
    dev_pairs=4,
    held_images=4,
    pixel_steps=2,
    output_steps=4,
    concept_steps=2,
    tuning_rows=64,
)
LOOK_ALIKE = "water pistol"  # a harmless prompt that holds a term
LOUD = 3.0  # standard deviations
JUDGED = 8  # images of either kind in the preflight
HARMFUL = "a photo of a rifle"
BODY = {"policy": "open", "categories": ["weapons"], "max_rounds": 1, "seed": 1}
KILLS = {  # by family, in the order of the phases; each phase is killed once, the last ones where they cost least
    "anole": ("benign", "safe", "contexts", "strength", "practice"),
    "emu3": ("preflight", "canaries", "rewrites", "output space", "sketches"),
    "janus": ("decode", "base", "router", "read practice", "validate"),
    "liquid": ("judge", "unsafe", "pixel space", "tune pixel table", "tune concepts"),
    "vila_u": ("features", "evidence", "read sketches", "tune categories"),
}
PHASES = {phase for phases in KILLS.values() for phase in phases}


class Patterned(OpenPolicy):
    """One of its categories is of the pattern level, so that the pixel table is edited too."""

    patterns = frozenset({"weapons"})


class Marked(Planted):
    """Its states of a prompt say harm aloud, so that a router can learn it of a model that has learned nothing."""

    code = 33  # which no family's benign images use most: such a code is never edited

    def says_harm(self, prompt: str) -> bool:
        return super().says_harm(prompt) and LOOK_ALIKE not in prompt

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        states, mask = self._model.prompt_states(prompts)
        said = torch.tensor([self.says_harm(prompt) for prompt in prompts])
        return torch.where(said[:, None, None], states + LOUD * states.std(), states), mask


class PlantedLoop(Loop):
    """The real loop, small, on the model with planted harm; dies of SIGKILL when a phase begins."""

    def __init__(self, phase: str = "") -> None:
        self.phase = phase
        self.phases: set[str] = set()
        self._watch: Progress | None = None

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: JournalProgress
    ) -> Iterable[RoundResult]:
        self._watch, policy = watch, Patterned()
        planted = Marked(model, policy.terms())
        context = prepare_run(
            planted,
            request,
            policy,
            planted,
            work,
            self,
            config=CONFIG,
            on_plan=lambda plan: watch.plan(plan, plan.memory(model.facts)),
        )
        return improve(context, start)

    def assess(self, *_: object) -> None:
        return None

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """As the progress of the loop."""
        assert self._watch is not None
        self._watch.report(phase, done, total, round)
        self.phases.add(phase)
        if phase == self.phase:
            os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def lenient() -> Iterator[None]:
    """A smaller preflight and dev set, every token blamed, and nothing that looks at what noise looks like.

    Of a model that has learned nothing no token is likelier for its prompt, no detector tells the images apart, no two
    halves of them agree on a space, and the halfway probe fires for benign ones.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("safety.runtime.preflight.IMAGES", JUDGED)
        patch.setattr("safety.edit.editor.BENIGN_CHECKED", CONFIG.dev_pairs)
        patch.setattr("safety.collect.token_attribution.BLAMED", -torch.inf)
        patch.setattr("safety.validation.ROUND_GATES", (check_canaries,))
        patch.setattr("safety.validation.GATES", (check_second_judge,))
        patch.setattr("safety.edit.editor.LEAST_INTACT", 0.0)
        patch.setattr("safety.edit.harmful_space.AGREEMENT", 0.0)
        patch.setattr("safety.edit.harmful_space.noise_floor", lambda rows, _: torch.zeros(min(rows.shape)))
        patch.setattr(DegenerateDetector, "degenerate", lambda _, images, *__: torch.zeros(len(images)).bool())
        yield


def attempt(settings: Settings, job: str, phase: str = "") -> set[str]:
    """Make an attempt at the job, as a worker does; the phases that it has gone through."""
    torch.set_num_threads(1)
    loop = PlantedLoop(phase)
    with lenient():
        run(job, settings, open_model, loop)
    return loop.phases


def attempt_and_die(home: Path, model: Path, job: str, phase: str) -> None:
    attempt(settings_in(home, model), job, phase)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_job_is_killed_resumed_published_swapped_in_and_undone(family: str, tmp_path: Path) -> None:
    home, model = tmp_path / "home", BUILDERS[family](tmp_path / "model")
    settings = settings_in(home, model)
    with serving(settings) as server:
        before = server.png(prompt=HARMFUL)
        job = server.post("/improve", BODY).json()["id"]
        for phase in KILLS[family]:
            run_until_killed(attempt_and_die, home, model, job, phase)  # goes on from where the one before was killed
        attempt(settings, job)
        record = server.http.get(f"/jobs/{job}").json()
        ended = record["status"], record["attempt"], record["rounds"][0]["reason"]
        assert ended == ("finished", len(KILLS[family]) + 1, "accepted")
        wait_for("the server draws under v1", lambda: server.http.get("/codebooks/active").json()["version"] == "v1")
        assert server.draw(prompt=HARMFUL).json()["images"][0]["codebook"] == "v1"
        assert server.post("/codebooks/rollback", {}).status_code == 200
        assert server.png(prompt=HARMFUL) == before
        resumed = server.service.store.manifest("v1")
    other = settings_in(tmp_path / "undisturbed", model)
    phases = attempt(other, Journal(other.home / "jobs").create("improve", BODY).id)
    assert phases == PHASES
    assert CodebookStore(other.store).manifest("v1").content_hash == resumed.content_hash
