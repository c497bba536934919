"""KV rows that fit a device, planned once at the start, so that serving never runs out of memory."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import psutil
import torch

from core.errors import BadModel

GIB = 2**30
RESERVE = 4 * GIB  # of a GPU, for prefill, decoding and judging beside the KV rows
SHARE_OF_CPU, SHARE_OF_GPU = 0.5, 0.9  # of what is free beside the weights, for the KV rows; of a GPU less RESERVE
MAX_ROWS_ON_CPU, MAX_ROWS_ON_GPU = 32, 256  # beyond, a step takes longer in proportion to its rows
CGROUP = Path("/sys/fs/cgroup")
LIMITS = (  # of cgroup v2 and v1: the files of the limit, the usage and its parts; and the part that is file cache
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def planned_rows(device: torch.device, row_bytes: int) -> int:
    """Number of KV rows of `row_bytes` to reserve on a device that holds the weights already. Raises BadModel."""
    free = free_bytes(device)
    if device.type == "cuda":
        return fitting(int(SHARE_OF_GPU * free) - RESERVE, row_bytes, MAX_ROWS_ON_GPU)
    return fitting(int(SHARE_OF_CPU * free), row_bytes, MAX_ROWS_ON_CPU)


def least_free(device: torch.device, kv_bytes: int) -> int:
    """Free bytes of a device that holds the weights, with which planned_rows finds room for KV rows of `kv_bytes`."""
    if device.type == "cuda":
        return math.ceil((kv_bytes + RESERVE) / SHARE_OF_GPU)
    return math.ceil(kv_bytes / SHARE_OF_CPU)


def free_bytes(device: torch.device) -> int:
    """Bytes that are free on a device."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available(CGROUP)


def available(cgroup: Path) -> int:
    """Bytes that this process may still take: the machine's free memory, or less under a container's limit.

    File cache that the kernel takes back on demand counts as free, as it does in the machine's own figure.
    """
    return min(int(psutil.virtual_memory().available), *(_left(cgroup, *names) for names in LIMITS))


def _left(cgroup: Path, limit: str, usage: str, stat: str, cache: str) -> int:
    """Bytes below the limit that these files state; without them, or without a limit, more than any machine has."""
    most = _read(cgroup / limit)
    if not most.isdecimal():
        return sys.maxsize
    fields = dict(line.split(maxsplit=1) for line in _read(cgroup / stat).splitlines())
    return max(0, int(most) - max(0, int(_read(cgroup / usage) or 0) - int(fields.get(cache, 0))))


def _read(path: Path) -> str:
    """The text of a file of the kernel; empty where there is none."""
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def fitting(free: int, row_bytes: int, limit: int) -> int:
    """An even number of KV rows, at most `limit`, that fit `free` bytes. Raises BadModel where not even two do."""
    kv_rows = min(limit, free // row_bytes) // 2 * 2
    if kv_rows < 2:
        raise BadModel(
            f"one image under guidance takes {2 * row_bytes / GIB:.2f} GiB beside the weights; "
            f"{max(0, free) / GIB:.2f} GiB are free for it"
        )
    return kv_rows
