"""Peak memory of this process and of its GPU, from a moment on.

Knows the kernel's files. Knows nothing of models.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch

from cli.plans import GIB
from cli.verify.checks import Check, measured
from engine.runner.served import Served

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> None:
    """Let the peak begin now; where the kernel cannot, it counts from the start of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")
    except OSError:  # not Linux, or not allowed
        return


def memory_check(model: Served) -> Check:
    """The peak so far, and the KV rows that a server would reserve."""
    process = _peak() / GIB
    gpu = torch.cuda.max_memory_allocated() / GIB if model.device.type == "cuda" else 0.0
    rows = model.kv_rows()
    words = f"peak {process:.2f} GiB" + (f", {gpu:.2f} GiB on the GPU" if gpu else "")
    words += f"; a server would have room for {rows // 2} guided images"
    return measured("memory", words, process_gib=process, gpu_gib=gpu, kv_rows=rows)


def _peak() -> int:
    """Bytes of this process at its peak."""
    try:
        match = re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is not None:
        return int(match.group(1)) * 1024
    # macOS counts bytes, Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
