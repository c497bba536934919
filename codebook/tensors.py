"""A codebook as named tensors and back, their checks, and the hash of their content.

Knows tensors. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Container, Mapping
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codebook.identity import Identity
from codebook.mode import Mode
from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadCodebook, BadNumber

_EDIT = {"output.basis", "output.mean", "output.down", "output.up"}
_ROUTER = {"output.router.weight", "output.router.bias", "output.router.expert"}
_PROBE = {"output.look.after", "output.look.weight", "output.look.bias", "output.look.expert"}
# A mode other than "edit" is a flag of its name: releases that know no modes refuse it by name.
_FLAGS: Mapping[Mode, str] = {
    "rewrite": "output.rewrite",
    "redraw": "output.redraw",
    "refuse": "output.refuse",
}
_FURTHER = ("output.bias", "output.guidance", "output.groups", *_FLAGS.values())
_EDITS = (_EDIT, _EDIT | _ROUTER, _EDIT | _ROUTER | _PROBE)
_PROBES = ("output.router", "output.look")
_INTEGERS = {"output.look.after", "output.groups", *_FLAGS.values(), *(f"{probes}.expert" for probes in _PROBES)}
_ZERO_NORM = 1e-8  # a row this short has no direction left to normalise
_HASHES: WeakKeyDictionary[Codebook, str] = WeakKeyDictionary()


def pack(codebook: Codebook) -> dict[str, Tensor]:
    """Return the tensors of a codebook by name: contiguous copies on the CPU, dtypes as they are."""
    tensors = {"pixel": codebook.pixel}
    if (edit := codebook.output) is not None:
        tensors |= {"output.basis": edit.basis, "output.mean": edit.mean}
        tensors |= {"output.down": edit.down, "output.up": edit.up}
        if edit.bias is not None:
            tensors["output.bias"] = edit.bias
        if edit.groups is not None:
            tensors["output.groups"] = edit.groups
        if edit.guidance != 1.0:
            tensors["output.guidance"] = torch.tensor(edit.guidance)
        if edit.mode != "edit":
            tensors[_FLAGS[edit.mode]] = torch.tensor(1)
        if edit.router is not None:
            tensors |= {f"output.router.{name}": tensor for name, tensor in vars(edit.router).items()}
        if edit.probe is not None:
            tensors |= {f"output.look.{name}": tensor for name, tensor in vars(edit.probe.probes).items()}
            tensors["output.look.after"] = torch.tensor(edit.probe.after)
    return {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}


def unpack(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> Codebook:
    """Return the codebook that checked `tensors` hold; the inverse of `pack`."""
    output = None
    if "output.basis" in tensors:
        router, probes = (_probes(tensors, name) for name in _PROBES)
        probe = None if probes is None else HalfwayProbe(int(tensors["output.look.after"]), probes)
        basis, mean, down, up = (tensors[f"output.{name}"] for name in ("basis", "mean", "down", "up"))
        guidance = float(tensors.get("output.guidance", 1.0))
        bias, groups = tensors.get("output.bias"), tensors.get("output.groups")
        output = HeadEdit(basis, mean, down, up, router, bias, probe, guidance, groups, mode_of(tensors))
    return Codebook(version, identity.family, identity.model_hash, tensors["pixel"], output)


def mode_of(names: Container[str]) -> Mode:
    """Return the mode that the names of a version's tensors say."""
    return next((mode for mode, name in _FLAGS.items() if name in names), "edit")


def check(version: str, identity: Identity, tensors: Mapping[str, Tensor]) -> None:
    """Raise BadCodebook unless `tensors` can serve the model.

    Its check is one of tensors, dtype, shape, finite, expert, look, guidance, zero_rows.
    """
    parts = set(tensors) - {"pixel"} - (set(_FURTHER) if "output.basis" in tensors else set())
    needs_router = {"output.groups", *_FLAGS.values()} & set(tensors)
    routed = not needs_router or "output.router.weight" in tensors
    flags = len(needs_router - {"output.groups"})
    if "pixel" not in tensors or parts not in (set(), *_EDITS) or not routed or flags > 1:
        raise BadCodebook(version, "tensors", f"holds {sorted(tensors)}")
    for name, tensor in tensors.items():
        dtype = torch.int64 if name in _INTEGERS else torch.float32
        if tensor.dtype != dtype:
            raise BadCodebook(version, "dtype", f"{name} is {tensor.dtype}, not {dtype}")
    for name, shape in _shapes(identity, tensors).items():
        if tuple(tensors[name].shape) != shape:
            raise BadCodebook(version, "shape", f"{name} is {list(tensors[name].shape)}, not {list(shape)}")
    for name, tensor in tensors.items():
        if not is_finite(tensor):
            raise BadCodebook(version, "finite", f"{name} holds NaN or infinity")
    for name in _PROBES:
        experts = tensors.get(f"{name}.expert")
        if experts is not None and bool(((experts < 0) | (experts >= _size(tensors["output.basis"], 0))).any()):
            raise BadCodebook(version, "expert", f"{name} names an expert that the edit has not")
    if "output.look.after" in tensors and int(tensors["output.look.after"]) < 1:
        raise BadCodebook(version, "look", f"is after {int(tensors['output.look.after'])} tokens, not 1 or more")
    if "output.guidance" in tensors and not 0 <= float(tensors["output.guidance"]) <= 1:
        raise BadCodebook(version, "guidance", f"leaves {float(tensors['output.guidance'])} of it, not 0 to 1")
    lengths = tensors["pixel"].norm(dim=1)
    if not is_finite(lengths):  # divided by infinity, a row would decode as zeros
        raise BadCodebook(version, "finite", "the length of a row of the pixel table overflows")
    short = int((lengths <= _ZERO_NORM).sum())
    if short:
        raise BadCodebook(version, "zero_rows", f"{short} rows of the pixel table are zero")


def check_codebook(identity: Identity, codebook: Codebook) -> None:
    """Raise BadCodebook unless `codebook` is the model's and can serve it: family, model_hash and those of `check`."""
    identity.check(codebook.version, codebook.family, codebook.model_hash)
    check(codebook.version, identity, pack(codebook))


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, in one pass at the speed of memory."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(math.isfinite(end) for end in tensor.detach().aminmax())  # NaN anywhere makes NaN of both


def finite(part: str, tensor: Tensor) -> Tensor:
    """Return `tensor`. Raises BadNumber, naming `part`, where it holds NaN or infinity."""
    if not is_finite(tensor):
        raise BadNumber(part)
    return tensor


def content_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) over names, dtypes, shapes and bytes of `tensors`, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().data)
    return digest.hexdigest()


def codebook_hash(codebook: Codebook) -> str:
    """Return the sha256 (hex) over the tensors of a codebook: equal for equal content, whatever its version name.

    It is computed once for each codebook, since none ever changes: afterwards it costs nothing.
    """
    if (cached := _HASHES.get(codebook)) is None:
        cached = _HASHES[codebook] = content_hash(pack(codebook))
    return cached


def _shapes(identity: Identity, tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape each tensor must have; experts, probes and the ranks k and r are the version's own."""
    shapes: dict[str, tuple[int, ...]] = {"pixel": (identity.codes, identity.code_dim)}
    if "output.basis" in tensors:
        width = identity.feature_dim or tensors["output.mean"].numel()
        experts, rank = _size(tensors["output.basis"], 0), _size(tensors["output.basis"], -1)
        tuned = _size(tensors["output.down"], -1)
        shapes |= {"output.basis": (experts, width, rank), "output.mean": (width,)}
        shapes |= {"output.down": (experts, width, tuned), "output.up": (experts, tuned, width)}
    if "output.groups" in tensors:
        shapes["output.groups"] = (_size(tensors["output.basis"], 0),)
    if "output.bias" in tensors:
        shapes["output.bias"] = (_size(tensors["output.basis"], 0), identity.codes)
    for name, dim in zip(_PROBES, (identity.hidden_dim, identity.feature_dim), strict=True):
        if f"{name}.weight" in tensors:
            width, probes = dim or _size(tensors[f"{name}.weight"], -1), tensors[f"{name}.bias"].numel()
            shapes |= {f"{name}.weight": (probes, width), f"{name}.bias": (probes,), f"{name}.expert": (probes,)}
    shapes |= {name: () for name in ("output.look.after", "output.guidance", *_FLAGS.values()) if name in tensors}
    return shapes


def _probes(tensors: Mapping[str, Tensor], name: str) -> Router | None:
    if f"{name}.weight" not in tensors:
        return None
    return Router(*(tensors[f"{name}.{part}"] for part in ("weight", "bias", "expert")))


def _size(tensor: Tensor | None, axis: int) -> int:
    return tensor.shape[axis] if tensor is not None and tensor.dim() else 0
