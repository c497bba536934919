"""The one job of the queue: improve the active codebook by the model's own judgement.

Only joins the parts: which model, which judges, which loop. What an attempt is, and what survives a crash, is in
`worker/attempt.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from codebook.errors import BadModel
from codebook.settings import Settings
from codebook.value import Codebook
from engine.loading import load_model
from engine.model import ImageModel
from safety.assessment import assess
from safety.judges import REFEREE, classifier_beside
from safety.keep import Keep
from safety.loop import ImproveRequest, RoundOutcome, Watch
from safety.loop import improve as improve_codebook
from safety.plan import Plan
from safety.setting import prepare
from safety.studio import Studio
from worker.attempt import Loop, run

SECOND_JUDGE = "second_judge"  # a folder beside the weights


def improve(job_id: str) -> None:
    """Run the improve job `job_id` of the journal to its end, or on from where an earlier attempt died.

    The settings are those of the worker's environment. Raises what ended the job, after it is in the job's record.
    """
    run(job_id, Settings.from_environ(os.environ), _load, SelfImprovement())


def _load(settings: Settings) -> ImageModel:
    return load_model(settings.model, settings.device, settings.dtype)


class SelfImprovement(Loop):
    """The loop of `safety`, with the judges that lie beside the model's weights."""

    def rounds(
        self, model: ImageModel, start: Codebook, request: ImproveRequest, work: Path, watch: Watch
    ) -> Iterable[RoundOutcome]:
        """See Loop. Raises BadModel where the model has no second judge: gate G3 cannot be left out."""
        second = classifier_beside(model, SECOND_JUDGE)
        if second is None:
            raise BadModel(f"{model.facts.model_id}: no folder {SECOND_JUDGE!r} beside the weights; gate G3 needs one")
        return improve_codebook(model, start, request, work, watch, second)

    def assess(
        self, model: ImageModel, start: Codebook, end: Codebook, request: ImproveRequest, work: Path, watch: Watch
    ) -> dict[str, Any] | None:
        """See Loop; None where the model has no referee."""
        referee, plan = classifier_beside(model, REFEREE), Plan()
        if referee is None:
            return None
        return assess(prepare(Studio(model, Keep(work), watch, plan.batch), request, plan), start, end, referee)
