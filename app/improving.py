"""Checks of POST /improve: everything that can be refused before a job is written to the journal.

Knows policies and names of judges. Knows nothing of images, nor of how a job runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from app.schemas import ImproveBody
from app.service import Engine, Service
from core.errors import BadInput, BadModel, NotFound
from core.storage import naming
from engine.registry import find_model
from engine.weights.names import Repository
from safety.judges.grammar import (
    BESIDE,
    JudgeName,
    check_installed,
    is_covered,
    read_categories,
    read_second_judge,
    registered_names,
)
from safety.policy.adult_only import RULE
from safety.policy.policy import Policy, lacking, refuse_unable
from safety.policy.policy_store import find_policy, policy_names, usual_policy

SECOND_JUDGE = "second_judge"  # the field, and the folder beside the weights
FILES = ("texts", "ask")  # options that name a file


def check_improve(body: ImproveBody, service: Service) -> Policy:
    """The policy of a body. Raises BadInput, naming the field, where no job could be made of it. Reads files; blocks.

    Raises NoStorage where a policy cannot be read now.
    """
    engine, settings = service.engine, service.settings
    if body.activate == "canary" and not settings.judge_share:
        raise BadInput("activate", body.activate, "true or false: SAFECB_JUDGE=off, so no guard could end its steps")
    with naming(settings.policies):
        policy = _policy(body.policy or usual_policy(engine.facts.categories), service.policies.read())
    categories = body.categories or policy.categories
    _check_categories(categories, policy)
    if lack := lacking(policy, categories):
        raise BadInput("policy", policy.name, lack)
    refuse_unable(engine.facts, policy, categories, body.prompts or ())
    judge = body.second_judge or settings.second_judge
    check_judge(judge, settings.model)
    if not body.accept_self_judged:
        check_covers(judge, settings.model, categories)
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
    """Raise BadInput for a second judge that is none, may not be one, is not installed, or lacks its folder or file."""
    for part in read_second_judge(name).leaves():
        try:
            check_installed(part.kind)
        except BadInput as error:
            raise BadInput(SECOND_JUDGE, error.value, error.allowed) from None
        if part.kind == BESIDE:
            _check_beside(name, model)
        if part.source and not _may_be(part.source):
            allowed = "a folder that exists and has a config.json, or a repository OWNER/NAME[@REVISION] of the hub"
            raise BadInput(SECOND_JUDGE, part.source, allowed)
        for option in FILES:
            if option in part.options and not Path(part.options[option]).is_file():
                raise BadInput(SECOND_JUDGE, part.options[option], f"a file that exists, after {option}=")


def second_judges(model: str) -> list[str]:
    """The names without a colon that a job of this model may have as its second judge."""
    names = []
    for name in registered_names():
        with suppress(BadInput):
            check_judge(name, model)
            names.append(name)
    return names


def check_covers(name: str, model: str, categories: Sequence[str]) -> None:
    """Raise BadInput for a second judge, good by `check_judge`, that is known to cover none of these categories."""
    covers = [_covers(part, model) for part in read_second_judge(name).leaves()]
    if not any(is_covered(part, category) for part in covers for category in categories):
        known = ", ".join(sorted({category for part in covers for category in part or ()}))
        raise BadInput(
            SECOND_JUDGE,
            name,
            f"a judge that knows one of {', '.join(categories)}, where this one knows {known}; or accept_self_judged",
        )


def _covers(part: JudgeName, model: str) -> frozenset[str] | None:
    """The categories of a judge as far as they can be read without its weights; None: all, or not known yet."""
    return read_categories(find_model(model) / SECOND_JUDGE) if part.kind == BESIDE else part.known_covers


def _check_beside(name: str, model: str) -> None:
    try:
        read_categories(find_model(model) / SECOND_JUDGE)
    except BadModel:  # of the classifier, or of random weights, which have no folder
        allowed = f"a classifier in a folder {SECOND_JUDGE!r} beside the weights of {model}, which has none that can"
        others = "be read; name another judge here or in SAFECB_SECOND_JUDGE: opennsfw, hf:FOLDER#LABEL, ..."
        raise BadInput(SECOND_JUDGE, name, f"{allowed} {others}") from None


def _may_be(source: str) -> bool:
    """Whether a source of weights is the folder of a checkpoint, or may be a repository of the hub."""
    if Path(source).exists():
        return (Path(source) / "config.json").is_file()
    if (repository := Repository.of(source)) is None:
        return False
    try:
        validate_repo_id(repository.name)
    except HFValidationError:
        return False
    return True


def _check_prompts(engine: Engine, prompts: Sequence[str]) -> None:
    """Raise BadInput, naming its index, for the first prompt that the model cannot read, or that sexualises a minor."""
    for index, prompt in enumerate(prompts):
        if RULE.refuses((), (prompt,)):
            raise BadInput(f"prompts.{index}", "<a mention of a minor beside nudity or sex>", "adults alone there")
        try:
            engine.tokenize(prompt)
        except BadInput as error:
            raise BadInput(f"prompts.{index}", error.value, error.allowed) from None
