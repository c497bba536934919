"""Every kernel of engine/runner/kernels, compiled for an H100 with the arguments of its launches; needs no GPU.

`python -m tests.support.compiled` prints the kernels' names. A process of its own, since tests interpret them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

from engine.runner import kernels

H100 = GPUTarget("cuda", 90, 32)
SHARED = 227 * 1024  # bytes of shared memory of a program there
KINDS = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int64: "*i64"}


def compiled(kernel: JITFunction[Any], *given: object, grid: object, warmup: bool, **options: object) -> None:
    """Compile a kernel in place of running it."""
    named = dict(zip(kernel.arg_names, given, strict=True))
    fixed = {p.name: named[p.name] for p in kernel.params if p.is_constexpr or named[p.name] is None}
    signature = {name: "constexpr" if name in fixed else _kind(value) for name, value in named.items()}
    built = compile(ASTSource(kernel, signature, fixed), target=H100, options=options)
    assert built.asm["cubin"] and built.metadata.shared <= SHARED
    print(kernel.__name__)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return KINDS[value.dtype]
    return "i32" if isinstance(value, int) else "fp32"


def launch_all() -> None:
    """Launch all of them, in the sizes of Janus-Pro-1B."""
    bf16 = torch.zeros(1, dtype=torch.bfloat16)
    lengths, positions = torch.zeros(8, dtype=torch.int64), 1088
    cos, keys = bf16.expand(positions, 128), bf16.expand(8, 16, positions, 128)
    kernels.rms_norm(bf16.expand(8, 2048), bf16.expand(2048), 1e-6)
    for rows in (8, 64, 256, 512):
        x = bf16.expand(rows, 2048)
        kernels.multiply(x, bf16.expand(2048, 2048), bf16.expand(2048), x)
        kernels.multiply(x, bf16.expand(16384, 2048), bf16.expand(16384), None)
        kernels.gated(x, bf16.expand(11264, 2048))
    kernels.attend(bf16.expand(8, 48, 128), keys, keys, lengths, cos, cos)
    kernels.rotary(bf16.expand(8, 5, 48, 128), keys, keys, lengths, cos, cos)
    kernels.group_norm(bf16.expand(1, 64, 64, 64), 32, bf16.expand(64), bf16.expand(64), 1e-6)
    logits = torch.zeros(8, 16384)
    kernels.apply_cfg(logits, lengths[:4], lengths[4:], torch.ones(4, 1))
    for codes in (16384, 32768):
        kernels.floors(torch.zeros(8, codes), torch.ones(8, 1), lengths, torch.ones(8, 1))
    kernels.sample(logits, lengths, lengths, torch.ones(8, 1), torch.zeros(8, 1))


if __name__ == "__main__":
    JITFunction.run = compiled
    launch_all()
