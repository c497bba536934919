"""Files of 5,000 prompts in the columns of I2P and CoPro: read in no time, split, evaluated, resumed after a kill."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path

import pytest
import torch

from cli import evaluate as evaluate_command
from cli.evaluate import main
from safety.config import LoopConfig
from safety.policy.files.file_policy import FilePolicy
from safety.policy.groups import Group
from safety.policy.prompt_file import read_prompts
from safety.policy.prompts import SPLITS
from tests.support.killed import run_until_killed
from tests.support.toy_model import ToyModel

ROWS, HEAD = 5000, 6
SLOWEST_S = 10.0  # of what takes less than a second on a machine with nothing else to do
THINGS = [
    f"{colour} {thing}"
    for colour in ("red", "blue", "green", "white")
    for thing in ("mug", "door", "hat", "box", "car")
]
PLACES = ["on a table", "in a garden", "by a lake", "near a wall", "under a tree"]
ENDS = [f", drawn with {n} lines" for n in range(50)]
CATEGORIES = ("hate", "violence", "shocking")
SMALL = LoopConfig(batch=4)


def sentences() -> Iterator[tuple[str, str]]:
    """Yield things, and sentences about them."""
    return islice(((thing, f"a {thing} {place}{end}") for thing, place, end in product(THINGS, PLACES, ENDS)), ROWS)


def table(columns: str, rows: Iterator[tuple[object, ...]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([columns.split(","), *rows])
    return text.getvalue()


def i2p() -> str:
    rows = (
        (i, text, ", ".join(CATEGORIES[: 1 + i % 3]), i % 2, 50.0, "https://example.org/x", i, 7.5, i)
        for i, (_, text) in enumerate(sentences())
    )
    columns = ",prompt,categories,hard,inappropriate_percentage,lexica_url,evaluation_seed,evaluation_guidance"
    return table(f"{columns},case_number", rows)


def copro() -> str:
    rows = (
        (text, CATEGORIES[i % 3], thing, text.replace(thing, "plain cup"))
        for i, (thing, text) in enumerate(sentences())
    )
    return table("prompt,category,concept,safe", rows)


@pytest.mark.parametrize("text", [i2p(), copro()], ids=["i2p", "copro"])
def test_a_long_file_is_read_and_split(text: str, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(text, encoding="utf-8")
    started = time.perf_counter()
    prompts = read_prompts(path, use_guidance=True, numbered=True)
    between = time.perf_counter()
    policy = FilePolicy.read(path)
    ended = time.perf_counter()
    print(f"{ROWS} rows: prompts in {between - started:.2f} s, policy in {ended - between:.2f} s")
    assert max(between - started, ended - between) < SLOWEST_S
    assert len(prompts) == ROWS and [prompt.case for prompt in prompts] == list(range(ROWS))
    assert policy.categories == CATEGORIES
    keys: dict[str, str] = {}
    totals = Counter[str]()
    for split, name in product(SPLITS, CATEGORIES):
        written = policy.write(Group.category(name), split, ROWS, random.Random(1))
        assert all(keys.setdefault(prompt.key, split) == split for prompt in written)
        totals[split] += len(written)
    assert len(keys) == ROWS
    assert sum(totals.values()) == sum(len(prompt.categories) for prompt in prompts)
    assert totals["pair"] > totals["validation"] and totals["pair"] > totals["test"] > 0


class Dying:
    """Progress that kills the process in the middle of the evaluation."""

    def report(self, phase: str, done: int, total: int, round: int) -> None:
        if phase == "evaluate v0" and done >= SMALL.batch:
            os.kill(os.getpid(), signal.SIGKILL)


def evaluated(prompts: str, out: str, home: str, dying: bool = False) -> int:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAFECB_HOME", home)
        patch.setattr(evaluate_command, "open_model", lambda *_: ToyModel())
        patch.setattr(evaluate_command, "LoopConfig", lambda: SMALL)
        if dying:
            patch.setattr(evaluate_command, "ConsoleProgress", Dying)
        return main(["--prompts", prompts, "--out", out, "--versions", "v0", "--policy", "mine"])


@pytest.mark.parametrize("text", [i2p(), copro()], ids=["i2p", "copro"])
def test_the_first_rows_are_evaluated_and_resumed_after_a_kill(text: str, tmp_path: Path) -> None:
    path, home = tmp_path / "head.csv", tmp_path / "home"
    path.write_text("".join(text.splitlines(keepends=True)[: 1 + HEAD]), encoding="utf-8")
    (home / "policies").mkdir(parents=True)
    benign = "".join(f"a {thing},,benign,pair\n" for thing in THINGS)
    harmful = "a knife,weapons,harmful,pair\n"
    (home / "policies" / "mine.csv").write_text(f"prompt,category,kind,split\n{harmful}{benign}", encoding="utf-8")
    arguments = (str(path), str(tmp_path / "cut"), str(home), True)
    run_until_killed(evaluated, *arguments)
    assert not (tmp_path / "cut" / "evaluation.json").exists()
    reports = []
    for folder in ("cut", "whole"):
        assert evaluated(str(path), str(tmp_path / folder), str(home)) == 0
        reports.append(json.loads((tmp_path / folder / "evaluation.json").read_text()))
    assert reports[0] == reports[1]
    assert (reports[0]["prompts"], reports[0]["unreadable"]) == (HEAD, 0)
    assert reports[0]["policy"] | {"version": ""} == {"name": "mine", "version": "", "benign": len(THINGS)}
    assert set(reports[0]["versions"]["v0"]["rates"]["self"]["categories"]) == set(CATEGORIES)
