"""Products of any number of rows: few sizes, nothing left to keep once they are warm, and one result in every way."""

from __future__ import annotations

import os
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from app.background.heap import ONE_HEAP
from engine.runner.linear import Linear, can_pack
from engine.runner.products import choice
from engine.runner.products.choice import BUCKETS, REMEMBERED, choose_products
from engine.runner.products.half import half_product
from engine.runner.products.padding import BFLOAT16, FLOAT32, LARGEST, _cancelling, equal_sizes

# What malloc counts as in use, in MB, by which products of 1 to N rows make it grow, warm for N rows or cold.
GROWTH = """
import ctypes, sys
import torch
from torch import Tensor, nn
from engine.runner.linear import Linear

class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Mallinfo
linear = Linear([nn.Linear(64, 128)])
with torch.inference_mode():
    linear(torch.zeros(1, 64))
    if sys.argv[1] == "warm":
        linear.warm(int(sys.argv[2]))
    before = mallinfo()
    for rows in range(1, int(sys.argv[2]) + 1):
        linear(torch.zeros(rows, 64))
    after = mallinfo()
print((after.uordblks + after.hblkhd - before.uordblks - before.hblkhd) / 1e6)
"""


def growth(how: str, rows: int) -> float:
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, how, str(rows)],
        env=os.environ | ONE_HEAP,
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


@pytest.mark.skipif(
    sys.platform != "linux" or not can_pack(torch.zeros(1, 1)), reason="only oneDNN keeps something; glibc counts it"
)
def test_a_warm_product_keeps_nothing_more_whatever_is_multiplied() -> None:
    assert growth("cold", 600) > 5
    assert growth("warm", 600) < 0.5
    assert growth("warm", 21) < 0.5


def test_padding_adds_less_than_a_half_and_nothing_to_guided_images() -> None:
    sizes = FLOAT32
    for rows in range(1, sizes[-1] + 1):
        size = sizes[bisect_left(sizes, rows)]
        assert size == rows + rows % 2 if rows <= 32 else size < 1.5 * rows


def half_layer(inputs: int, outputs: int, biased: bool = False) -> nn.Linear:
    """A layer whose weights float16 holds exactly."""
    layer = nn.Linear(inputs, outputs, biased)
    layer.weight.data = layer.weight.data.half().float()
    return layer


def linear_of(inputs: int, outputs: int, biased: bool = False) -> Linear:
    return Linear([half_layer(inputs, outputs, biased)])


needs_half = pytest.mark.skipif(linear_of(384, 64).half is None, reason="one way of multiplying alone")


@needs_half
@pytest.mark.parametrize("biased", [False, True])
def test_half_weights_change_no_bit(biased: bool) -> None:
    linear = linear_of(384, 1152, biased)
    x = torch.randn(65, 384)
    x[3] = torch.nan
    with torch.inference_mode():
        right = linear(x)
        linear.half_rows = range(1, 66)
        for threads in (2, 1):
            torch.set_num_threads(threads)
            for rows in range(1, 66):
                assert torch.equal(linear(x[:rows]).nan_to_num(7.0), right[:rows].nan_to_num(7.0))
        assert torch.equal(linear(x[5:].view(2, 30, 384)), right[5:].view(2, 30, -1))


@needs_half
def test_half_weights_are_there_where_they_have_the_same_bits_alone() -> None:
    assert linear_of(384, 64).half is not None
    assert linear_of(1024, 8).half is None  # another order of sums
    assert Linear([nn.Linear(384, 64)]).half is None
    assert Linear([nn.Linear(384, 64, dtype=torch.bfloat16)]).half is None


@needs_half
def test_half_weights_that_differ_in_a_bit_of_one_number_are_not_used() -> None:
    weight, linear = (layer := half_layer(384, 64)).weight.detach(), Linear([layer])
    assert half_product(weight, None, linear.packed) is not None
    for row in (0, 4, 31):

        def nudged(x: Tensor, row: int = row) -> Tensor:
            product = linear.packed(x)
            product[row, 3] = torch.nextafter(product[row, 3], product[row, 3] + 1)
            return product

        assert half_product(weight, None, nudged) is None


@needs_half
def test_a_choice_is_remembered_by_processor_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, memory = list[int](), tmp_path / "products.json"

    def gains(linears: list[Linear], rows: int) -> bool:
        measured.append(rows)
        return rows in (8, 16)

    monkeypatch.setattr(choice, "_gains", gains)

    def chosen(outputs: int) -> set[int]:
        linears = [linear_of(64, outputs), linear_of(1024, 8)]
        assert choose_products(linears, memory) == (8, 16)
        assert not any(rows in linears[1].half_rows for rows in range(99))
        return {rows for rows in range(99) if rows in linears[0].half_rows}

    for _ in range(2):
        assert chosen(64) == set(range(3, 17)) and measured == [*BUCKETS]
    assert chosen(128) and measured == [*BUCKETS] * 2  # other sizes
    for spoilt in (
        b"{",
        b"[]",
        memory.read_bytes().replace(b" 16", b" 17"),
        memory.read_bytes().replace(b" 8", b" [8]"),
    ):
        memory.write_bytes(spoilt)
        measured.clear()
        assert chosen(64) and chosen(64) and measured == [*BUCKETS]
    monkeypatch.setattr(choice, "processor_name", lambda: "another one")
    assert chosen(64) and measured == [*BUCKETS] * 2
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    assert chosen(64) and chosen(64) and measured == [*BUCKETS] * 3
    for outputs in range(128, 128 + 64 * 2 * REMEMBERED, 64):
        assert chosen(outputs)
    measured.clear()
    assert chosen(outputs) and not measured and len(choice._read(memory)) == REMEMBERED
    assert choose_products([linear_of(64, 64)], tmp_path / "none" / "products.json") == (8, 16)


@needs_half
def test_the_slower_way_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, slow = linear_of(64, 64), [1.0]
    monkeypatch.setattr(choice, "seconds", lambda products: 1.0 if products[0].func == linear.packed else slow[0])
    for factor, chosen in ((0.5, BUCKETS), (1.0, ()), (2.0, ())):
        slow[0] = factor
        assert choose_products([linear]) == chosen


def test_bfloat16_is_padded_to_numbers_of_rows_of_one_order_alone() -> None:
    x, row = _cancelling(384)
    weight = row.expand(8, -1)

    def by_blocks(width: int) -> Callable[[Tensor], Tensor]:
        blocks = torch.split(weight, width, 1)
        return lambda part: sum(
            (x @ block.T for x, block in zip(torch.split(part, width, 1), blocks, strict=True)), torch.zeros(())
        )

    one, other = by_blocks(16), by_blocks(32)
    assert equal_sizes(one, x) == BFLOAT16
    assert equal_sizes(lambda part: (other if len(part) in (2, 16) else one)(part).bfloat16(), x) == (4, 8, LARGEST)
