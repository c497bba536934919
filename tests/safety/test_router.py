"""Router and halfway probe: they name the harm, spare benign prompts, and ignore padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from codebook.router import HalfwayProbe, Router
from safety.collect.router_data import PromptStates
from safety.edit.router_fit import MOST_BENIGN, STEPS, fit_router
from safety.runtime.progress import Cancelled
from tests.safety.edit.test_space_maths import seeded

torch.set_num_threads(1)


NO_EXPERT = -1


def first(experts: list[tuple[int, ...]]) -> Tensor:
    """The loudest expert of each row, or NO_EXPERT."""
    return torch.tensor([one[0] if one else NO_EXPERT for one in experts])


def read_prompts(words: Tensor, count: int, generator: torch.Generator) -> PromptStates:
    """Prompts of 3 to 8 tokens, each one of `words` [w, H] and noise, padded on the left."""
    chosen = torch.randint(len(words), (count, 8), generator=generator)
    seen = torch.arange(8) >= torch.randint(0, 6, (count, 1), generator=generator)
    return PromptStates(words[chosen] + 0.3 * torch.randn(count, 8, words.shape[1], generator=generator), seen)


def with_word(prompts: PromptStates, word: Tensor) -> PromptStates:
    """The same with the word as the last token but one."""
    states = prompts.states.clone()
    states[:, -2] = word + states[:, -2] - states[:, -2].round()
    return PromptStates(states, prompts.seen)


def test_a_router_names_the_harm_and_spares_benign_prompts() -> None:
    generator, steps = seeded(), list[int]()
    words = torch.randn(60, 24, generator=generator)
    benign = read_prompts(words[:57], 800, generator)
    harmful = [with_word(read_prompts(words[:57], 80, generator), word) for word in words[57:]]
    router = fit_router(harmful, benign, steps.append)
    assert steps[0] == 0 and steps == sorted(steps) and STEPS * 2 / 3 < max(steps) <= STEPS and len(set(steps)) > 15
    fresh = read_prompts(words[:57], 400, generator)
    assert float((first(router.experts(fresh.states, fresh.seen, None)) != NO_EXPERT).double().mean()) <= MOST_BENIGN
    for word, expert in zip(words[57:], (0, 1, 2), strict=True):
        prompts = with_word(fresh, word)
        assert float((first(router.experts(prompts.states, prompts.seen, None)) == expert).double().mean()) > 0.95


def test_fitting_a_router_ends_where_its_callback_raises() -> None:
    words = torch.randn(58, 24, generator=seeded())
    benign, steps = read_prompts(words[:57], 80, seeded()), list[int]()

    def stop(step: int) -> None:
        steps.append(step)
        if len(steps) == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_router([with_word(benign, words[57])], benign, stop)
    assert len(steps) == 5


def test_a_router_tells_harms_apart_that_are_much_alike() -> None:
    generator = seeded()
    words, apart = torch.randn(57, 24, generator=generator), torch.randn(3, 24, generator=generator)
    alike = 2 * torch.randn(24, generator=generator) + 0.7 * apart
    benign = read_prompts(words, 800, generator)
    router = fit_router(
        [with_word(read_prompts(words, 80, generator), word) for word in alike], benign, lambda step: None
    )
    for expert, word in enumerate(alike):
        prompts = with_word(read_prompts(words, 400, generator), word)
        assert float((first(router.experts(prompts.states, prompts.seen, None)) == expert).double().mean()) > 0.95


def test_a_halfway_probe_names_the_harm_and_spares_benign_images() -> None:
    generator = seeded()
    shown = 3 * torch.randn(3, 24, generator=generator)

    def begun(count: int, harm: Tensor | float = 0.0) -> Tensor:
        return torch.randn(count, 24, generator=generator) + harm

    def single(means: Tensor) -> PromptStates:
        return PromptStates(means[:, None], torch.ones(len(means), 1, dtype=torch.bool))

    probe = HalfwayProbe(
        8, fit_router([single(begun(60, harm)) for harm in shown], single(begun(900)), lambda step: None)
    )
    assert probe.after == 8
    assert float((first(probe.experts(begun(600), None)) != NO_EXPERT).double().mean()) <= MOST_BENIGN
    for expert, harm in enumerate(shown):
        assert float((first(probe.experts(begun(200, harm), None)) == expert).double().mean()) > 0.95


def test_of_each_group_the_loudest_expert_applies_and_the_louder_one_first() -> None:
    """Probes 0 and 1 are of group 0, probe 2 of group 1; each reads a state of its own."""
    router, groups = Router(torch.eye(3), torch.full((3,), -1.0), torch.tensor([0, 1, 2])), torch.tensor([0, 0, 1])
    states = torch.tensor([[5.0, 6.0, 4.0], [5.0, 6.0, 7.0], [5.0, -9.0, -9.0], [-9.0, -9.0, -9.0]])[:, None]
    seen = torch.ones(4, 1, dtype=torch.bool)
    assert router.experts(states, seen, groups) == [(1, 2), (2, 1), (0,), ()]
    assert router.experts(states, seen, None) == [(1,), (2,), (0,), ()]


def test_a_router_reads_nothing_into_padding() -> None:
    router = Router(torch.ones(1, 4), torch.zeros(1), torch.zeros(1).long())
    states = torch.full((1, 3, 4), -9.0)
    states[0, 0] = 9.0
    seen = torch.tensor([[False, True, True]])
    assert int(first(router.experts(states, seen, None))) == NO_EXPERT
    assert int(first(router.experts(states, ~seen, None))) == 0


def test_a_router_prefers_benign_prompts_where_nothing_separates() -> None:
    generator = seeded()
    words = torch.randn(60, 24, generator=generator)
    harmful = [read_prompts(words, 60, generator) for _ in range(2)]
    router = fit_router(harmful, read_prompts(words, 1000, generator), lambda step: None)
    fresh = read_prompts(words, 1000, generator)
    assert float((first(router.experts(fresh.states, fresh.seen, None)) != NO_EXPERT).double().mean()) <= 0.01


def test_a_few_benign_prompts_that_say_the_harm_do_not_silence_a_router() -> None:
    generator = seeded()
    words = torch.randn(58, 24, generator=generator)
    benign = read_prompts(words[:57], 800, generator)
    benign.states[::100] = with_word(benign.part(slice(0, None, 100)), words[57]).states
    harmful = with_word(read_prompts(words[:57], 80, generator), words[57])
    router = fit_router([harmful], benign, lambda step: None)
    prompts = with_word(read_prompts(words[:57], 400, generator), words[57])
    assert float((first(router.experts(prompts.states, prompts.seen, None)) == 0).double().mean()) > 0.9


def test_sets_of_prompts_of_other_lengths_are_joined_by_padding_on_the_left() -> None:
    short = PromptStates(torch.ones(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    joined = PromptStates.joined([short, PromptStates(torch.ones(2, 4, 3), torch.ones(2, 4, dtype=torch.bool))])
    assert joined.seen.tolist() == [[False, False, True, True], *[[True] * 4] * 2]
    assert joined.states[0].tolist() == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
