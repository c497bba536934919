"""Tiny random checkpoints of all families, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.families.tiny_anole import build_tiny_anole
from tests.support.families.tiny_emu3 import build_tiny_emu3
from tests.support.families.tiny_liquid import build_tiny_liquid
from tests.support.families.tiny_vila_u import build_tiny_vila_u
from tests.support.tiny import build_tiny

BUILDERS: Mapping[str, Callable[[Path], Path]] = {
    "anole": build_tiny_anole,
    "emu3": build_tiny_emu3,
    "janus": build_tiny,
    "liquid": build_tiny_liquid,
    "vila_u": build_tiny_vila_u,
}
