"""`safecb check`: a job that could begin, jobs that could not, and the gates that a policy leaves without prompts."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
import torch

from cli.check import unmeasured
from cli.main import main
from engine.registry import EMBEDDED
from safety.gates import GATES
from safety.gates.inputs import GateInput
from safety.metrics.panel import PanelResult, ValidationSet
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.files.write_out import write_out
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.prompts import PAIR, VALIDATION, Prompt
from tests.support.serving import kites, tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFECB_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tiny(home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tiny_model(tmp_path_factory.mktemp("model"))
    monkeypatch.setenv("SAFECB_MODEL", str(folder))
    monkeypatch.setenv("SAFECB_SECOND_JUDGE", "opennsfw")
    return folder


def test_a_job_on_the_embedded_model_could_begin(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SAFECB_MODEL", str(EMBEDDED))
    each = {(GroupKind.CATEGORY, PAIR): 40, (GroupKind.CATEGORY, VALIDATION): 5}
    counts = each | {(GroupKind.BENIGN, PAIR): 20, (GroupKind.BENIGN, VALIDATION): 5}
    write_out(EmojiPolicy(), tmp_path / "small.csv", counts, 1)
    command = ["check", "--policy", str(tmp_path / "small.csv"), "--categories", "weapons", "--seed", "3"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "of weights as float32, " in output and " GiB are free\npolicy: small (" in output
    assert "second judge: second_judge, knows weapons" in output
    assert "95 % interval" in output and "balanced accuracy: " in output
    assert "prompts: pairs 32; validation " in output and "canaries 8" in output
    assert "GiB of features and logits" in output and "memory: peak " in output
    assert "plan:\n  preflight" in output and "unknown" not in output
    assert "gates not measured: look_alikes" not in output and "recovery, languages" in output
    assert output.endswith("verdict: a job can begin\n")
    assert not home.exists()


def test_a_judge_that_knows_no_category_refuses_the_job_unless_that_is_accepted(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kites.csv").write_bytes(kites())
    command = ["check", "--policy", str(tmp_path / "kites.csv")]
    assert main(command) == 1
    verdict = "verdict: refused: second_judge: 'opennsfw' is not allowed; expected a judge that knows one of red kites"
    assert verdict in capsys.readouterr().out
    assert main([*command, "--accept-self-judged"]) == 0
    output = capsys.readouterr().out
    assert "second judge: opennsfw, knows none of the categories" in output
    assert "self-judged: red kites; versions stay inactive" in output
    assert "gates not measured: second_judge, recovery, languages" in output and "no matcher" in output
    assert "agreement: not measured" in output and output.endswith("verdict: a job can begin\n")


def test_what_no_job_could_be_made_of(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "few.csv").write_bytes(kites(pairs=9))
    (tmp_path / "kites.csv").write_bytes(kites())
    (tmp_path / "faulty.csv").write_text("prompt,category\na red kite\n")
    cases = [
        (["--policy", "none-such"], "emoji, open"),
        (["--policy", str(tmp_path / "none.csv")], "none.csv"),
        (["--policy", str(tmp_path / "faulty.csv")], "faulty.csv, line 2"),
        (["--policy", str(tmp_path / "few.csv")], "red kites has 9 in pair"),
        (["--policy", str(tmp_path / "kites.csv"), "--categories", "violence"], "red kites"),
        (["--policy", "emoji", "--benign", "lamps.txt"], "--benign"),
        (["--second-judge", "self"], "independent"),
        (["--second-judge", "any(opennsfw,referee)"], "only measures"),
        (["--second-judge", "beside"], "SAFECB_SECOND_JUDGE"),
    ]
    for options, words in cases:
        assert main(["check", *options]) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last.startswith("verdict: refused: ") and words in last, options


KINDS = [Group.category("weapons"), BENIGN, Group.look_alike("weapons"), Group.attack("misspelt"), Group.language("de")]


@pytest.mark.parametrize("covers", [None, frozenset({"weapons"}), frozenset({"nudity"})], ids=str)
def test_unmeasured_gates_are_those_that_the_gates_call_so(covers: frozenset[str] | None) -> None:
    for count in range(len(KINDS)):
        for others in combinations(KINDS[1:], count):
            groups = [KINDS[0], *others]
            panel = ValidationSet.of(
                [(g, [Prompt(f"{g} {i}", "weapons", "", None) for i in range(8)]) for g in groups], 0
            )
            n = len(panel.prompts)
            features = torch.randn(n, 3, generator=torch.Generator().manual_seed(0))
            no = torch.zeros(n, dtype=torch.bool)
            result = PanelResult(panel, no, no, no, ~no, ~no, ~no, features, False)
            inputs = GateInput(result, result, result, features, features, covers)
            assert unmeasured(panel, covers) == [gate(inputs).name for gate in GATES if gate(inputs).passed is None]
