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
_ROUTER = {"output.router.weight", "output.router.bias", "output.router.expert"}
_BIAS = {"output.bias"}
_EDITS = (_EDIT, _EDIT | _ROUTER, _EDIT | _BIAS, _EDIT | _ROUTER | _BIAS)
_LAYOUTS = ({"pixel"}, *({"pixel"} | edit for edit in _EDITS))
_WHOLE = {"output.router.expert"}  # the tensors of whole numbers
_ZERO_NORM = 1e-8  # a row this short has no direction left to normalise


def pack(codebook: Codebook) -> dict[str, Tensor]:
    """Return the tensors of a codebook by name: contiguous copies on the CPU, dtypes as they are."""
    tensors = {"pixel": codebook.pixel}
    if (edit := codebook.output) is not None:
        tensors |= {"output.basis": edit.basis, "output.mean": edit.mean}
        tensors |= {"output.down": edit.down, "output.up": edit.up}
        if edit.bias is not None:
            tensors["output.bias"] = edit.bias
        if edit.router is not None:
            tensors |= {f"output.router.{name}": tensor for name, tensor in vars(edit.router).items()}
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def unpack(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> Codebook:
    """Return the codebook that checked `tensors` hold; the inverse of `pack`."""
    output = None
    if "output.basis" in tensors:
        router = None
        if "output.router.weight" in tensors:
            router = Router(*(tensors[f"output.router.{name}"] for name in ("weight", "bias", "expert")))
        basis, mean, down, up = (tensors[f"output.{name}"] for name in ("basis", "mean", "down", "up"))
        output = OutputEdit(basis, mean, down, up, router, tensors.get("output.bias"))
    return Codebook(version, identity.family, identity.model_hash, tensors["pixel"], output)


def check(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadCodebook (tensors, dtype, shape, finite, expert, zero_rows) unless `tensors` can serve the model."""
    if set(tensors) not in _LAYOUTS:
        raise BadCodebook(version, "tensors", f"holds {sorted(tensors)}")
    for name, tensor in tensors.items():
        wanted = torch.int64 if name in _WHOLE else torch.float32
        if tensor.dtype != wanted:
            raise BadCodebook(version, "dtype", f"{name} is {tensor.dtype}, not {wanted}")
    for name, shape in _shapes(identity, tensors).items():
        if tuple(tensors[name].shape) != shape:
            raise BadCodebook(version, "shape", f"{name} is {list(tensors[name].shape)}, not {list(shape)}")
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise BadCodebook(version, "finite", f"{name} holds NaN or infinity")
    experts = tensors.get("output.router.expert")
    if experts is not None and bool(((experts < 0) | (experts >= _size(tensors["output.basis"], 0))).any()):
        raise BadCodebook(version, "expert", "the router names an expert that the edit has not")
    short = int((tensors["pixel"].norm(dim=1) <= _ZERO_NORM).sum())
    if short:
        raise BadCodebook(version, "zero_rows", f"{short} rows of the pixel table are zero")


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of `tensors`, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def codebook_hash(codebook: Codebook) -> str:
    """Return the sha256 (hex) over the tensors of a codebook: equal for equal content, whatever its version name."""
    return content_hash(pack(codebook))


def _shapes(identity: Identity, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape each tensor must have; experts, probes and the ranks k and r are the version's own."""
    shapes: dict[str, tuple[int, ...]] = {"pixel": (identity.codes, identity.code_dim)}
    if "output.basis" in tensors:
        width = identity.feature_dim or tensors["output.mean"].numel()
        experts, rank = _size(tensors["output.basis"], 0), _size(tensors["output.basis"], -1)
        tuned = _size(tensors["output.down"], -1)
        shapes |= {"output.basis": (experts, width, rank), "output.mean": (width,)}
        shapes |= {"output.down": (experts, width, tuned), "output.up": (experts, tuned, width)}
    if "output.bias" in tensors:
        shapes["output.bias"] = (_size(tensors["output.basis"], 0), identity.codes)
    if "output.router.weight" in tensors:
        width = identity.hidden_dim or _size(tensors["output.router.weight"], -1)
        probes = tensors["output.router.bias"].numel()
        shapes |= {"output.router.weight": (probes, width)}
        shapes |= {"output.router.bias": (probes,), "output.router.expert": (probes,)}
    return shapes


def _size(tensor: Tensor | None, axis: int) -> int:
    return tensor.shape[axis] if tensor is not None and tensor.dim() else 0
