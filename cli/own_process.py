"""Commands that load the model in their own process: progress on stderr, exit codes, judges, prompts, versions.

Knows settings, store and model. Knows nothing of what a command measures or draws.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from codebook.store import CodebookStore
from codebook.value import Codebook
from core.bucket.shared_folder import SharedFolder
from core.errors import BadInput, NoStorage, SafeCBError
from core.settings import Settings
from engine.model import ImageModel
from safety.judges.grammar import read_name, split_names
from safety.judges.names import parse_judge
from safety.judges.registry import Judge
from safety.policy.adult_only import AdultOnly
from safety.policy.policy import Policy
from safety.policy.policy_store import find_policy, usual_policy
from safety.policy.prompt_file import AskedPrompt
from safety.policy.prompts import is_readable

ACTIVE = "active"
QUIET_S = 5.0  # between two progress lines
JUDGES_HELP = "comma separated: self, referee, hf:FOLDER#LABEL, any(NAME,NAME), ..."


class ConsoleProgress:
    """Progress as a line on stderr, every QUIET_S seconds at most."""

    def __init__(self) -> None:
        self._last = 0.0

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        """See safety.runtime.progress.Progress."""
        if time.monotonic() - self._last >= QUIET_S:
            self._last = time.monotonic()
            print(f"{phase}: {done} of {total}", file=sys.stderr, flush=True)


def exit_code(command: str, run: Callable[[Settings], str]) -> int:
    """Run a command and print its summary: 0, 1 for a failure of the disk, 2 for a bad argument or model."""
    try:
        summary = run(Settings.from_environ(os.environ))
    except NoStorage as error:
        print(f"safecb {command}: {error.about(error.path)}; then call it again to go on", file=sys.stderr)
        return 1
    except SafeCBError as error:
        print(f"safecb {command}: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


def check_names(listed: str) -> list[str]:
    """The names in a list of judges, each once. Raises BadInput for one that the grammar does not know."""
    names = list(dict.fromkeys(split_names(listed)))
    for name in names:
        read_name(name)
    return names


def find_judges(names: Sequence[str], model: ImageModel) -> list[Judge]:
    """The judges of these names. Raises BadInput where reports would call two of them the same, and as parse_judge."""
    device = model.base_codebook().pixel.device
    judges: dict[str, Judge] = {}
    for name in names:
        judge = parse_judge(name, model, device)
        if judge.name in judges:
            raise BadInput("judges", name, f"each judge once; another is called {judge.name!r}")
        judges[judge.name] = judge
    return list(judges.values())


def find_codebooks(settings: Settings, model: ImageModel, names: Sequence[str]) -> dict[str, Codebook]:
    """The versions of these names in the store, by version; raises NotFound and BadCodebook."""
    store = CodebookStore.of(settings)
    store.initialise(model.base_codebook(), model.facts.shown())
    versions = [store.active().version if name == ACTIVE else name for name in names]
    return {version: store.load(version) for version in versions}


def policy_of(name: str | None, settings: Settings, model: ImageModel) -> Policy:
    """The policy of this name, or the usual one of the model. Raises BadInput and NotFound."""
    return find_policy(name or usual_policy(model.facts.categories), SharedFolder.policies(settings).read())


@dataclass(frozen=True)
class Prompts:
    """Prompts of a file: those to draw, those the model cannot read, and those that the adult-only rule refuses."""

    usable: tuple[AskedPrompt, ...]
    unreadable: tuple[AskedPrompt, ...]
    refused: tuple[AskedPrompt, ...]


def sort_prompts(model: ImageModel, prompts: Sequence[AskedPrompt], source: Path | str) -> Prompts:
    """Part the prompts; raises BadInput where none can be drawn."""
    rule = AdultOnly()
    refused = [rule.refuses(prompt.categories, (prompt.text,)) for prompt in prompts]
    read = [is_readable(model, prompt.text) for prompt in prompts]
    rows = list(zip(prompts, refused, read, strict=True))
    parted = Prompts(
        tuple(prompt for prompt, no, yes in rows if yes and not no),
        tuple(prompt for prompt, no, yes in rows if not yes and not no),
        tuple(prompt for prompt, no, _ in rows if no),
    )
    if not parted.usable:
        raise BadInput("prompts", str(source), "at least one prompt that the model can read, about adults alone")
    return parted
