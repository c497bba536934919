"""How many rows fit a device: planned once at the start, so that serving never runs out of memory."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from codebook.errors import BadModel

GIB = 2**30
DECODING = 4 * GIB  # what decoding, judging and reading prompts may take beside the rows on a GPU
ON_CPU, ON_GPU = 32, 256  # rows beyond which a step gets longer as fast as it gets wider
CGROUP = Path("/sys/fs/cgroup")


def planned_rows(device: torch.device, row_bytes: int) -> int:
    """How many rows of `row_bytes` to reserve on a device that holds the weights already. Raises BadModel."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return fitting(int(0.9 * free) - DECODING, row_bytes, ON_GPU)
    return fitting(available(CGROUP) // 2, row_bytes, ON_CPU)


def available(cgroup: Path) -> int:
    """Bytes that this process may still take: what the machine has, or what a container's limit leaves."""
    machine = int(psutil.virtual_memory().available)
    try:
        limit, used = ((cgroup / name).read_text(encoding="ascii").strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return machine
    return machine if limit == "max" else max(0, min(machine, int(limit) - int(used)))


def fitting(free: int, row_bytes: int, most: int) -> int:
    """An even number of rows, at most `most`, that fit `free` bytes. Raises BadModel where not even two do."""
    rows = min(most, free // row_bytes) // 2 * 2
    if rows < 2:
        raise BadModel(
            f"one image under guidance takes {2 * row_bytes / GIB:.2f} GiB beside the weights; "
            f"{max(0, free) / GIB:.2f} GiB are free for it"
        )
    return rows
