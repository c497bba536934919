"""How many rows fit a device: planned once at the start, so that serving never runs out of memory."""

from __future__ import annotations

import os

import torch

from codebook.errors import BadModel

GIB = 2**30
DECODING = 2 * GIB  # what decoding and judging may take beside the rows on a GPU
ON_CPU, ON_GPU = 32, 256  # rows beyond which a step gets longer as fast as it gets wider


def planned_rows(device: torch.device, row_bytes: int) -> int:
    """How many rows of `row_bytes` to reserve on a device that holds the weights already. Raises BadModel."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return fitting(int(0.9 * free) - DECODING, row_bytes, ON_GPU)
    return fitting(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2, row_bytes, ON_CPU)


def fitting(free: int, row_bytes: int, most: int) -> int:
    """An even number of rows, at most `most`, that fit `free` bytes. Raises BadModel where not even two do."""
    rows = min(most, free // row_bytes) // 2 * 2
    if rows < 2:
        raise BadModel(
            f"one image under guidance takes {2 * row_bytes / GIB:.2f} GiB beside the weights; "
            f"{max(0, free) / GIB:.2f} GiB are free for it"
        )
    return rows
