"""Random weights of a published geometry: drawn on the device from one seed, whatever was drawn before.

Knows torch and transformers' way to build a class. Knows no family.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from core.errors import BadModel

Geometry = TypeVar("Geometry")


def geometry_of(geometries: Mapping[str, Geometry], name: str) -> Geometry:
    """Return the geometry that "random:NAME" names. Raises BadModel for an unknown one, naming those that there are."""
    if (geometry := geometries.get(name.rpartition(":")[2])) is None:
        raise BadModel(f"{name}: there are {', '.join(geometries)}")
    return geometry


@contextmanager
def seeded(device: torch.device) -> Iterator[None]:
    """Draw what is made within on the device, from seed 0; torch's global random state stays as it was."""
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        yield


def build(kind: Any, config: Any, dtype: torch.dtype) -> Any:  # noqa: ANN401  (a class of transformers, its own)
    """Build a class of transformers with random weights in a dtype."""
    return kind._from_config(config, dtype=dtype)
