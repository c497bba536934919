"""The experiment on iteration: its verdict, its arms at equal images, and a run that goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import iteration as command
from cli.evaluate import main
from safety.evaluate.iteration import arms as arms_module
from safety.evaluate.iteration.verdict import FRESHNESS, NOT_SHOWN, SHOWN, WORSE, Difference, verdict
from tests.safety.test_loop import PLAN
from tests.support.toy_model import ToyModel

ARMS = ["single", "mined", "random"]
SIZES = replace(PLAN, probes=64, mined_steps=5, mined_images=1)
PRACTICE = 48  # images of a round: one of each tuning prompt


def difference(low: float, high: float) -> Difference:
    return Difference((low + high) / 2, low, high, 100)


@pytest.mark.parametrize(
    ("over_single", "over_random", "word"),
    [
        (difference(0.006, 0.05), None, SHOWN),
        (difference(0.006, 0.05), difference(0.001, 0.02), SHOWN),
        (difference(0.006, 0.05), difference(-0.001, 0.02), FRESHNESS),
        (difference(0.005, 0.05), difference(0.001, 0.02), NOT_SHOWN),  # half a point is no gain
        (difference(-0.01, 0.01), None, NOT_SHOWN),
        (difference(-0.05, -0.001), difference(0.001, 0.02), WORSE),
    ],
)
def test_the_verdict(over_single: Difference, over_random: Difference | None, word: str) -> None:
    assert verdict(over_single, over_random) == word


def test_a_difference_is_paired_by_prompt_over_the_seeds() -> None:
    base = torch.arange(200).expand(3, 200) % 2 == 0
    better = base.clone()
    better[:, 1:41:2] = True  # 20 prompts of 200, in all three seeds
    gain = Difference.of(better, base)
    assert gain == Difference.of(better, base)
    assert (round(gain.value, 9), gain.n) == (0.1, 200)
    # The standard error over prompts is 0.021; unpaired it would be 0.05, and over single images 0.012.
    assert 0.055 < gain.low < 0.075 and 0.125 < gain.high < 0.145
    assert Difference.of(base, base).low == Difference.of(base, base).high == 0


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--arms", "single,twice"], "arms: 'single,twice'"),
        (["--arms", "random,mined"], "arms: 'random,mined'"),
        (["--seeds", "1,1"], "seeds: '1,1'"),
        (["--seeds", "1,x"], "seeds: '1,x'"),
        (["--images", "0"], "images: 0"),
        (["--versions", "v0,v1"], "versions: 'v0,v1' is not allowed; expected no such option with --suite iteration"),
        (["--judges", "self"], "judges: 'self'"),  # the default's own value too
        (["--seed", "0"], "seed: 0"),
        (["--file-guidance"], "file_guidance: True"),
        (["--suite", "standard", "--seeds", "1"], "seeds: '1' is not allowed; expected no such option without"),
    ],
)
def test_bad_options_are_refused_before_a_model_is_loaded(
    options: list[str], field: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(command, "load_model")
    assert main(["--suite", "iteration", *options]) == 2
    assert field in capsys.readouterr().err


class Counting(ToyModel):
    """Counts the images that it draws."""

    drawn = 0

    def draw(self, requests: Any, on_step: Any = None) -> torch.Tensor:  # noqa: ANN401  (as ToyModel's)
        Counting.drawn += len(requests)
        return super().draw(requests, on_step)


def run(out: Path, arms: list[str], status: int = 0) -> dict[str, Any]:
    """Run the command with a toy model, until it ends with this status; the report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "load_model", lambda *_: Counting())
        patch.setattr(command, "referee", lambda model: model)
        patch.setattr(command, "second_judge", lambda model: model)
        patch.setattr(command, "LoopConfig", lambda: SIZES)
        patch.setattr(command, "LEAST_OTHER", 1)
        patch.setattr(arms_module, "ROUNDS", 3)
        patch.setenv("SAFECB_HOME", str(out / "home"))
        options = ["--suite", "iteration", "--images", "240", "--out", str(out)]
        assert main([*options, "--arms", ",".join(arms), "--seeds", "1"]) == status
    report: dict[str, Any] = json.loads((out / "iteration.json").read_text())
    return report


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a run of three arms, and its report."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("iteration")
    return out, run(out, ARMS)


def test_arms_learn_from_equally_many_images(finished: tuple[Path, dict[str, Any]]) -> None:
    arms = finished[1]["arms"]
    assert list(arms) == ARMS
    assert [len(arms[name]["steps"]) for name in ARMS] == [2, 3, 3]
    images = {name: [step["images"] for step in arms[name]["steps"]] for name in ARMS}
    assert images["mined"] == sorted(set(images["mined"]))
    ends = [images[name][-1] for name in ARMS]
    assert max(ends) - min(ends) <= PRACTICE  # a round that finds too few failures trains nothing, and draws none of it


def test_what_is_learned_lowers_harm(finished: tuple[Path, dict[str, Any]]) -> None:
    report = finished[1]
    before = report["base"]["rates"]["hr"]["value"]
    for name in ARMS:
        assert report["arms"][name]["steps"][-1]["rates"]["hr"]["value"] < before - 0.2, name
    assert report["verdict"] in {SHOWN, NOT_SHOWN, WORSE, FRESHNESS}
    assert set(report["differences"]) == {"mined - single", "mined - random"}


def test_reports_hold_the_figures_and_no_prompt(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    assert (out / "iteration.png").read_bytes().startswith(b"\x89PNG")
    texts = [(out / f"iteration.{kind}").read_text() for kind in ("md", "html", "json")]
    assert all(report["verdict"] in text and "mined - random" in text for text in texts)
    prompts = command.test_prompts(240)
    assert len(prompts) > 200
    assert not [prompt.text for prompt in prompts for text in texts if prompt.text in text]


def test_a_run_goes_on_where_it_stopped(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    (work,) = out.glob("work/*")
    second = (work / "mined-2.safetensors").stat().st_mtime_ns
    later = [path for path in work.iterdir() if path.stat().st_mtime_ns > second]
    for path in later:  # as if killed after the second round of the second arm
        path.unlink()
    drawn, Counting.drawn = Counting.drawn, 0
    assert run(out, ARMS) == report
    assert all(path.exists() for path in later)
    assert 0 < Counting.drawn < drawn


def test_a_folder_that_lost_its_concepts_is_refused(
    finished: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (lost,) = finished[0].rglob("start-concepts.json")
    concepts = lost.read_bytes()
    lost.unlink()
    try:
        run(finished[0], ARMS, status=2)
    finally:
        lost.write_bytes(concepts)
    assert "start without start-concepts.json" in capsys.readouterr().err
