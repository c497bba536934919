"""Manifest of a version: identity, origin and evaluation of its tensors.

Knows the fields and the tensors behind them. Knows nothing of folders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypedDict, Unpack

import torch
from torch import Tensor

from codebook.mode import Mode
from codebook.tensors import content_hash, mode_of
from codebook.value import Codebook
from core.clock import utc_now
from core.errors import BadCodebook
from core.json_records import decode

Table = Literal["pixel", "output"]


class Origin(TypedDict):
    """Origin of a version: the fields of its manifest that do not follow from its tensors."""

    parent: str | None
    job: str | None
    round: int | None
    figures: dict[str, Any]
    gates: dict[str, Any]


@dataclass(frozen=True)
class Manifest:
    """One published version.

    tables: edited parts of the model's own codebook: "pixel", "output", both, or none (v0).
    binds: the stage it applies at: "decode", or "admission" if it changes sampling.
    shapes: by tensor name. dtype: of the pixel table. sha256: of codebook.safetensors. content_hash: of the tensors.
    parent: the version it was derived from. job, round: its publisher; the pair is unique. v0 has neither.
    revision: the commit of a model of the hub. created: UTC, ISO 8601. figures, gates: JSON of the job.
    """

    version: str
    family: str
    model_hash: str
    tables: list[Table]
    binds: Literal["decode", "admission"]
    shapes: dict[str, list[int]]
    dtype: str
    sha256: str
    content_hash: str
    parent: str | None
    job: str | None
    round: int | None
    created: str
    figures: dict[str, Any]
    gates: dict[str, Any]
    revision: str | None = None

    @classmethod
    def describe(
        cls,
        codebook: Codebook,
        tensors: Mapping[str, Tensor],
        data: bytes,
        base: Tensor,
        revision: str | None,
        **origin: Unpack[Origin],
    ) -> Manifest:
        """Return the manifest of `codebook`, whose tensors are `tensors` and whose file is `data`.

        base: [K, D] float32, the model's own pixel table; a table equal to it is not an edit. revision: the model's.
        """
        tables: list[Table] = []
        if not torch.equal(codebook.pixel, base):
            tables.append("pixel")
        if codebook.output is not None:
            tables.append("output")
        return cls(
            version=codebook.version,
            family=codebook.family,
            model_hash=codebook.model_hash,
            tables=tables,
            binds="decode" if codebook.output is None else "admission",
            shapes=_shapes(tensors),
            dtype=_dtype(tensors["pixel"]),
            sha256=hashlib.sha256(data).hexdigest(),
            content_hash=content_hash(tensors),
            created=utc_now(),
            revision=revision,
            **origin,
        )

    @classmethod
    def parse(cls, version: str, data: bytes) -> Manifest:
        """Return the manifest in `data`. Raises BadCodebook (manifest) unless it is the manifest of `version`."""
        try:
            manifest = decode(cls, data)
        except ValueError as error:
            raise BadCodebook(version, "manifest", str(error)) from None
        if manifest.version != version:
            raise BadCodebook(version, "manifest", f"names another version, {manifest.version}")
        return manifest

    @property
    def mode(self) -> Mode | None:
        """What becomes of images that fire; None for a version without a router, by which none does."""
        return mode_of(self.shapes) if "output.router.weight" in self.shapes else None

    @property
    def self_judged(self) -> list[str]:
        """The job's categories that its second judge does not know, as the gate of that name says; else []."""
        gate = self.gates.get("second_judge")
        figures = gate.get("figures") if isinstance(gate, Mapping) else None
        return list(figures.get("not_covered", ())) if isinstance(figures, Mapping) else []

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise BadCodebook (dtype, shape, tables) unless the manifest describes these tensors."""
        if self.dtype != _dtype(tensors["pixel"]):
            raise BadCodebook(self.version, "dtype", f"the manifest says {self.dtype}")
        if self.shapes != _shapes(tensors):
            raise BadCodebook(self.version, "shape", f"the manifest says {self.shapes}")
        edits_output = "output.basis" in tensors
        if ("output" in self.tables) != edits_output or (self.binds == "admission") != edits_output:
            detail = f"the manifest says it edits {self.tables} and binds at {self.binds}"
            raise BadCodebook(self.version, "tables", detail)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Return the shape of each tensor by name."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _dtype(tensor: Tensor) -> str:
    """Return the dtype of a tensor without its package, e.g. "float32"."""
    return str(tensor.dtype).removeprefix("torch.")
