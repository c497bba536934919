"""Choice between a decoder's forward pass in C and in torch's operators, by their bits and by measuring.

The bits are the same either way, so the choice may differ between machines. Knows a decoder; knows no model.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from engine.runner.decoder import Decoder, KVCache, blocks
from engine.runner.native.compiled import source_code
from engine.runner.native.forward import NativeForward, native_forward
from engine.runner.products.choice import TURNS, remembered, rows_of, seconds

TRIED = ((1, 1, 0), (3, 1, 40), (2, 8, 90), (17, 1, 60), (1, 1, 511))  # rows, tokens of each, longest row: compared
LONGEST = 96  # tokens of the rows that are measured


def choose_native(decoder: Decoder, memory: Path | None = None) -> tuple[int, ...]:
    """Choose for a decoder; return the buckets, in tokens, in which C is faster. memory: see `remembered`."""
    native = native_forward(decoder.stack)
    if native is None or not all(_same_bits(decoder, native, *case) for case in TRIED):
        return ()
    shape = decoder.width, [(linear.inputs, linear.outputs) for linear in decoder.linears]
    chosen = remembered(memory, ("forward", source_code(), shape), partial(_gains, decoder, native))
    native.sizes, decoder.native = rows_of(chosen), native
    return chosen


def _same_bits(decoder: Decoder, native: NativeForward, kv_rows: int, count: int, longest: int) -> bool:
    """Whether both read random tokens alike, hidden states and cache."""
    noise = torch.Generator().manual_seed(longest)
    caches = [_cache(decoder, kv_rows, count, longest) for _ in range(2)]
    embeddings = torch.randn(kv_rows, count, decoder.width, generator=noise)
    with torch.inference_mode():
        right = _by_torch(decoder, embeddings, caches[0])
        hidden = native(embeddings, caches[1].keys, caches[1].values, caches[1].lengths)
    pairs = ((hidden, right), (caches[0].keys, caches[1].keys), (caches[0].values, caches[1].values))
    return all(torch.equal(*pair) for pair in pairs)


def _gains(decoder: Decoder, native: NativeForward, tokens: int) -> bool:
    """Whether C is faster for so many rows of one token: by the least of TURNS times each, in turn."""
    cache, embeddings = _cache(decoder, tokens, 1, LONGEST), torch.randn(tokens, 1, decoder.width)
    ways = (
        partial(_by_torch, decoder, embeddings, cache),
        partial(native, embeddings, cache.keys, cache.values, cache.lengths),
    )
    with torch.inference_mode():
        turns = [[seconds([way]) for way in ways] for _ in range(TURNS)]
    torch_s, native_s = (min(each) for each in zip(*turns, strict=True))
    return bool(native_s < torch_s)


def _by_torch(decoder: Decoder, embeddings: Tensor, cache: KVCache) -> Tensor:
    """Read tokens by torch's operators: before anything is chosen."""
    count, bound = embeddings.shape[1], min(blocks(cache.longest + embeddings.shape[1]), cache.keys.shape[3])
    return decoder.forward(embeddings, cache, bound, apart=count > 1)


def _cache(decoder: Decoder, kv_rows: int, count: int, longest: int) -> KVCache:
    """A cache of random rows of random lengths, the first one the longest: the same for the same arguments."""
    longest = min(longest, len(decoder.stack.cos) - count)
    noise, cache = torch.Generator().manual_seed(longest), decoder.new_cache(kv_rows, longest + count)
    for tensor in (cache.keys, cache.values):
        tensor.normal_(generator=noise)
    cache.lengths, cache.longest = torch.randint(longest + 1, (kv_rows,), generator=noise), longest
    cache.lengths[0] = longest
    return cache
