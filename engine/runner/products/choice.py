"""Choice between packed weights and half weights, by measuring both on this processor for each number of rows.

The bits are the same either way, so the choice may differ between machines, and from start to start. Knows linear
layers; knows no model.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from core.atomic import read_file, replace_file
from core.errors import NoStorage
from core.json_records import from_json, to_json
from engine.machine import fingerprint, processor_name
from engine.runner.linear import Linear

BUCKETS = (2, 8, 16, 32)  # numbers of rows that are measured, each for those down to the one before
TURNS = 3
REMEMBERED = 16  # choices that a file holds


def choose_products(linears: Sequence[Linear], memory: Path | None = None) -> tuple[int, ...]:
    """Choose for layers that are multiplied one after the other; return the buckets in which half weights are faster.

    memory: as `remembered` takes it.
    """
    choosers = [linear for linear in linears if linear.half is not None]
    if not choosers:
        return ()
    sizes = [(linear.inputs, linear.outputs) for linear in choosers]
    chosen = remembered(memory, sizes, lambda rows: _gains(choosers, rows))
    for linear in choosers:
        linear.half_rows = rows_of(chosen)
    return chosen


def remembered(memory: Path | None, subject: object, gains: Callable[[int], bool]) -> tuple[int, ...]:
    """Return the buckets in which something gains: as a file of choices says, or else as it is measured now.

    memory: the file; without one, and where it cannot be read or written, all is measured. subject: what is chosen
    for, by its repr.
    """
    key, known = _key(subject), {} if memory is None else _read(memory)
    chosen = known.get(key)
    if chosen is None:
        chosen = tuple(rows for rows in BUCKETS if gains(rows))
        if memory is not None:
            with suppress(OSError, NoStorage):
                latest = dict([*known.items(), (key, chosen)][-REMEMBERED:])
                replace_file(memory, to_json("products", latest, indent=2))
    return chosen


def rows_of(buckets: Container[int]) -> frozenset[int]:
    """The numbers of rows in these buckets."""
    return frozenset(rows for rows in range(1, BUCKETS[-1] + 1) if BUCKETS[bisect_left(BUCKETS, rows)] in buckets)


def _gains(linears: Sequence[Linear], rows: int) -> bool:
    """Whether half weights are faster for so many rows: by the least of TURNS times each, in turn.

    One layer after another as in a step, so that each product finds its weights where a step finds them.
    """
    noise = {inputs: torch.randn(rows, inputs) for inputs in {linear.inputs for linear in linears}}
    ways = [(linear.packed, linear.half, noise[linear.inputs]) for linear in linears if linear.half is not None]
    packed_s, half_s = [], []
    with torch.inference_mode():
        for _ in range(TURNS):
            packed_s.append(seconds([partial(packed, x) for packed, _, x in ways]))
            half_s.append(seconds([partial(half, x) for _, half, x in ways]))
    return min(half_s) < min(packed_s)


def seconds(products: Sequence[Callable[[], Tensor]]) -> float:
    """CPU time of the products: what runs beside this process takes none of it."""
    began = time.thread_time()
    for product in products:
        product()
    return time.thread_time() - began


def _key(subject: object) -> str:
    """What a choice depends on: torch, the processor, the number of threads and what is chosen for."""
    parts = fingerprint(torch.device("cpu"), "float32"), processor_name(), torch.get_num_threads(), subject, BUCKETS
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _read(memory: Path) -> dict[str, tuple[int, ...]]:
    """The choices in a file: as far as they are such."""
    try:
        choices = from_json(read_file(memory))
    except (OSError, ValueError, NoStorage):
        return {}
    return {
        key: tuple(rows)
        for key, rows in choices.items()
        if isinstance(rows, list) and all(each in BUCKETS for each in rows)
    }
