"""The kernels of engine/runner/kernels against torch: on a GPU if there is one, else in Triton's interpreter."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model import Sampling
from engine.runner import kernels
from engine.runner.kernels import gemm
from engine.runner.sampling import CfgRows, apply_cfg, floors, gumbel
from tests.support.draws import draws_of

GPU = torch.cuda.is_available()
DEVICE, KIND = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
TOLERANCE = 3e-2 if GPU else 1e-4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def near(result: Tensor, expected: Tensor) -> None:
    assert result.dtype == KIND
    torch.testing.assert_close(result.float(), expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.skipif(GPU, reason="a GPU compiles them itself")
def test_all_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled"],
        env=environ | {"TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    sources = [path.read_text(encoding="utf-8") for path in Path(kernels.__file__).parent.glob("*.py")]
    launched = re.findall(r"^ +(_\w+)\[", "\n".join(sources), re.MULTILINE)
    assert set(done.stdout.split()) == set(launched) != set()


def some(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, KIND)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_products(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "_tile", lambda *sizes: gemm.Tile(16, 16, 64, 2, 4))
    x, weight, bias, residual = some(rows, 160), some(44, 160, scale=0.1), some(44), some(rows, 44)
    wide = [t.float() for t in (x, weight, bias, residual)]
    near(kernels.multiply(x, weight, None, None), F.linear(wide[0], wide[1]))
    near(kernels.multiply(x, weight, bias, residual), F.linear(wide[0], wide[1], wide[2]) + wide[3])
    gate, up = F.linear(wide[0], wide[1]).chunk(2, -1)
    near(kernels.gated(x, weight), F.silu(gate) * up)


@pytest.mark.parametrize("limit", [4096, 0])
def test_every_tile_sums_in_the_same_order(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "CHAIN_LIMIT", limit)
    x, weight = some(300, 700), some(64, 700, scale=0.1)
    many = kernels.multiply(x, weight, None, None)
    near(many, x.float() @ weight.float().T)
    for rows in (1, 3, 40, 200):
        few = kernels.multiply(x[:rows], weight, None, None)
        if GPU:
            assert torch.equal(many[:rows], few)
        else:  # the interpreter multiplies as numpy does
            torch.testing.assert_close(many[:rows], few)


def test_norms() -> None:
    x, gain, image = some(3, 2, 96), some(96), some(1, 64, 90, 70) + 3.0
    near(kernels.rms_norm(x, gain, 1e-5), F.rms_norm(x.float(), (96,), gain.float(), 1e-5))
    weight, bias = some(64), some(64)
    right = F.group_norm(image.float(), 4, weight.float(), bias.float(), 1e-6)
    near(kernels.group_norm(image, 4, weight, bias, 1e-6), right)


def test_decode_attention() -> None:
    rows, heads, kv_heads, width, positions = 5, 4, 2, 32, 720
    qkv = some(rows, heads + 2 * kv_heads, width)
    keys, values = some(rows + 1, kv_heads, positions, width), some(rows + 1, kv_heads, positions, width)
    cos, sin = some(positions, width), some(positions, width)
    lengths = torch.tensor([0, 64, 719, 7, 128, 9], device=DEVICE)
    right_keys, right_values, right = keys.float().clone(), values.float().clone(), []
    for row, length in enumerate(lengths[:rows].tolist()):
        own = qkv[row].float()
        first, second = own[:-kv_heads].chunk(2, -1)
        rotated = own[:-kv_heads] * cos[length].float() + torch.cat([-second, first], -1) * sin[length].float()
        right_keys[row, :, length], right_values[row, :, length] = rotated[heads:], own[-kv_heads:]
        key, value = (all_[row, :, : length + 1].repeat_interleave(2, 0) for all_ in (right_keys, right_values))
        right.append(F.scaled_dot_product_attention(rotated[:heads, None], key, value).flatten())
    near(kernels.attend(qkv, keys, values, lengths, cos, sin), torch.stack(right))
    near(keys, right_keys)
    near(values, right_values)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (6, 6)])
def test_rotary_embedding_and_cache_write_of_a_prompt(heads: int, kv_heads: int) -> None:
    rows, count, width, positions = 3, 5, 32, 48
    qkv = some(rows, count, heads + 2 * kv_heads, width)
    keys, values = some(rows + 1, kv_heads, positions, width), some(rows + 1, kv_heads, positions, width)
    cos, sin = some(positions, width), some(positions, width)
    lengths = torch.tensor([0, 17, 43, 9], device=DEVICE)
    right_keys, right_values, right = keys.float().clone(), values.float().clone(), torch.empty(3, 5, heads, 32)
    for row, length in enumerate(lengths[:rows].tolist()):
        at = slice(length, length + count)
        first, second = qkv[row, :, :-kv_heads].float().chunk(2, -1)
        rotated = qkv[row, :, :-kv_heads].float() * cos[at, None].float()
        rotated += torch.cat([-second, first], -1) * sin[at, None].float()
        right[row], right_keys[row, :, at] = rotated[:, :heads], rotated[:, heads:].transpose(0, 1)
        right_values[row, :, at] = qkv[row, :, -kv_heads:].float().transpose(0, 1)
    near(kernels.rotary(qkv, keys, values, lengths, cos, sin), right.to(DEVICE))
    near(keys, right_keys)
    near(values, right_values)


def test_samples_are_those_of_the_reference() -> None:
    samplings = [Sampling(5), Sampling(7, temperature=0.0), Sampling(2**63 + 5, temperature=3.0), Sampling(9)]
    logits, draws = torch.randn(4, 3000, device=DEVICE), draws_of(samplings, 3000, DEVICE)
    for step in range(40):
        steps = torch.full((4,), step, device=DEVICE)
        noise = torch.where(draws.temperature > 0, draws.temperature * gumbel(draws.seeds, steps, 3000), 0.0)
        drawn = kernels.sample(logits, draws.seeds, steps, draws.temperature, torch.full((4, 1), -torch.inf).to(DEVICE))
        assert torch.equal(drawn, (logits + noise).argmax(1))


def test_floors_are_those_of_the_reference() -> None:
    samplings = [Sampling(1), Sampling(1, temperature=0.0, top_p=0.5), Sampling(1, top_k=2999), Sampling(1, top_k=3000)]
    samplings += [Sampling(1, 2.0, heat, k, p) for heat in (0.7, 3.0) for k in (0, 1, 50) for p in (1e-9, 0.4, 0.96)]
    logits, draws = torch.randn(len(samplings), 3000, device=DEVICE), draws_of(samplings, 3000, DEVICE)
    logits[5:] = (4 * logits[5:]).round() / 4  # with equal ones, and zeros of both signs
    result = kernels.floors(logits, draws.temperature, draws.top_k, draws.top_p)
    assert torch.equal(result, floors(logits, draws))
    steps = torch.full((len(samplings),), 7, device=DEVICE)
    drawn = kernels.sample(logits, draws.seeds, steps, draws.temperature, result)
    assert bool((logits.gather(1, drawn[:, None]) >= result).all())


@pytest.mark.fault("F01")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_sample_of_bad_logits_is_a_code_all_the_same(bad: float) -> None:
    """A code past the last would end the process, and every image with it; the image's own sum says that it is bad."""
    draws, steps = draws_of([Sampling(5), Sampling(7, temperature=0.0)], 1100, DEVICE), torch.zeros(2, device=DEVICE)
    logits = torch.full((2, 1100), bad, device=DEVICE)
    least = kernels.floors(logits, draws.temperature, draws.top_k + 9, draws.top_p - 0.1)
    drawn = kernels.sample(logits, draws.seeds, steps.long(), draws.temperature, least)
    assert bool(((drawn >= 0) & (drawn < 1100)).all())
    mixed = torch.randn(2, 1100, device=DEVICE).index_fill(1, torch.arange(1000, 1100, device=DEVICE), torch.nan)
    nothing = torch.full((2, 1), -torch.inf, device=DEVICE)
    assert bool((kernels.sample(mixed, draws.seeds, steps.long(), draws.temperature, nothing) < 1000).all())


def test_guidance_is_that_of_the_reference() -> None:
    logits = torch.randn(5, 3000, device=DEVICE)
    conditional, unconditional = torch.tensor([0, 3, 2], device=DEVICE), torch.tensor([1, 3, 4], device=DEVICE)
    scales = torch.tensor([[2.0], [1.0], [3.5]], device=DEVICE)
    result = kernels.apply_cfg(logits, conditional, unconditional, scales)
    right = apply_cfg(logits.cpu(), CfgRows(conditional.cpu(), unconditional.cpu(), scales.cpu()))
    torch.testing.assert_close(result.cpu(), right)
    assert torch.equal(result[1], logits[3])  # without guidance, to the last bit
