"""The forward pass in C: the bits of torch's operators whatever is read, or it is not used."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel

from engine.families.backbones import read_backbone
from engine.runner.decoder import Decoder, KVCache, blocks
from engine.runner.native import choice, compiled
from engine.runner.native.choice import choose_native
from engine.runner.native.compiled import library
from engine.runner.native.forward import NativeForward, native_forward
from engine.runner.native.noise import native_noise
from engine.runner.sampling import _gumbel

needs_library = pytest.mark.skipif(library() is None, reason="needs a C compiler and a processor with AVX2")


def decoder_of(kind: str = "llama", exact: bool = True, **options: Any) -> Decoder:  # noqa: ANN401  (of transformers)
    """A small decoder with two heads of queries for each one of keys, and weights that float16 holds if `exact`."""
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 100, "head_dim": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    auto: Any = AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = auto.from_config(AutoConfig.for_model(kind, **sizes | heads | options))
        model.train(False).requires_grad_(False)
        for weight in model.parameters():
            weight.normal_(0, 0.3) if weight.dim() > 1 else weight.uniform_(0.5, 1.5)
            weight.copy_(weight.half() if exact else weight)
    return Decoder(read_backbone(model), 128)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return decoder_of("qwen2", rms_norm_eps=1e-5)  # query, key and value have biases


@pytest.fixture
def native(decoder: Decoder) -> Iterator[NativeForward]:
    """Its forward pass in C, which it uses for any number of tokens."""
    native = native_forward(decoder.stack)
    assert native is not None
    native.sizes, decoder.native = range(1, 999), native
    yield native
    decoder.native = None


def filled(decoder: Decoder, lengths: list[int]) -> KVCache:
    cache, noise = decoder.new_cache(len(lengths) + 1, 112), torch.Generator().manual_seed(1)
    for tensor in (cache.keys, cache.values):
        tensor.normal_(generator=noise)
    cache.lengths[:-1], cache.longest = torch.tensor(lengths), max(lengths)
    return cache


def read(decoder: Decoder, x: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Read x [R, T, H] after so many tokens; return hidden states, keys and values."""
    cache = filled(decoder, lengths)
    bound = min(blocks(cache.longest + x.shape[1]), cache.keys.shape[3])
    with torch.inference_mode():
        return decoder.forward(x, cache, bound, apart=x.shape[1] > 1), cache.keys, cache.values


@needs_library
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_bits_are_those_of_torch(decoder: Decoder, native: NativeForward, threads: int) -> None:
    chance = torch.Generator().manual_seed(threads)
    torch.set_num_threads(threads)
    for rows, count in ((1, 1), (2, 1), (7, 1), (33, 1), (2, 8), (3, 5), (1, 16), (1, 2)):
        lengths = torch.randint(0, 112, (rows,), generator=chance).tolist()
        lengths[0] = 111 if rows % 2 else lengths[0]  # what is beyond the last position is read to no purpose
        x = torch.randn(rows, count, decoder.width, generator=chance)
        hidden, keys, values = read(decoder, x, lengths)
        decoder.native = None
        right = read(decoder, x, lengths)
        decoder.native = native
        whole = [row for row in range(rows) if lengths[row] + count <= 112]
        assert torch.equal(hidden[whole], right[0][whole])
        assert torch.equal(keys[:, whole], right[1][:, whole]) and torch.equal(values[:, whole], right[2][:, whole])


@needs_library
@pytest.mark.parametrize("codes", [16, 4096])
def test_noise_has_the_bits_of_torch(codes: int) -> None:
    native, noise = native_noise(_gumbel), torch.Generator().manual_seed(0)
    assert native is not None
    seeds = torch.randint(-(2**63), 2**63 - 1, (2, 300), generator=noise)[0]
    steps = torch.randint(0, 9000, (600,), generator=noise)[::2]
    assert torch.equal(native(seeds, steps, codes), _gumbel(seeds, steps, codes))
    assert native_noise(lambda *arguments: _gumbel(*arguments) + 1e-7) is None


@needs_library
def test_a_row_without_numbers_spoils_no_other(decoder: Decoder, native: NativeForward) -> None:
    x = torch.randn(3, 1, decoder.width, generator=torch.Generator().manual_seed(0))
    right = read(decoder, x, [5, 20, 40])[0]
    x[1, 0, 7] = torch.nan
    hidden = read(decoder, x, [5, 20, 40])[0]
    assert hidden[1].isnan().all() and torch.equal(hidden[[0, 2]], right[[0, 2]])


@needs_library
def test_other_decoders_are_left_to_torch(decoder: Decoder) -> None:
    assert decoder.stack.fits
    for other in (
        decoder_of(exact=False),
        decoder_of(head_dim=32),
        decoder_of(intermediate_size=200),
        decoder_of("qwen3"),  # norms of heads
        decoder_of("gemma"),  # another gate
    ):
        assert not other.stack.fits and choose_native(other) == () and other.native is None


@needs_library
def test_what_is_slower_or_of_other_bits_is_not_used(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "_gains", lambda _, __, tokens: tokens in (8, 16))
    assert choose_native(decoder) == (8, 16)
    assert decoder.native is not None and decoder.native.sizes == frozenset(range(3, 17))
    decoder.native = None
    call = NativeForward.__call__

    def off_by_a_bit(*arguments: Any) -> Tensor:  # noqa: ANN401
        hidden = call(*arguments)
        hidden.view(-1)[-1:].view(torch.int32).add_(1)
        return hidden

    monkeypatch.setattr(NativeForward, "__call__", off_by_a_bit)
    assert choose_native(decoder) == () and decoder.native is None


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder in which the source is compiled anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.cache_clear()
    yield tmp_path / "safecb"
    library.cache_clear()


@needs_library
def test_the_source_is_compiled_once(uncached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert library() is not None
    (compiled_once,) = uncached.iterdir()
    library.cache_clear()
    monkeypatch.setattr(compiled, "_compile", None)
    assert library() is not None and [*uncached.iterdir()] == [compiled_once]


@needs_library
def test_without_a_compiler_or_where_it_fails_torch_does_it_all(
    decoder: Decoder, uncached: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in (("FLAGS", ("-nonsense",)), ("SOURCES", (Path(__file__),))):  # the compiler refuses both
        with monkeypatch.context() as patch:
            patch.setattr(compiled, name, value)
            assert choose_native(decoder) == () and decoder.native is None and not [*uncached.iterdir()]
            library.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "folder"))
        (tmp_path / "file").touch()
        assert library() is None
        library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library() is None
