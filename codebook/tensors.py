"""A codebook as named tensors and back, their checks, and the hash of their content.

Knows tensors. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from codebook.errors import BadCodebook
from codebook.identity import Identity
from codebook.value import Codebook, OutputEdit, Router

_EDIT = {"output.basis", "output.mean", "output.down", "output.up"}
_ROUTER = {"output.router.weight", "output.router.bias"}
_LAYOUTS = ({"pixel"}, {"pixel"} | _EDIT, {"pixel"} | _EDIT | _ROUTER)
_ZERO_NORM = 1e-8  # a row this short has no direction left to normalise


def pack(codebook: Codebook) -> dict[str, Tensor]:
    """Return the tensors of a codebook by name: contiguous copies on the CPU, dtypes as they are."""
    tensors = {"pixel": codebook.pixel}
    if (edit := codebook.output) is not None:
        tensors |= {"output.basis": edit.basis, "output.mean": edit.mean}
        tensors |= {"output.down": edit.down, "output.up": edit.up}
        if edit.router is not None:
            tensors["output.router.weight"] = edit.router.weight
            tensors["output.router.bias"] = edit.router.bias
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def unpack(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> Codebook:
    """Return the codebook that checked `tensors` hold; the inverse of `pack`."""
    output = None
    if "output.basis" in tensors:
        router = None
        if "output.router.weight" in tensors:
            router = Router(tensors["output.router.weight"], tensors["output.router.bias"])
        basis, mean, down, up = (tensors[f"output.{name}"] for name in ("basis", "mean", "down", "up"))
        output = OutputEdit(basis, mean, down, up, router)
    return Codebook(version, identity.family, identity.model_hash, tensors["pixel"], output)


def check(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadCodebook (tensors, dtype, shape, finite, zero_rows) unless `tensors` can serve the model."""
    if set(tensors) not in _LAYOUTS:
        raise BadCodebook(version, "tensors", f"holds {sorted(tensors)}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise BadCodebook(version, "dtype", f"{name} is {tensor.dtype}, not {torch.float32}")
    for name, shape in _shapes(identity, tensors).items():
        if tuple(tensors[name].shape) != shape:
            raise BadCodebook(version, "shape", f"{name} is {list(tensors[name].shape)}, not {list(shape)}")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise BadCodebook(version, "finite", f"{name} holds NaN or infinity")
    short = int((tensors["pixel"].norm(dim=1) <= _ZERO_NORM).sum())
    if short:
        raise BadCodebook(version, "zero_rows", f"{short} rows of the pixel table are zero")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of `tensors`, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def codebook_hash(codebook: Codebook) -> str:
    """Return the sha256 (hex) over the tensors of a codebook: equal for equal content, whatever its version name."""
    return content_hash(pack(codebook))


def _shapes(identity: Identity, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape each tensor must have; its ranks k and r are the version's own, read from `basis` and `down`."""
    shapes: dict[str, tuple[int, ...]] = {"pixel": (identity.codes, identity.code_dim)}
    if "output.basis" in tensors:
        width = tensors["output.mean"].numel() if identity.feature_dim is None else identity.feature_dim
        rank, tuned = _last_size(tensors["output.basis"]), _last_size(tensors["output.down"])
        shapes |= {"output.basis": (width, rank), "output.mean": (width,)}
        shapes |= {"output.down": (width, tuned), "output.up": (tuned, width)}
        if "output.router.weight" in tensors:
            probes = tensors["output.router.bias"].numel()
            shapes |= {"output.router.weight": (probes, width), "output.router.bias": (probes,)}
    return shapes


def _last_size(tensor: Tensor) -> int:
    return tensor.shape[-1] if tensor.dim() else 0
