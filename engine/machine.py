"""Fingerprint of whatever computes: two of the same fingerprint come to the same bits, others may differ in the last.

Knows torch and the processor's features; of a model, where and in what it computes.
"""

from __future__ import annotations

import hashlib
import platform
import re
from functools import cache
from pathlib import Path

import torch

from engine.model import ImageModel

LENGTH = 16  # hexadecimal digits
_CPU_INFO = Path("/proc/cpuinfo")
_FEATURES = re.compile(r"(avx|amx|fma|f16c|sse4|asimd|sve|bf16|i8mm)\w*")  # by which kernels are chosen


def machine_of(model: ImageModel) -> str:
    """Return the fingerprint of what this process computes with, for a model."""
    return fingerprint(model.device, model.facts.dtype)


@cache
def fingerprint(device: torch.device, dtype: str) -> str:
    """Return LENGTH digits that follow from torch's build, the dtype and the GPU or the processor's features."""
    parts = [torch.__version__, str(torch.version.git_version), dtype, device.type]
    if device.type == "cuda":
        parts += [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    else:
        parts += [platform.machine(), torch.backends.cpu.get_cpu_capability(), *processor(_read(_CPU_INFO))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:LENGTH]


def processor_name() -> str:
    """Return what the processor calls itself, and its cache; "" where that is not known."""
    return "\n".join(
        re.findall(r"^(?:model name|cache size)\s*: (.*)$", _read(_CPU_INFO).split("\n\n")[0], re.MULTILINE)
    )


def processor(text: str) -> list[str]:
    """Return the vendor and the sorted features of the first processor in the text of /proc/cpuinfo."""
    first = text.split("\n\n")[0]
    lines = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", first, re.MULTILINE))
    words = (lines.get("flags") or lines.get("Features") or "").split()
    return [lines.get("vendor_id", lines.get("CPU implementer", "")), *sorted(filter(_FEATURES.fullmatch, words))]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""
