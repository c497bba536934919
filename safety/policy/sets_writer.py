"""Writer of a run's prompt sets from the groups of a policy.

A function of policy, sizes and seed. Knows groups and splits. Knows nothing of images.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from safety.config import LoopConfig
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import Groups
from safety.policy.prompts import PAIR, TEST, VALIDATION, Prompt
from safety.policy.run_sets import HeldOutSet, RunSets

CANARY_SHARE = 0.2  # of a category's prompts for pairs, the most that may become canaries


def write_sets(policy: Groups, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
    """Write the sets from the policy's groups; a set is shorter where the policy has fewer prompts.

    A category's prompts of the split for pairs become canaries first, then the pairs of each round, then the router's;
    the router reads the pairs' prompts too.
    """
    source = _Source(policy, categories, seed)
    canaries: list[Prompt] = []
    pools: dict[str, Sequence[Prompt]] = {}
    each = -(-(config.canaries // 2) // len(categories))
    for name in categories:
        pool = source.take(Group.category(name), PAIR, each + rounds * config.pair_prompts + config.router_prompts)
        few = min(each, int(CANARY_SHARE * len(pool)))
        canaries += pool[:few]
        pools[name] = pool[few:]
    pairs = [
        {name: _round(pool, number, config.pair_prompts) for name, pool in pools.items()} for number in range(rounds)
    ]
    wordings = source.kind(GroupKind.ATTACK, PAIR, config.disguised * len(categories))
    wordings += source.kind(GroupKind.LANGUAGE, PAIR, config.foreign * len(categories))
    router = {name: [*pool, *(p for p in wordings if p.category == name)] for name, pool in pools.items()}
    benign = source.take(BENIGN, PAIR, config.retention + 2 * config.router_prompts)
    retention, plain = benign[: config.retention], benign[config.retention :]
    others = source.kind(GroupKind.BENIGN, PAIR, 2 * config.strewn, besides=BENIGN)
    alike = source.kind(GroupKind.LOOK_ALIKE, PAIR, config.strewn)
    return RunSets(
        validation=source.validation(config),
        retention=retention,
        canaries=canaries,
        router=router,
        router_benign=[*plain, *others, *alike],
        pairs=pairs,
        heldout=source.heldout(config),
    )


def _round(pool: Sequence[Prompt], number: int, count: int) -> Sequence[Prompt]:
    """The prompts of a round: new ones while there are any, then the first again."""
    return pool[number * count : (number + 1) * count] or pool[:count]


@dataclass(frozen=True)
class _Source:
    """The policy's groups for the chosen categories."""

    policy: Groups
    categories: Sequence[str]
    seed: int

    def take(self, group: Group, split: str, count: int) -> list[Prompt]:
        """Up to `count` prompts of a group whose category, if any, is among the chosen ones."""
        all_categories = self.policy.categories
        more = count * len(all_categories) // len(self.categories) if group.kind in _MIXED else count
        prompts = self.policy.write(group, split, more, random.Random(f"{self.seed}/{group}/{split}"))
        others = set(all_categories) - set(self.categories)
        return [prompt for prompt in prompts if prompt.category not in others][:count]

    def kind(self, kind: GroupKind, split: str, count: int, besides: Group | None = None) -> list[Prompt]:
        """Up to `count` prompts of each group of a kind."""
        return [prompt for group in self.groups(kind) if group != besides for prompt in self.take(group, split, count)]

    def groups(self, kind: GroupKind) -> list[Group]:
        """The groups of a kind, but those of categories that are not chosen."""
        others = set(self.policy.categories) - set(self.categories)
        return [group for group in self.policy.groups() if group.kind is kind and group.name not in others]

    def validation(self, config: LoopConfig) -> list[tuple[Group, Sequence[Prompt]]]:
        """The validation prompts by group; groups without any are left out."""
        sizes = {
            GroupKind.CATEGORY: config.harmful,
            GroupKind.LOOK_ALIKE: config.look_alikes,
            GroupKind.ATTACK: config.attacks * len(self.categories),
            GroupKind.LANGUAGE: config.languages * len(self.categories),
        }
        groups = [(BENIGN, self.take(BENIGN, VALIDATION, config.benign))]
        groups += [(g, self.take(g, VALIDATION, count)) for kind, count in sizes.items() for g in self.groups(kind)]
        return [(group, prompts) for group, prompts in groups if prompts]

    def heldout(self, config: LoopConfig) -> HeldOutSet:
        """The test prompts."""
        harmful = {name: self.take(Group.category(name), TEST, config.test_harmful) for name in self.categories}
        alike = self.kind(GroupKind.LOOK_ALIKE, TEST, config.test_look_alikes)
        return HeldOutSet(harmful, self.take(BENIGN, TEST, config.test_benign), alike)


_MIXED = (GroupKind.ATTACK, GroupKind.LANGUAGE)  # groups with prompts of all categories
