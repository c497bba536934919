"""Fingerprints of machines: what changes the last bits changes them, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from engine.machine import LENGTH, fingerprint, machine_of, processor
from tests.support.toy_model import ToyModel

ZEN4 = """processor\t: 0
vendor_id\t: AuthenticAMD
model name\t: AMD EPYC 9R14
cpu MHz\t\t: 3700.1
flags\t\t: fpu sse4_1 avx avx2 fma avx512f avx512_bf16 rdrand

processor\t: 1
vendor_id\t: AuthenticAMD
flags\t\t: other
"""
GRAVITON = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU implementer\t: 0x41\n"


def test_one_machine_has_one_fingerprint_for_each_dtype() -> None:
    cpu = torch.device("cpu")
    assert fingerprint(cpu, "float32") == fingerprint(cpu, "float32") != fingerprint(cpu, "bfloat16")
    assert len(fingerprint(cpu, "float32")) == LENGTH


def test_the_fingerprint_is_of_where_the_model_computes() -> None:
    """Its codebook lies on the CPU wherever that is."""
    model = ToyModel()
    here = machine_of(model)
    model.device = torch.device("meta")
    assert machine_of(model) == fingerprint(model.device, model.facts.dtype) != here


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (ZEN4, ["AuthenticAMD", "avx", "avx2", "avx512_bf16", "avx512f", "fma", "sse4_1"]),
        (GRAVITON, ["0x41", "asimd", "bf16", "i8mm", "sve"]),
        ("", [""]),
    ],
)
def test_a_processor_is_its_vendor_and_the_features_of_kernels(text: str, parts: list[str]) -> None:
    assert processor(text) == parts


def test_clock_rates_change_nothing() -> None:
    assert processor(ZEN4.replace("3700.1", "1200.9")) == processor(ZEN4)
    assert processor(ZEN4.replace("avx512_bf16 ", "")) != processor(ZEN4)
