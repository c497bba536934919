"""`safecb verify`: the tiny model of each family passes, planted faults fail by name, no reference is no pass."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cli.main import main
from cli.verify import verification
from engine.model import Verdict
from engine.registry import load_model
from engine.runner.served import Served
from engine.unified.served_model import ServedModel
from tests.support.families.builders import BUILDERS
from tests.support.families.tiny_anole import build_tiny_anole

LIMITED = {"loading", "tokens", "logits", "pixel table", "pixels", "first image", "prompts matter"}
LIMITED |= {"batch-invariance", "judge"}
FIGURES = {"speed", "codes that survive", "judge's noise", "memory"}


@pytest.fixture(scope="module")
def anole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_anole(tmp_path_factory.mktemp("anole") / "model")


def verified(folder: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, str], dict[str, Any]]:
    """The exit code, the statuses by check, and the report."""
    code = main(["verify", "--model", str(folder), "--out", str(out), "--json"])
    report = json.loads(capsys.readouterr().out)
    return code, {check["name"]: check["status"] for check in report["checks"]}, report


@pytest.mark.parametrize("family", BUILDERS)
def test_the_tiny_model_of_each_family_passes(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = BUILDERS[family](tmp_path / "ein Modell, für Tests")
    code, statuses, report = verified(folder, tmp_path / "page.html", capsys)
    assert code == 0 and report["verdict"] == "passed" and report["not_measured"] == []
    assert {name for name, status in statuses.items() if status == "passed"} == LIMITED
    assert {name for name, status in statuses.items() if status == "measured"} == FIGURES
    assert report["facts"]["family"] == family and len(report["images"]) == 16
    page = (tmp_path / "page.html").read_text()
    assert page.count("<img") == 16 + 3 and "<script" not in page and "http" not in page
    assert "<strong>Passed</strong>" in page and "All 9 checks" in page


def changed_row(model: ServedModel) -> None:
    model._parts.table.data[5] *= -1


def flipped(model: ServedModel) -> None:
    decode = model.decode
    model.decode = lambda tokens, pixel: decode(tokens.flip(1), pixel)  # type: ignore[method-assign]


def without_the_last_word(model: ServedModel) -> None:
    chat: Any = model._parts.drawing.chat
    tokenize = chat.tokenize
    chat.tokenize = lambda prompt: tokenize(prompt[:-1])


def blind(model: ServedModel) -> None:
    def judge(images: Tensor) -> list[Verdict]:
        return [Verdict((0.5,), "none")] * len(images)

    model.judge = judge  # type: ignore[method-assign]


def brighter_in_company(model: ServedModel) -> None:
    decode = model.decode
    model.decode = lambda tokens, pixel: decode(tokens, pixel) + 1e-6 * len(tokens)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("plant", "failed"),
    [
        (changed_row, ["pixel table", "pixels"]),
        (flipped, ["pixels"]),
        (without_the_last_word, ["tokens", "logits"]),
        (blind, ["judge"]),
        (brighter_in_company, ["batch-invariance"]),
    ],
)
def test_a_planted_fault_fails_by_name(
    plant: Callable[[ServedModel], None],
    failed: Sequence[str],
    anole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def planted(name: str, device: str, dtype: str) -> Served:
        model = load_model(name, device, dtype)
        assert isinstance(model, ServedModel)
        plant(model)
        return model

    monkeypatch.setattr(verification, "load_model", planted)
    code, statuses, report = verified(anole, tmp_path / "page.html", capsys)
    assert code == 1 and report["verdict"] == "failed"
    assert [name for name, status in statuses.items() if status == "failed"] == failed
    assert f"{len(failed)} of 9 checks failed: {', '.join(failed)}." in (tmp_path / "page.html").read_text()


def test_a_weight_that_is_no_number_fails_before_anything_is_drawn(
    anole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = build_tiny_anole(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code, statuses, report = verified(folder, tmp_path / "page.html", capsys)
    assert code == 1 and statuses == {"loading": "failed"}
    assert "up_proj.weight holds NaN" in report["checks"][0]["result"]
    assert "<strong>Failed</strong>" in (tmp_path / "page.html").read_text()


def test_what_cannot_be_compared_is_not_measured_and_never_passed(
    anole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(verification, "run_reference", lambda *arguments: None)
    code, statuses, report = verified(anole, tmp_path / "page.html", capsys)
    parity = ["tokens", "logits", "pixel table", "pixels"]
    assert code == 0 and report["not_measured"] == parity and {statuses[name] for name in parity} == {"not measured"}
    page = (tmp_path / "page.html").read_text()
    assert f"Not measured: {', '.join(parity)}." in page and "All 5 checks" in page


def test_a_page_that_cannot_be_written_and_a_model_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--model", str(tmp_path), "--out", str(tmp_path / "none" / "page.html")]) == 1
    assert "out: " in capsys.readouterr().err
    assert main(["verify", "--model", str(tmp_path), "--out", str(tmp_path / "page.html")]) == 1
    assert "FAULT  loading" in capsys.readouterr().out
