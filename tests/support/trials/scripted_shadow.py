"""A scripted shadow job for tests with real workers: the real job, journal, store and list around played judges.

The prompt says how a pair ends: "worse" or "better" by every measure, else alike.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from codebook.trials.rule import MEASURES, Differences
from codebook.value import Codebook
from core.settings import Settings
from engine.model import ImageModel
from engine.registry import load_model
from records.shadow_images import LiveImage
from safety.runtime.progress import Progress
from tests.support.scripted import StillModel
from worker.shadow_job import run_shadow

STILL = "still"  # SAFECB_MODEL of a worker whose model draws nothing


class ScriptedExaminer:
    """Examines pairs by their prompts."""

    def examine(self, images: Sequence[LiveImage]) -> list[Differences]:
        return [dict.fromkeys(MEASURES, _difference(image.prompt)) for image in images]


def _difference(prompt: str) -> int:
    return int("worse" in prompt) - int("better" in prompt)


def open_scripted(
    settings: Settings, model: ImageModel, active: Codebook, candidate: Codebook, work: Path, watch: Progress
) -> ScriptedExaminer:
    """The examiner of a scripted job."""
    watch.report("benign", 1, 1, 0)
    return ScriptedExaminer()


def load(settings: Settings) -> ImageModel:
    """The model of the settings, or one that draws nothing."""
    if settings.model == STILL:
        return StillModel()
    return load_model(settings.model, settings.device, settings.dtype)


def shadow(job_id: str) -> None:
    """The job: as worker.jobs.shadow, with the scripted examiner."""
    run_shadow(job_id, Settings.from_environ(os.environ), load, open_scripted)
