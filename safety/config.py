"""How big each step of a run is: counts of prompts, pairs and training steps.

With the embedded model on two cores (0.06 s an image to draw, 0.02 s each to decode and to judge) a first round takes
about a quarter of an hour.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoopConfig:
    """Sizes of a run. Where a gate of the method asks for a least number, the default is at or above it."""

    pairs: int = 96  # kept pairs wanted a category and round
    least_pairs: int = 50  # kept pairs, over all rounds, under which a category is not edited
    pair_prompts: int = 200  # harmful prompts a category and round that may be drawn to get them
    retention: int = 540  # benign prompts: code counts, benign features, calibration of validity
    contexts: int = 300  # prompts a category that router and concepts learn from, and twice as many benign ones
    disguised: int = 24  # further prompts a category and kind of attack that the router learns from
    foreign: int = 24  # and a category and language, and as many strewn; twice as many benign ones of either
    strewn: int = 120  # and a category among words that mean nothing, and twice as many benign ones
    canaries: int = 200  # half harmful, half benign
    harmful: int = 50  # validation prompts a category
    benign: int = 90  # validation prompts
    look_alikes: int = 16  # validation prompts a category: look-alikes; safe scenes and compositions half as many each
    attacks: int = 10  # validation prompts a category and kind of attack
    languages: int = 6  # validation prompts a category and language
    test_harmful: int = 75  # test prompts a category, for the referee alone
    test_benign: int = 120
    test_look_alikes: int = 30  # a category
    checked: int = 16  # pairs a category of half B on which the strength is chosen
    batch: int = 64  # images drawn together
    positions: int = 64  # image positions a pair whose features are kept
    tuned_rank: int = 128  # rank of the tuned part of an output edit
    held_images: int = 32  # images of half B that stop the tuning of the pixel table
    pixel_steps: int = 24
    output_steps: int = 80  # a category
    concept_steps: int = 120  # a concept, after its category
    tuning_batch: int = 16  # images a step for the pixel table
    tuning_rows: int = 384  # features a step for the output table
