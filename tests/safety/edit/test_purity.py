"""The bench of the pixel table: codecs give pictures back, and an edit moves the codes that are of harm alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from benchmarks.purity.codecs import PatchCodec, fit
from benchmarks.purity.edits import best_table, candidates, exclusive, gather


def pictures(count: int, seed: int) -> torch.Tensor:
    """Smooth coloured pictures, uint8 [count, 3, 32, 32]."""
    rough = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (F.interpolate(rough, 32, mode="bilinear") * 255).round().byte()


@pytest.fixture(scope="module", params=[(8, True), (16, False)], ids=["unit rows", "plain rows"])
def codec(request: pytest.FixtureRequest) -> PatchCodec:
    dim, normalised = request.param
    return fit(pictures(40, 1), 8, 128, dim, normalised)


def test_a_picture_comes_back_from_its_tokens(codec: PatchCodec) -> None:
    real = pictures(6, 2).float() / 127.5 - 1
    tokens = codec.encode(real)
    assert tokens.shape == (6, 16) and (codec.table.norm(dim=1).allclose(torch.ones(128)) == codec.normalised)
    error = (codec.decode(tokens, codec.table) - real).square().mean()
    assert error < 0.3 * (real - real.mean()).square().mean()


def test_codes_of_harm_alone_go_to_their_partners_and_shared_ones_stay(codec: PatchCodec) -> None:
    clean = torch.randint(0, 60, (20, 16), generator=torch.Generator().manual_seed(3))
    covered = clean.clone()
    covered[:, 0], covered[:, 1] = 100, 5  # a code that no benign picture has, and one that many have
    purity = (covered != clean).float()
    evidence = gather(covered, clean, purity, torch.cat([clean] * 30), len(codec.table))
    alone = exclusive(evidence, len(codec.table))
    assert alone[100] == 1 and alone[5] < 0.2
    table = best_table(codec.table, evidence, 1.0)
    assert torch.allclose(table[100], codec.table[clean[:, 0]].mean(0), atol=1e-5)
    moved = (table - codec.table).norm(dim=1)
    assert moved[5] < 0.2 * moved[100] and not bool(moved[60:100].any())
    kinds = candidates(codec, evidence)
    assert set(kinds) == {"projection", "re-map", "re-map by clusters", "best table"}
    lengths = codec.table.norm(dim=1)
    for table in (table for kind in ("projection", "re-map") for table in kinds[kind]):
        moved = (table - codec.table).norm(dim=1)
        assert not bool(moved[60:100].any())
        assert not codec.normalised or torch.allclose(table.norm(dim=1), lengths, atol=1e-5)
    assert any(not torch.equal(table[100], codec.table[100]) for table in kinds["re-map"])
