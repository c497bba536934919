"""Sizes of a run: counts of prompts, pairs and training steps.

Knows numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

IMAGES = 12_000  # images that a first round draws with the default sizes and USUAL categories
USUAL = 4
FEW = 2_000  # images, under which a round is kept simple
LEAST_SHARE = 0.02  # of the default sizes; with less no gate can say anything
LEAST_CONFIRMED = 64  # prompts of a step of the confirmation
CONFIRMED_SHARE = 0.3  # of a round's images, prompts that its last step may have: each is drawn under both codebooks
LOGITS_BYTES = 1 << 28  # of float32 logits held together: at 576 tokens of 16,384 codes a batch would have 2.4 GB
DRAWING_SHARE = 0.7  # of a round's time; the rest is teacher forcing, fitting and tuning


@dataclass(frozen=True)
class LoopConfig:
    """Sizes of a run. Where a gate requires a least number, the default is at or above it."""

    pairs: int = 96  # pairs to keep, a category and round
    least_pairs: int = 50  # kept pairs, over all rounds, under which a category is not edited
    pair_prompts: int = 200  # harmful prompts a category and round that may be drawn for them
    retention: int = 540  # benign prompts: code counts, benign features, calibration of validity
    router_prompts: int = 300  # plain prompts a category for router and concepts, and twice as many benign ones
    disguised: int = 24  # further router prompts a category and kind of attack
    foreign: int = 24  # and a category and language, and as many strewn; twice as many benign ones of either
    strewn: int = 120  # and a category among fillers, and twice as many benign ones
    canaries: int = 200  # half harmful, half benign
    harmful: int = 50  # validation prompts a category
    benign: int = 90  # validation prompts
    look_alikes: int = 16  # validation prompts a category: look-alikes; safe scenes and compositions half as many each
    attacks: int = 10  # validation prompts a category and kind of attack
    languages: int = 6  # validation prompts a category and language
    test_harmful: int = 75  # test prompts a category, for the referee alone
    test_benign: int = 120
    test_look_alikes: int = 30  # a category
    dev_pairs: int = 16  # pairs a category of half B on which the strength is chosen
    batch: int = 64  # images a batch
    positions: int = 64  # image positions a pair whose features are kept
    tuned_rank: int = 128  # rank of the tuned part of a head edit
    held_images: int = 32  # images of half B that stop the tuning of the pixel table
    pixel_steps: int = 24
    output_steps: int = 80  # a category
    concept_steps: int = 120  # a concept, after its category
    tuning_batch: int = 16  # images a step for the pixel table
    halfway: bool = True  # whether a halfway probe is fitted
    by_concept: bool = True  # whether concepts have experts of their own, or categories alone
    tuning_rows: int = 384  # features a step for the head edit
    probes: int = 640  # harmful prompts that a mined round draws to find failures
    mined_images: int = 2  # images of each tuning prompt of a failing concept, in a mined round
    mined_steps: int = 300  # a failing concept
    confirmed: tuple[int, ...] = (192, 576, 1152)  # prompts after which a mined round's candidate may be accepted

    def for_images(self, images: int, categories: int) -> LoopConfig:
        """The sizes of a run that may draw about `images` images a round, over so many categories.

        Counts of prompts and pairs shrink in proportion; none grows. Prompts of the confirmation shrink only as far as
        they must: fewer are sure of a large gain alone. Under FEW images there is no halfway probe, and one expert a
        category: what is left would not fit them.
        """
        share = min(1.0, max(LEAST_SHARE, images * USUAL / (IMAGES * max(categories, 1))))
        counts = {name: max(least, round(getattr(self, name) * share)) for name, least in _LEAST.items()}
        fits = min(1.0, max(share, CONFIRMED_SHARE * images / self.confirmed[-1]))
        confirmed = tuple(min(step, max(LEAST_CONFIRMED, round(step * fits))) for step in self.confirmed)
        enough = images >= FEW
        return replace(
            self, **counts, confirmed=confirmed, halfway=self.halfway and enough, by_concept=self.by_concept and enough
        )


def images_within(images: int | None, minutes: int | None, images_per_s: float | None) -> int | None:
    """The images that a round may draw, by the tighter of both limits; None for no limit, or for an unknown speed.

    images_per_s: drawn, decoded and judged by both judges.
    """
    limits = [] if images is None else [images]
    if minutes is not None and images_per_s is not None:
        limits.append(int(minutes * 60 * images_per_s * DRAWING_SHARE))
    return min(limits, default=None)


# What a count may shrink to: two halves of pairs, three parts of the router's prompts, rates that mean something.
_LEAST = {
    "pairs": 12, "least_pairs": 8, "pair_prompts": 24, "retention": 120, "router_prompts": 12, "disguised": 2,
    "foreign": 2, "strewn": 6, "canaries": 24, "harmful": 16, "benign": 24, "look_alikes": 6, "attacks": 3,
    "languages": 2, "probes": 64, "test_harmful": 12, "test_benign": 16, "test_look_alikes": 6,
    "dev_pairs": 4,
}  # fmt: skip
