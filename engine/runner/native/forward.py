"""Forward pass of a decoder over few tokens of each row, as one call into C.

Knows a decoder's layers and the tensors of a cache; knows nothing of images. Whether the bits are those of torch's
operators, and whether it is faster, is for engine.runner.native.choice to see.
"""

from __future__ import annotations

import ctypes
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.backbone import LayerOptions
from engine.runner.linear import Linear
from engine.runner.native.compiled import Library, library
from engine.runner.native.product import SIZES, NativeProduct, ProductFields, address
from engine.runner.norms import HeadNorm, Norm


class Layer(Protocol):
    """A decoder layer."""

    input_norm: Norm
    post_attention_norm: Norm
    head_norm: HeadNorm | None
    linears: tuple[Linear, Linear, Linear, Linear]


@dataclass(frozen=True)
class Stack:
    """The layers of a decoder; heads: of queries, of keys, and their dimension; cos, signed_sin: [positions, d]."""

    layers: Sequence[Layer]
    norm: Norm
    options: LayerOptions
    heads: tuple[int, int, int]
    cos: Tensor
    signed_sin: Tensor

    @property
    def fits(self) -> bool:
        """Whether it is of the one kind that the source computes: Llama's, with products in C."""
        plain = LayerOptions(gain_offset=self.options.gain_offset)  # an offset is in the gains
        queries, keys, width = self.heads
        if self.options != plain or queries % keys or width % SIZES or self.cos.shape[1] != width:
            return False
        if self.norm.gain.dtype != torch.float32 or self.norm.gain.device.type != "cpu":
            return False
        return all(isinstance(linear.half, NativeProduct) for layer in self.layers for linear in layer.linears)


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("input_gain", "post_gain")),
        *((name, ProductFields) for name in ("qkv", "o", "gate_up", "down")),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "inner", "heads", "kv_heads", "head_dim")),
        *((name, ctypes.c_float) for name in ("input_epsilon", "post_epsilon", "epsilon", "scale")),
        *((name, ctypes.c_void_p) for name in ("gain", "cos", "sin", "exp")),
        ("layer", ctypes.POINTER(_Layer)),
    )


class _Cache(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "values")),
        *((name, ctypes.c_int64) for name in ("layer", "row", "head", "positions")),
        ("lengths", ctypes.c_void_p),
    )


class NativeForward:
    """The layers of a decoder, packed for C.

    sizes: the numbers of tokens, of all rows together, that it is used for; none until they are chosen.
    """

    def __init__(self, compiled: Library, stack: Stack, exp: int) -> None:
        """Pack a stack that fits. exp: the address of e^x, as torch computes it in softmax and SiLU."""
        self.sizes: Container[int] = frozenset()
        self._source = compiled.source
        self._held: list[object] = [stack.cos, stack.signed_sin, stack.norm.gain]  # C has addresses alone
        self._source.scratch_size.restype = ctypes.c_int64
        first, norm, layers = stack.layers[0], stack.norm, [self._layer(layer) for layer in stack.layers]
        model = _Model(
            *(len(layers), first.linears[0].inputs, first.linears[3].inputs, *stack.heads),
            *(first.input_norm.epsilon, first.post_attention_norm.epsilon, norm.epsilon, stack.heads[2] ** -0.5),
            *(norm.gain.data_ptr(), stack.cos.data_ptr(), stack.signed_sin.data_ptr(), exp),
            (_Layer * len(layers))(*layers),
        )
        self._model = ctypes.byref(model)

    def __call__(self, embeddings: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """Read embeddings [R, T, H] one after the other into the first R rows of a cache; return the hidden states.

        keys, values: [layers, R or more, heads, S, d]; lengths: of the rows, without these tokens. What is beyond the
        last position is read there, to no purpose.
        """
        kv_rows, count, _ = embeddings.shape
        strides, positions = keys.stride()[:3], keys.shape[3]
        cache = ctypes.byref(_Cache(keys.data_ptr(), values.data_ptr(), *strides, positions, lengths.data_ptr()))
        shape, threads = (ctypes.c_int64(kv_rows), ctypes.c_int64(count)), ctypes.c_int(torch.get_num_threads())
        embeddings, hidden = embeddings.contiguous(), torch.empty(embeddings.shape)
        scratch = torch.empty(self._source.scratch_size(self._model, cache, *shape, threads))
        self._source.forward(self._model, cache, *shape, *map(address, (embeddings, hidden, scratch)), threads)
        return hidden

    def _layer(self, layer: Layer) -> _Layer:
        gains = layer.input_norm.gain, layer.post_attention_norm.gain
        products = [linear.half for linear in layer.linears if isinstance(linear.half, NativeProduct)]
        self._held += [*gains, *products]
        return _Layer(*(gain.data_ptr() for gain in gains), *(product.fields for product in products))


def native_forward(stack: Stack) -> NativeForward | None:
    """Return the forward pass in C of a stack that fits; None for others, and where there is no compiled library."""
    compiled = library() if stack.fits else None
    exp = None if compiled is None else compiled.of_torch(f"Sleef_expf{compiled.lanes}_u10")
    return None if compiled is None or exp is None else NativeForward(compiled, stack, exp)
