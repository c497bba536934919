"""The kernels of engine/runner/kernels.py, beside torch: on a GPU if there is one, else run by Triton's interpreter."""

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
from engine.runner.sampling import CfgRows, apply_cfg, gumbel
from tests.support.draws import draws_of

GPU = torch.cuda.is_available()
DEVICE, KIND = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)
TOLERANCE = 3e-2 if GPU else 1e-4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def near(found: Tensor, wanted: Tensor) -> None:
    assert found.dtype == KIND
    torch.testing.assert_close(found.float(), wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.skipif(GPU, reason="a GPU compiles them itself")
def test_all_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    asked = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.compiled"],
        env=asked | {"TRITON_CACHE_DIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    launched = re.findall(r"^ +(_\w+)\[", Path(kernels.__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert set(done.stdout.split()) == set(launched) != set()


def some(*shape: int, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape) * scale).to(DEVICE, KIND)


@pytest.mark.parametrize("rows", [1, 3, 17])
def test_products(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_tile", lambda *sizes: kernels.Tile(16, 16, 64, 2, 4))
    x, weight, bias, plus = some(rows, 160), some(44, 160, scale=0.1), some(44), some(rows, 44)
    wide = [t.float() for t in (x, weight, bias, plus)]
    near(kernels.multiply(x, weight, None, None), F.linear(wide[0], wide[1]))
    near(kernels.multiply(x, weight, bias, plus), F.linear(wide[0], wide[1], wide[2]) + wide[3])
    gate, up = F.linear(wide[0], wide[1]).chunk(2, -1)
    near(kernels.gated(x, weight), F.silu(gate) * up)


@pytest.mark.parametrize("narrow", [4096, 0])
def test_every_tile_sums_in_the_same_order(narrow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "CHAIN_LIMIT", narrow)
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
    wanted = F.group_norm(image.float(), 4, weight.float(), bias.float(), 1e-6)
    near(kernels.group_norm(image, 4, weight, bias, 1e-6), wanted)


def test_one_token_attends() -> None:
    rows, heads, kept, width, places = 5, 4, 2, 32, 720
    asked = some(rows, heads + 2 * kept, width)
    keys, values = some(rows + 1, kept, places, width), some(rows + 1, kept, places, width)
    cos, sin = some(places, width), some(places, width)
    lengths = torch.tensor([0, 64, 719, 7, 128, 9], device=DEVICE)
    wanted_keys, wanted_values, wanted = keys.float().clone(), values.float().clone(), []
    for row, length in enumerate(lengths[:rows].tolist()):
        own = asked[row].float()
        first, second = own[:-kept].chunk(2, -1)
        turned = own[:-kept] * cos[length].float() + torch.cat([-second, first], -1) * sin[length].float()
        wanted_keys[row, :, length], wanted_values[row, :, length] = turned[heads:], own[-kept:]
        key, value = (all_[row, :, : length + 1].repeat_interleave(2, 0) for all_ in (wanted_keys, wanted_values))
        wanted.append(F.scaled_dot_product_attention(turned[:heads, None], key, value).flatten())
    near(kernels.attend(asked, keys, values, lengths, cos, sin), torch.stack(wanted))
    near(keys, wanted_keys)
    near(values, wanted_values)


@pytest.mark.parametrize(("heads", "kept"), [(4, 2), (6, 6)])
def test_tokens_of_a_prompt_are_turned_and_kept(heads: int, kept: int) -> None:
    rows, count, width, places = 3, 5, 32, 48
    asked = some(rows, count, heads + 2 * kept, width)
    keys, values = some(rows + 1, kept, places, width), some(rows + 1, kept, places, width)
    cos, sin = some(places, width), some(places, width)
    lengths = torch.tensor([0, 17, 43, 9], device=DEVICE)
    wanted_keys, wanted_values, wanted = keys.float().clone(), values.float().clone(), torch.empty(3, 5, heads, 32)
    for row, length in enumerate(lengths[:rows].tolist()):
        at = slice(length, length + count)
        first, second = asked[row, :, :-kept].float().chunk(2, -1)
        turned = asked[row, :, :-kept].float() * cos[at, None].float()
        turned += torch.cat([-second, first], -1) * sin[at, None].float()
        wanted[row], wanted_keys[row, :, at] = turned[:, :heads], turned[:, heads:].transpose(0, 1)
        wanted_values[row, :, at] = asked[row, :, -kept:].float().transpose(0, 1)
    near(kernels.rotary(asked, keys, values, lengths, cos, sin), wanted.to(DEVICE))
    near(keys, wanted_keys)
    near(values, wanted_values)


def test_draws_are_those_of_the_reference() -> None:
    samplings = [Sampling(5), Sampling(7, temperature=0.0), Sampling(2**63 + 5, temperature=3.0), Sampling(9)]
    logits, draws = torch.randn(4, 3000, device=DEVICE), draws_of(samplings, 3000, DEVICE)
    for step in range(40):
        steps = torch.full((4,), step, device=DEVICE)
        noise = torch.where(draws.temperature > 0, draws.temperature * gumbel(draws.seeds, steps, 3000), 0.0)
        assert torch.equal(kernels.sample(logits, draws.seeds, steps, draws.temperature), (logits + noise).argmax(1))


@pytest.mark.fault("F01")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_draw_of_bad_logits_is_a_code_all_the_same(bad: float) -> None:
    """A code past the last would end the process, and every image with it; the image's own sum says that it is bad."""
    draws, steps = draws_of([Sampling(5), Sampling(7, temperature=0.0)], 1100, DEVICE), torch.zeros(2, device=DEVICE)
    logits = torch.full((2, 1100), bad, device=DEVICE)
    drawn = kernels.sample(logits, draws.seeds, steps.long(), draws.temperature)
    assert bool(((drawn >= 0) & (drawn < 1100)).all())
    mixed = torch.randn(2, 1100, device=DEVICE).index_fill(1, torch.arange(1000, 1100, device=DEVICE), torch.nan)
    assert bool((kernels.sample(mixed, draws.seeds, steps.long(), draws.temperature) < 1000).all())


def test_guidance_is_that_of_the_reference() -> None:
    logits = torch.randn(5, 3000, device=DEVICE)
    conditional, unconditional = torch.tensor([0, 3, 2], device=DEVICE), torch.tensor([1, 3, 4], device=DEVICE)
    scales = torch.tensor([[2.0], [1.0], [3.5]], device=DEVICE)
    found = kernels.apply_cfg(logits, conditional, unconditional, scales)
    wanted = apply_cfg(logits.cpu(), CfgRows(conditional.cpu(), unconditional.cpu(), scales.cpu()))
    torch.testing.assert_close(found.cpu(), wanted)
    assert torch.equal(found[1], logits[3])  # without guidance, to the last bit
