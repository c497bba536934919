"""Families of models that installed packages bring: the protocol of their modules, and those that can be used.

Knows entry points. Knows no family: one that cannot be used is left out, and named where a model may be of it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

import torch

from core.errors import BadModel
from engine.unified.parts import Parts
from engine.unified.published import Published

log = logging.getLogger(__name__)

GROUP = "safecb.families"  # of entry points: a module that is a Family each


class Family(Protocol):
    """The module of a family; a package of its own may bring one."""

    NAME: str
    LICENCE: str  # of the published weights
    FOLDERS: Sequence[str]  # beside the weights, with further ones
    GEOMETRIES: Collection[str]  # of its random models, without PREFIX

    def fits(self, config: Mapping[str, Any]) -> bool:
        """Whether a config.json is of this family. Raises BadModel for a layout of it that is not read."""

    def kv_numbers(self, folder: Path) -> int:
        """Count the numbers of a KV row of any prompt with an image, by configuration alone. Raises BadModel."""

    def load(self, name: str, folder: Path, model_hash: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """Make the parts of the model called `name` from its folder. Raises BadModel."""

    def published(self, name: str, folder: Path | None, device: torch.device, dtype: torch.dtype) -> Published | None:
        """Make the same model in its publisher's own code; folder: None for random weights.

        None where no such code can be run here. Raises BadModel.
        """

    def load_random(self, name: str, device: torch.device, dtype: torch.dtype) -> Parts:
        """Make parts with random weights, as "random:GEOMETRY"; only where there are GEOMETRIES. Raises BadModel."""


NAMES = ("NAME", "LICENCE", "FOLDERS", "GEOMETRIES", "fits", "kv_numbers", "load", "published")


@dataclass(frozen=True)
class Installed:
    """usable: the families; faults: a sentence about each package whose family cannot be used."""

    usable: tuple[Family, ...]
    faults: tuple[str, ...]

    @property
    def but(self) -> str:
        """The faults, for the end of a sentence that says what is served; "" where there are none."""
        return "".join(f"; {fault}" for fault in self.faults)


@cache
def installed() -> Installed:
    """Return what installed packages bring, by name, and log a warning for each family that cannot be used."""
    usable, faults = list[Family](), list[str]()
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            usable.append(_imported(point))
        except Exception as error:  # whatever a package does, models of other families are served
            faults.append(f"the family {point.name!r} of {point.value} cannot be used: {type(error).__name__} {error}")
            log.warning("%s", faults[-1])
    return Installed(tuple(usable), tuple(faults))


def families() -> tuple[Family, ...]:
    """Return the families that can be used, by the names of their entry points."""
    return installed().usable


def family_of(config: Mapping[str, Any]) -> Family:
    """Return the family of a config.json. Raises BadModel where there is none, naming those that are served."""
    fitting = [family for family in families() if _fits(family, config)]
    if not fitting:
        served = ", ".join(repr(family.NAME) for family in families())
        raise BadModel(f"is a {config['model_type']!r} model; the families served are: {served}{installed().but}")
    return fitting[0]


def _imported(point: EntryPoint) -> Family:
    family: Family = point.load()
    names = [*NAMES, *(("load_random",) if getattr(family, "GEOMETRIES", ()) else ())]
    if lacking := [name for name in names if not hasattr(family, name)]:
        raise AttributeError(f"it lacks {', '.join(lacking)}")
    return family


def _fits(family: Family, config: Mapping[str, Any]) -> bool:
    try:
        return family.fits(config)
    except BadModel:
        raise
    except Exception as error:  # of a config that it has not seen yet
        log.warning("the family %r does not know a %r model: %r", family.NAME, config["model_type"], error)
        return False
