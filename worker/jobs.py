"""The one job of the queue: improve the active codebook by the model's own judgement.

Only joins the parts: which model, which loop. What an attempt is, and what survives a crash, is in `worker/attempt.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from codebook.settings import Settings
from codebook.value import Codebook
from engine.loading import load_model
from engine.model import ImageModel
from safety.loop import ImproveRequest, RoundOutcome, Watch
from safety.loop import improve as improve_codebook
from worker.attempt import run


def improve(job_id: str) -> None:
    """Run the improve job `job_id` of the journal to its end, or on from where an earlier attempt died.

    The settings are those of the worker's environment. Raises what ended the job, after it is in the job's record.
    """
    run(job_id, Settings.from_environ(os.environ), _load, _loop)


def _load(settings: Settings) -> ImageModel:
    return load_model(settings.model, settings.device, settings.dtype)


def _loop(
    model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: Watch
) -> Iterable[RoundOutcome]:
    return improve_codebook(model, start, request, work, watch, second_judge)
