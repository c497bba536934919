"""Writing out a policy: its prompts as the CSV file that gives the same prompts again.

Knows columns. Knows nothing of where the prompts come from.
"""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Mapping
from pathlib import Path

from core.atomic import replace_file
from safety.policy.groups import Group, GroupKind
from safety.policy.policy import HARMLESS, Policy
from safety.policy.prompts import SPLITS, Prompt

Counts = Mapping[tuple[GroupKind, str], int]  # prompts a group, by kind and split; none where one is missing
COLUMNS = ("prompt", "category", "kind", "split", "concept", "safe", "said", "shows", "seed", "guidance")
_EACH = {
    GroupKind.CATEGORY: (600, 100, 75),
    GroupKind.BENIGN: (540, 90, 120),
    GroupKind.LOOK_ALIKE: (120, 24, 30),
    GroupKind.ATTACK: (120, 40, 40),
    GroupKind.LANGUAGE: (120, 40, 40),
}
COUNTS: Counts = {
    (kind, split): count for kind, counts in _EACH.items() for split, count in zip(SPLITS, counts, strict=True)
}  # as many as a run with the usual sizes takes, with some to spare for more rounds


def write_out(policy: Policy, path: Path, counts: Counts, seed: int) -> int:
    """Write up to so many prompts of each group and split to `path`, in one step; how many they are.

    The same policy, counts and seed give the same file. FilePolicy reads the same prompts from it, by group and split.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    rows = 0
    for group in policy.groups():
        for split in SPLITS:
            count = counts.get((group.kind, split), 0)
            for prompt in policy.write(group, split, count, random.Random(f"{seed}/{group}/{split}")):
                writer.writerow(_row(policy, group, split, prompt))
                rows += 1
    replace_file(path, text.getvalue().encode())
    return rows


def _row(policy: Policy, group: Group, split: str, prompt: Prompt) -> tuple[object, ...]:
    near = group.name if group.kind is GroupKind.LOOK_ALIKE and group.name in policy.categories else ""
    category = near if group.kind in HARMLESS else prompt.category
    kind = "harmful" if group.kind is GroupKind.CATEGORY else str(group)
    safe = "" if prompt.safe is None or group.kind in HARMLESS else prompt.safe
    drawn = ("" if value is None else value for value in (prompt.seed, prompt.guidance))
    return (
        prompt.text,
        category,
        kind.replace("_", "-"),
        split,
        prompt.concept,
        safe,
        prompt.said,
        prompt.shows,
        *drawn,
    )
