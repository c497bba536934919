"""Sizes of a build: the shipped ones, and small ones that only show that every step runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Steps of each training, scenes of each pool, and rounds of k-means."""

    code_scenes: int = 7000
    decoder: int = 2000
    encoder: int = 200
    vision: int = 900
    patterns: int = 24000
    companions: int = 8000
    language: int = 2700
    classifier: int = 700
    lessons: int = 4096
    words: int = 900
    reconstructions: int = 4000
    code_rounds: int = 10


SMOKE = Sizes(70, 1, 1, 2, 40, 20, 1, 2, 4, 1, 64, 2)
