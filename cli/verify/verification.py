"""A model verified from top to bottom: its published code first, then itself, check by check.

Knows the order. Each check is in the file of its subject.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch

from cli.verify.checks import Check, Status, guarded, limited, reason_of, unmeasured
from cli.verify.drawing import PROMPTS, Album, album_checks
from cli.verify.judging import Probes, judge_check, survival_checks
from cli.verify.memory import memory_check, reset_peak
from cli.verify.parity import Reference, free_memory, parity_checks, run_reference
from engine.model import ModelFacts
from engine.registry import licence, load_model
from engine.runner.served import Served


@dataclass
class Verification:
    """What is known of a model so far. report: is called with each check as it is made."""

    name: str
    device: str
    dtype: str
    report: Callable[[Check], None]
    checks: list[Check] = field(default_factory=list)
    facts: ModelFacts | None = None
    source: str | None = None
    album: Album | None = None
    probes: Probes | None = None
    seconds: float = 0.0
    computes_on: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check has failed."""
        return self.of(Status.FAILED) == []

    def of(self, status: Status) -> list[str]:
        """The names of the checks of a status."""
        return [check.name for check in self.checks if check.status == status]

    def run(self) -> None:
        """Make all checks; a model that cannot be loaded fails the first one, and has no others."""
        start = time.perf_counter()
        reference = self._reference()
        free_memory()
        reset_peak()
        loaded: list[Served] = []
        self._add(guarded("loading", lambda: [self._load(loaded)]))
        if loaded:
            self._measure(loaded[0], reference)
        self.seconds = time.perf_counter() - start

    def _reference(self) -> Reference | str:
        """The results of the published code, or the reason why there are none."""
        try:
            reference = run_reference(self.name, self.device, self.dtype)
        except Exception as error:  # whatever that code does with these weights or this memory
            return f"its published code cannot be run here: {reason_of(error)}"
        if reference is None:
            return "there is no published code to run on these weights"
        self.source = reference.source
        return reference

    def _load(self, loaded: list[Served]) -> Check:
        start = time.perf_counter()
        model = load_model(self.name, self.device, self.dtype)
        loaded.append(model)
        self.facts = model.facts
        self.computes_on = _machine(model.device)
        seconds = time.perf_counter() - start
        words = f"{model.facts.family}, {model.facts.dtype}, in {seconds:.1f} s"
        return limited("loading", True, words, "complete, of a known family, all weights finite", seconds=seconds)

    def _measure(self, model: Served, reference: Reference | str) -> None:
        if isinstance(reference, str):
            self._add([unmeasured(name, reference) for name in ("tokens", "logits", "pixel table", "pixels")])
        else:
            self._add(guarded("parity", lambda: parity_checks(model, reference)))
        self._add(guarded("first image", lambda: self._draw(model)))
        if self.album is not None:
            album = self.album
            self._add(guarded("judge", lambda: [self._judge(model, album)]))
            self._add(guarded("codes that survive", lambda: survival_checks(model, album)))
        self._add(guarded("memory", lambda: [memory_check(model)]))

    def _draw(self, model: Served) -> Iterable[Check]:
        self.album = Album.draw(model)
        return album_checks(self.album)

    def _judge(self, model: Served, album: Album) -> Check:
        self.probes = Probes.judge(model, album.images[0])
        return judge_check(self.probes)

    def _add(self, checks: Iterable[Check]) -> None:
        for check in checks:
            self.checks.append(check)
            self.report(check)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON."""
        verdicts = [] if self.album is None else self.album.verdicts
        return {
            "model": self.name,
            "verdict": Status.PASSED if self.passed else Status.FAILED,
            "not_measured": self.of(Status.NOT_MEASURED),
            "reference": self.source,
            "checks": [check.to_dict() for check in self.checks],
            "facts": None if self.facts is None else self.facts.shown(),
            "licence": "" if self.facts is None else licence(self.facts.family),
            "computes_on": self.computes_on,
            "versions": {name: version(name) for name in ("safecb", "torch", "transformers")},
            "seconds": round(self.seconds, 2),
            "images": [
                {"prompt": prompt, "unsafe": verdict.unsafe, "score": verdict.score, "category": verdict.category}
                for prompt, verdict in zip(PROMPTS, verdicts, strict=False)
            ],
        }


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of a processor ({platform.machine()})"
