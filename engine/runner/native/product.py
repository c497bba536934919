"""Product by float32 weights kept in float16, in C: half the bytes to read, with every sum in float32.

Knows a weight and its bias; knows no layer.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from engine.runner.native.compiled import Library, library

SIZES = 64  # sizes of what is multiplied are multiples of it


class ProductFields(ctypes.Structure):
    """`Product` of the source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, ctypes.c_int64) for name in ("inputs", "chunk")),
    )


class NativeProduct:
    """x [.., inputs] -> x weight^T + bias [.., outputs]; the weight [outputs, inputs] is one that float16 holds.

    fields: what C reads of it.
    """

    def __init__(self, compiled: Library, weight: Tensor, bias: Tensor | None) -> None:
        """Pack the weight."""
        self._multiply, (self._outputs, inputs) = compiled.source.multiply, weight.shape
        panels = weight.half().view(-1, 4 * compiled.lanes, inputs).transpose(1, 2).contiguous()
        self._held = panels, bias  # C has their addresses alone
        self.fields = ProductFields(panels.data_ptr(), None if bias is None else bias.data_ptr(), inputs, inputs)

    def split(self, parts: int) -> None:
        """Take each sum in so many parts from now on."""
        self.fields.chunk = self.fields.inputs // parts

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply."""
        x, product = x.contiguous(), torch.empty(*x.shape[:-1], self._outputs)
        sizes = ctypes.c_int64(x.numel() // x.shape[-1]), ctypes.c_int64(self._outputs)
        threads = ctypes.c_int(torch.get_num_threads())
        self._multiply(ctypes.byref(self.fields), *sizes, address(x), address(product), threads)
        return product


def native_product(weight: Tensor, bias: Tensor | None) -> NativeProduct | None:
    """Return the product by a weight that float16 holds; None for sizes that do not fit, and without a library."""
    compiled = None if weight.shape[0] % SIZES or weight.shape[1] % SIZES else library()
    return None if compiled is None else NativeProduct(compiled, weight, bias)


def address(tensor: Tensor) -> ctypes.c_void_p:
    """Return where the numbers of a tensor begin."""
    return ctypes.c_void_p(tensor.data_ptr())
