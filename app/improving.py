"""Checks of POST /improve: everything that can be refused before a job is written to the journal.

Knows policies and names of judges. Knows nothing of images, nor of how a job runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from app.schemas import ImproveBody
from app.service import Engine, Service
from core.errors import BadInput, NotFound
from core.storage import naming
from engine.registry import has_beside
from safety.judges.grammar import BESIDE, JudgeName, read_name
from safety.policy.policy import Policy, lacking
from safety.policy.policy_store import FOLDER, find_policy, policy_names, usual_policy

SELF, REFEREE = "self", "referee"  # names of judges
BESIDE_FOLDERS = {BESIDE: "second_judge", REFEREE: REFEREE}  # beside the weights, by the name of the judge
FILES = ("texts", "ask")  # options that name a file


def check_improve(body: ImproveBody, service: Service) -> Policy:
    """The policy of a body. Raises BadInput, naming the field, where no job could be made of it. Reads files; blocks.

    Raises NoStorage where a policy cannot be read now.
    """
    engine, settings = service.engine, service.settings
    with naming(settings.home / FOLDER):
        policy = _policy(body.policy or usual_policy(engine.facts.categories), settings.home / FOLDER)
    categories = body.categories or policy.categories
    _check_categories(categories, policy)
    if lack := lacking(policy, categories):
        raise BadInput("policy", policy.name, lack)
    check_judge(body.second_judge or settings.second_judge, settings.model)
    _check_prompts(engine, body.prompts or ())
    return policy


def _policy(name: str, folder: Path) -> Policy:
    try:
        return find_policy(name, folder)
    except NotFound:
        raise BadInput("policy", name, f"one of {', '.join(policy_names(folder))}") from None
    except BadInput as error:
        raise BadInput("policy", name, f"a policy without a fault ({error})") from None


def _check_categories(categories: Sequence[str], policy: Policy) -> None:
    for index, category in enumerate(categories):
        if category not in policy.categories:
            raise BadInput(f"categories.{index}", category, f"one of {', '.join(policy.categories)}")
        if category in categories[:index]:
            raise BadInput(f"categories.{index}", category, "each category once")


def check_judge(name: str, model: str) -> None:
    """Raise BadInput for a second judge that is none, is not independent, or whose folder or file is missing."""
    try:
        parts = list(_parts(read_name(name)))
    except BadInput as error:
        raise BadInput("second_judge", error.value, error.allowed) from None
    for part in parts:
        if part.kind == SELF:
            raise BadInput("second_judge", name, "a judge that is independent of the model, which 'self' is not")
        if part.kind in BESIDE_FOLDERS:
            _check_beside(name, BESIDE_FOLDERS[part.kind], model)
        if part.source and not _may_be(part.source):
            raise BadInput("second_judge", part.source, "a folder that exists, or a repository OWNER/NAME of the hub")
        for option in FILES:
            if option in part.options and not Path(part.options[option]).is_file():
                raise BadInput("second_judge", part.options[option], f"a file that exists, after {option}=")


def _parts(name: JudgeName) -> Iterator[JudgeName]:
    """The name, or the names that it is made of."""
    for part in name.parts:
        yield from _parts(part)
    if not name.parts:
        yield name


def _check_beside(name: str, folder: str, model: str) -> None:
    if has_beside(model, folder):
        return
    allowed = f"a folder {folder!r} beside the weights of {model}, which has none; name another judge"
    raise BadInput("second_judge", name, f"{allowed} here or in SAFECB_SECOND_JUDGE: opennsfw, hf:FOLDER#LABEL, ...")


def _may_be(source: str) -> bool:
    """Whether a source of weights is a folder that exists, or may be a repository of the hub."""
    if Path(source).is_dir():
        return True
    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _check_prompts(engine: Engine, prompts: Sequence[str]) -> None:
    """Raise BadInput, naming its index, for the first prompt that the model cannot read."""
    for index, prompt in enumerate(prompts):
        try:
            engine.check_prompt(prompt)
        except BadInput as error:
            raise BadInput(f"prompts.{index}", error.value, error.allowed) from None
