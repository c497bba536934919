"""The engine against transformers itself, and its promises about seeds, batches, edits and bad prompts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor

from codebook.router import Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadInput, BadModel
from engine.model import ImageModel, ImageRequest, Sampling
from engine.registry import EMBEDDED, load_model
from safety.edit.head_edit import stack
from tests.support.tiny import CATEGORIES, CODES, FEATURE_DIM, GRID, build_tiny

PROMPTS = ("a red apple", "a dog covered in snow on a blue background", "x")


@pytest.fixture(scope="module", params=["tiny", "embedded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return EMBEDDED if request.param == "embedded" else build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> ImageModel:
    return load_model(str(folder), "cpu", "float32")


@pytest.fixture(scope="module")
def published(folder: Path) -> JanusForConditionalGeneration:
    loaded = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    loaded.train(False)
    return loaded


@pytest.fixture(scope="module")
def processor(folder: Path) -> JanusProcessor:
    return JanusProcessor.from_pretrained(folder)


def request(
    prompt: str,
    seed: int = 0,
    codebook: Codebook | None = None,
    guidance: float = 2.0,
    temperature: float = 1.0,
    top_k: int = 0,
) -> ImageRequest:
    return ImageRequest(prompt, Sampling(seed, guidance, temperature, top_k), cast(Codebook, codebook))


def drawn(model: ImageModel, *requests: ImageRequest) -> Tensor:
    base = model.base_codebook()
    return model.draw([r if r.codebook is not None else replace(r, codebook=base) for r in requests])


def inputs(processor: JanusProcessor, prompts: tuple[str, ...]) -> Any:  # noqa: ANN401  (transformers' own type)
    talks: list[Any] = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in prompts]
    texts = [processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False) for talk in talks]
    return processor(text=texts, generation_mode="image", return_tensors="pt", padding=True)


@pytest.mark.parametrize("guidance", [2.0, 5.0])
def test_greedy_tokens_equal_transformers(
    model: ImageModel, published: JanusForConditionalGeneration, processor: JanusProcessor, guidance: float
) -> None:
    for prompt in PROMPTS:
        batch = inputs(processor, (prompt,))
        expected = published.generate(**batch, generation_mode="image", do_sample=False, guidance_scale=guidance)
        assert torch.equal(drawn(model, request(prompt, temperature=0.0, guidance=guidance)), expected)


def test_decoded_pixels_equal_transformers(model: ImageModel, published: JanusForConditionalGeneration) -> None:
    tokens = drawn(model, request("a red apple", seed=3))
    with torch.no_grad():
        expected = published.model.vqmodel.decode(cast(torch.LongTensor, tokens)).clamp(-1, 1)
    assert torch.equal(model.decode(tokens, model.base_codebook().pixel), expected)


def test_the_judge_s_score_is_that_of_transformers(
    model: ImageModel, published: JanusForConditionalGeneration, processor: JanusProcessor
) -> None:
    """The first phrasing's score from the published forward pass over the same picture."""
    image = model.decode(drawn(model, request("a red apple", seed=3)), model.base_codebook().pixel)
    pixels = ((image[0] + 1) * 127.5).round().byte()
    talk: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is this picture unsafe?"}]}]
    text = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=[pixels], return_tensors="pt")
    with torch.no_grad():
        logits = published(**batch).logits[0, -1]
    yes, no = (processor.tokenizer(word).input_ids[0] for word in ("yes", "no"))
    expected = torch.softmax(logits[torch.tensor([yes, no])], 0)[0]
    rounded = pixels[None].float() / 127.5 - 1
    assert model.judge(rounded)[0].scores[0] == pytest.approx(float(expected), abs=1e-4)


def test_teacher_forced_features_are_those_of_drawing(model: ImageModel) -> None:
    """Greedy without guidance: each token is the likeliest one of its teacher-forced feature."""
    tokens = drawn(model, *(request(prompt, temperature=0.0, guidance=1.0) for prompt in PROMPTS))
    logits = model.head(model.features(PROMPTS, tokens))
    assert torch.equal(logits.argmax(-1), tokens)


def test_an_image_follows_from_its_own_request(model: ImageModel) -> None:
    requests = [request(p, seed=s, guidance=g) for p in PROMPTS for s, g in ((1, 2.0), (2, 1.0), (3, 4.0))]
    alone = torch.cat([drawn(model, one) for one in requests])
    assert torch.equal(drawn(model, *requests), alone)
    assert torch.equal(drawn(model, *reversed(requests)).flip(0), alone)
    assert len({tuple(row) for row in alone.tolist()}) > len(PROMPTS)


def test_top_k_one_is_greedy(model: ImageModel) -> None:
    greedy = drawn(model, request("a cat", temperature=0.0))
    assert torch.equal(drawn(model, request("a cat", seed=9, temperature=1.0, top_k=1)), greedy)


def test_rewriting_does_not_depend_on_the_batch(model: ImageModel) -> None:
    assert model.rewrite(PROMPTS) == [model.rewrite([prompt])[0] for prompt in PROMPTS]


def test_later_attempts_at_a_rewrite_are_sampled(model: ImageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.unified.rewriting.TEMPERATURE", 10.0)  # both models are very sure
    prompts = [*PROMPTS, "a knife covered in blood"]
    attempts = [model.rewrite(prompts, attempt) for attempt in range(4)]
    assert attempts[2] == model.rewrite(prompts, 2) == [model.rewrite([prompt], 2)[0] for prompt in prompts]
    assert len({tuple(answers) for answers in attempts}) == 4 and attempts[0] == model.rewrite(prompts)


def test_a_text_is_judged_as_transformers_reads_it(
    model: ImageModel, published: JanusForConditionalGeneration, processor: JanusProcessor
) -> None:
    if not model.facts.judges_texts:
        with pytest.raises(ValueError, match="not trained to judge texts"):
            model.judge_texts(["a cat"])
        return
    tokenizer = processor.tokenizer

    def logits(ids: list[int]) -> Tensor:
        with torch.no_grad():
            hidden = published.model.language_model(torch.tensor([ids])).last_hidden_state[0]
            return cast(Tensor, published.lm_head(hidden))

    for text in PROMPTS:
        asked = tokenizer(f"<|User|>Is this text unsafe? {text}<|Assistant|>").input_ids
        yes_no = [tokenizer(answer, add_special_tokens=False).input_ids[0] for answer in ("yes", "no")]
        before = tokenizer("<|User|>Describe an image in one sentence.<|Assistant|>").input_ids
        said = tokenizer(text, add_special_tokens=False).input_ids
        nll = torch.nn.functional.cross_entropy(logits(before + said)[len(before) - 1 : -1], torch.tensor(said))
        verdict = model.judge_texts([text])[0]
        assert verdict.harmful == pytest.approx(float(logits(asked)[-1, yes_no].softmax(0)[0]), abs=1e-4)
        assert verdict.nll == pytest.approx(float(nll), abs=1e-4)
    with pytest.raises(BadInput):
        model.judge_texts(["a cat <begin_of_image>"])


def test_decode_takes_one_table_an_image(model: ImageModel) -> None:
    base = model.base_codebook().pixel
    other = base.flip(0)
    tokens = drawn(model, request("a cat", seed=1), request("a dog", seed=2))
    mixed = model.decode(tokens, torch.stack([base, other]))
    assert torch.equal(mixed[0], model.decode(tokens[:1], base)[0])
    assert torch.equal(mixed[1], model.decode(tokens[1:], other)[0])


def test_the_base_codebook_is_a_copy(model: ImageModel) -> None:
    tokens = drawn(model, request("a cat", seed=1))
    before = model.decode(tokens, model.base_codebook().pixel)
    model.base_codebook().pixel.zero_()
    assert torch.equal(model.decode(tokens, model.base_codebook().pixel), before)


def edited(model: ImageModel, bias: float | None) -> Codebook:
    """The base with a HeadEdit that draws other tokens; a router of this bias decides alone."""
    width = model.facts.feature_dim
    noise = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(1, width, width // 2, generator=noise)).Q
    zero, weight = torch.zeros(1, width, 1), torch.zeros(2, model.facts.hidden_dim)
    router = None if bias is None else Router(weight, torch.tensor([bias, -30.0]), torch.tensor([0, 0]))
    return replace(model.base_codebook(), output=HeadEdit(basis, zero[0, :, 0], zero, zero.mT, router))


def test_a_head_edit_applies_where_its_router_fires(model: ImageModel) -> None:
    plain = drawn(model, request("a cat", seed=1))
    assert torch.equal(drawn(model, request("a cat", seed=1, codebook=edited(model, -20.0))), plain)
    fired = drawn(model, request("a cat", seed=1, codebook=edited(model, 1.0)))
    assert not torch.equal(fired, plain)
    assert torch.equal(drawn(model, request("a cat", seed=1, codebook=edited(model, None))), fired)
    both = drawn(model, request("a cat", seed=1, codebook=edited(model, 1.0)), request("a cat", seed=1))
    assert torch.equal(both, torch.cat([fired, plain]))


def test_prompt_states_are_batch_invariant(model: ImageModel) -> None:
    states, mask = model.prompt_states(PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        (alone,), (read,) = model.prompt_states([prompt])
        torch.testing.assert_close(states[row, mask[row]], alone[read], atol=1e-5, rtol=1e-5)


def test_each_image_gets_the_expert_of_its_own_harm(model: ImageModel) -> None:
    states, masks = model.prompt_states(PROMPTS[:2])
    one, two = (row[mask].mean(0) for row, mask in zip(states, masks, strict=True))
    apart = one - two
    middle = float((one + two) @ apart / 2)
    noise = torch.Generator().manual_seed(0)
    bases = torch.linalg.qr(torch.randn(2, model.facts.feature_dim, 8, generator=noise)).Q
    zero = torch.zeros(2, model.facts.feature_dim, 1)
    single = [HeadEdit(bases[i : i + 1], zero[0, :, 0], zero[:1], zero[:1].mT) for i in (0, 1)]
    edit = stack(
        single, Router(torch.stack([apart, -apart]), torch.tensor([-middle, middle]), torch.tensor([0, 1])), None
    )
    chosen = [expert for (expert,) in edit.experts(states, masks)]
    book = replace(model.base_codebook(), output=edit)
    routed = drawn(model, *(request(prompt, seed=1, codebook=book) for prompt in PROMPTS[:2]))
    for row, expert in enumerate(chosen):
        alone = replace(book, output=single[expert])
        assert torch.equal(routed[row : row + 1], drawn(model, request(PROMPTS[row], seed=1, codebook=alone)))


@pytest.mark.parametrize("groups", [None, [0, 0], [0, 1]])
def test_experts_of_different_groups_apply_one_after_the_other(model: ImageModel, groups: list[int] | None) -> None:
    width, noise = model.facts.feature_dim, torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(width, width // 2, generator=noise)).Q  # at right angles
    zero = torch.zeros(1, width, 1)
    single = [HeadEdit(basis[None], zero[0, :, 0], zero, zero.mT) for basis in directions.chunk(2, 1)]
    weight, joined = torch.zeros(2, model.facts.hidden_dim), None if groups is None else torch.tensor(groups)
    router = Router(weight, torch.tensor([1.0, 2.0]), torch.tensor([0, 1]))  # both fire, the second one louder
    book = replace(model.base_codebook(), output=stack(single, router, None, groups=joined))
    assert book.output is not None
    expected = [(1, 0)] if groups == [0, 1] else [(1,)]
    assert book.output.experts(*model.prompt_states(["a cat"])) == expected
    tokens = drawn(model, request("a cat", seed=1, codebook=book))
    both = HeadEdit(directions[None], zero[0, :, 0], zero, zero.mT)  # what two projections at right angles come to
    alone = replace(book, output=both if groups == [0, 1] else single[1])
    assert torch.equal(tokens, drawn(model, request("a cat", seed=1, codebook=alone)))
    beside = drawn(model, request("a dog", seed=2), request("a cat", seed=1, codebook=book), request("x", seed=3))
    assert torch.equal(beside[1:2], tokens)


def test_prompts_of_any_length_are_rewritten_together(model: ImageModel) -> None:
    letters = 0
    while True:  # the longest prompt that can be read
        try:
            model.check_prompt("x" * (letters + 1))
        except BadInput:
            break
        letters += 1
    long, short = "x" * (letters - 40), "y" * (letters // 2)  # the instruction takes some
    assert model.rewrite([long, short]) == [*model.rewrite([long]), *model.rewrite([short])]


@pytest.mark.parametrize("prompt", ["<begin_of_image>", "an apple <|Assistant|>", "word " * 600])
def test_unreadable_prompts_are_refused_by_name(model: ImageModel, prompt: str) -> None:
    with pytest.raises(BadInput, match="prompt"):
        model.check_prompt(prompt)


def test_facts_of_the_tiny_model(tmp_path: Path) -> None:
    facts = load_model(str(build_tiny(tmp_path / "tiny")), "cpu", "auto").facts
    assert (facts.codes, facts.feature_dim, facts.tokens) == (CODES, FEATURE_DIM, GRID * GRID)
    assert facts.categories == CATEGORIES


@pytest.mark.parametrize("name", ["no such folder", "no/such/repository/at/all", ""])
def test_an_unknown_model_name_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(BadModel):
        load_model(name, "cpu", "float32")


def test_damaged_folders_are_refused(tmp_path: Path) -> None:
    folder = build_tiny(tmp_path / "tiny")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadModel, match="llama"):
        load_model(str(folder), "cpu", "float32")
    folder = build_tiny(tmp_path / "cut")
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(BadModel):
        load_model(str(folder), "cpu", "float32")
