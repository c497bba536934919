"""Memory before loading: what a checkpoint will take is compared with what is free, and too little is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from core.errors import BadModel
from engine.registry import check_model, find_family, load_model
from engine.runner.memory import GIB, least_free, planned_rows
from engine.weights.memory import Footprint, footprint
from tests.support.tiny import build_tiny

CPU, GPU = torch.device("cpu"), torch.device("cuda")
BIG = Footprint(floats=8 * GIB, others=0, kv_numbers=GIB // 4, device=CPU, dtype=torch.float32)


def free(monkeypatch: pytest.MonkeyPatch, machine: int, gpu: int = 0) -> None:
    monkeypatch.setattr("engine.runner.memory.available", lambda _: machine)
    monkeypatch.setattr("engine.weights.memory.available", lambda _: machine)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda _: (gpu, gpu))


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_least_that_must_be_free_is_that_of_the_planned_rows(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    least = least_free(device, 2 * 10**8)
    free(monkeypatch, least, least)
    assert planned_rows(device, 10**8) == 2
    free(monkeypatch, least - 2, least - 2)
    with pytest.raises(BadModel, match="one image under guidance"):
        planned_rows(device, 10**8)


def test_a_model_that_does_not_fit_is_refused_with_both_numbers_and_what_would_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free(monkeypatch, 36 * GIB)
    assert BIG.check(Path("m")) == (
        "32.00 GiB of weights as float32, 2.00 GiB of KV rows an image under guidance; 36.00 GiB are free"
    )
    free(monkeypatch, 36 * GIB - 1)
    with pytest.raises(BadModel, match=r"m: 32.00 GiB of weights as float32, .*36.00 GiB must be free on the machine"):
        BIG.check(Path("m"))
    with pytest.raises(BadModel, match=r"and 36.00 GiB are; SAFECB_DTYPE=bfloat16 takes 18.00 GiB, which fits"):
        BIG.check(Path("m"))
    free(monkeypatch, 17 * GIB)
    with pytest.raises(BadModel, match=r"takes 18.00 GiB, which is too much too: a smaller model does, or more memory"):
        BIG.check(Path("m"))
    with pytest.raises(BadModel, match=r"and 17.00 GiB are; a smaller model does"):
        replace(BIG, dtype=torch.bfloat16).check(Path("m"))


def test_on_the_way_to_a_gpu_weights_pass_through_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    big = replace(BIG, device=GPU, dtype=torch.bfloat16)
    free(monkeypatch, machine=17 * GIB, gpu=80 * GIB)
    assert big.check(Path("m")).endswith("80.00 GiB are free")
    free(monkeypatch, machine=15 * GIB, gpu=80 * GIB)
    with pytest.raises(BadModel, match=r"16.00 GiB must be free on the machine, which weights pass"):
        big.check(Path("m"))
    free(monkeypatch, machine=17 * GIB, gpu=20 * GIB)
    with pytest.raises(BadModel, match=r"21.56 GiB must be free on the GPU, and 20.00 GiB are"):
        big.check(Path("m"))


def test_nothing_of_a_model_that_does_not_fit_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(build_tiny(tmp_path))
    family = find_family(tmp_path)
    weighed = footprint(tmp_path, family.FOLDERS, family.kv_numbers(tmp_path), CPU, torch.float32)
    assert 0 <= sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) - weighed.weights < 2**16
    free(monkeypatch, weighed.least)
    assert "of weights as float32" in check_model(name, "cpu", "float32")
    free(monkeypatch, weighed.least - 1)
    monkeypatch.setattr(family, "load", None)
    for use in (load_model, check_model):
        with pytest.raises(BadModel, match="must be free on the machine"):
            use(name, "cpu", "float32")
