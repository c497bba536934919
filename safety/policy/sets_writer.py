"""Writer of a run's prompt sets from the groups of a policy.

A function of policy, sizes and seed. Knows groups and splits. Knows nothing of images.
"""

from __future__ import annotations

from collections.abc import Sequence

from safety.config import LoopConfig
from safety.policy.group_source import GroupSource
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.policy import Groups
from safety.policy.prompts import PAIR, Prompt
from safety.policy.run_sets import RunSets

CANARY_SHARE = 0.2  # of a category's prompts for pairs, the most that may become canaries


def write_sets(policy: Groups, categories: Sequence[str], config: LoopConfig, seed: int, rounds: int) -> RunSets:
    """Write the sets from the policy's groups; a set is shorter where the policy has fewer prompts.

    A category's prompts of the split for pairs become canaries first, then the pairs of each round, then the router's;
    the router reads the pairs' prompts too.
    """
    source = GroupSource(policy, categories, seed)
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
