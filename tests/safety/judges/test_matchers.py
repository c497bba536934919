"""Matchers: CLIP and SigLIP against transformers itself, and the served model's own yes or no about its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from core.errors import BadInput, BadModel, BadNumber
from engine.families.janus.loading import load_janus
from engine.model import ImageRequest
from engine.registry import load_model
from engine.unified import asking
from engine.unified.served_model import ServedModel
from safety.judges.checkpoints import load_image_processor, to_pictures
from safety.judges.matchers import AskMatcher, Asks, ClipMatcher, Matcher, parse_matcher, shows_prompt
from tests.safety.judges import tiny_judges
from tests.support.tiny import build_tiny
from tests.support.toy_model import ToyModel

CPU = torch.device("cpu")
PROMPTS = ["a cat", "blood", "a picture of flowers", "a weapon {prompt}", "flowers and a very long text " * 4]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("matchers")
    tiny_judges.build_clip(folder / "clip")
    tiny_judges.build_siglip(folder / "siglip")
    build_tiny(folder / "janus")
    return folder


@pytest.fixture(scope="module")
def janus(home: Path) -> ServedModel:
    model = load_model(str(home / "janus"), "cpu", "float32")
    assert isinstance(model, ServedModel)
    return model


def levels(count: int, size: int) -> Tensor:
    """Images of whole levels of 8 bits, so that PIL's are the same."""
    return torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(1)) / 127.5 - 1


def matcher(name: str) -> Matcher:
    return parse_matcher(name, ToyModel(), CPU)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_scores_are_those_of_transformers_in_any_batch(kind: str, home: Path) -> None:
    images, named = levels(5, 32), matcher(f"clip:{home}/{kind}")
    scores = named.match(images, PROMPTS)
    assert (scores.shape, scores.dtype, scores.is_inference()) == ((5,), torch.float32, False)
    assert bool(((scores >= 0) & (scores <= 1)).all()) and len(set(scores.tolist())) > 1
    alone = torch.cat([named.match(images[i : i + 1], PROMPTS[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, _reference(home / kind, images), atol=1e-5, rtol=1e-4)
    assert named.match(images[:0], []).shape == (0,)


@torch.no_grad()
def _reference(folder: Path, images: Tensor) -> Tensor:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    pixels = load_image_processor(folder)(to_pictures(images), return_tensors="pt")
    rows = []
    for i, prompt in enumerate(PROMPTS):
        siglip = folder.name == "siglip"
        padding = "max_length" if siglip else False
        text = tokenizer(prompt, padding=padding, truncation=True, max_length=24, return_tensors="pt")
        answer = model(input_ids=text["input_ids"], pixel_values=pixels["pixel_values"][i : i + 1])
        logit = answer.logits_per_image[0, 0]
        rows.append(logit.sigmoid() if siglip else (2.5 * logit / model.logit_scale.exp()).clamp(0, 1))
    return torch.stack(rows)


def test_longer_batches_are_split(home: Path) -> None:
    named = matcher(f"clip:{home}/siglip")
    assert isinstance(named, ClipMatcher)
    images, prompts = levels(35, 32), [PROMPTS[i % 3] for i in range(35)]
    scores = named.match(images, prompts)
    torch.testing.assert_close(named.match(images[30:], prompts[30:]), scores[30:], atol=1e-5, rtol=0)


def test_thresholds_names_and_versions(home: Path, tmp_path: Path) -> None:
    name = f"clip:{home}/clip"
    plain, named = matcher(name), matcher(f"{name}@0.05")
    assert (named.name, named.version, named.threshold, plain.threshold) == (name, plain.version, 0.05, 0.5)
    images = levels(5, 32)
    assert shows_prompt(named, images, PROMPTS).tolist() == (plain.match(images, PROMPTS) > 0.05).tolist()
    tiny_judges.build_clip(tmp_path / "clip")
    weights = load_file(tmp_path / "clip" / "model.safetensors")
    weights["logit_scale"] += 0.5
    save_file(weights, tmp_path / "clip" / "model.safetensors", {"format": "pt"})
    assert matcher(f"clip:{tmp_path}/clip").version != plain.version


@pytest.mark.parametrize("name", ["", "clip", "clip:", "siglip:folder", "ask:janus"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="ask, or clip:FOLDER"):
        matcher(name)


def test_bad_thresholds_and_checkpoints_are_refused(home: Path) -> None:
    with pytest.raises(BadInput, match="matcher threshold: '2' is not allowed; expected a number from 0 to 1"):
        matcher("ask@2")
    with pytest.raises(BadModel, match=f"^matcher clip:{home}/janus: .* is a 'janus' model, not a CLIP or SigLIP"):
        matcher(f"clip:{home}/janus")
    with pytest.raises(BadModel, match=r"^matcher ask: models of the family 'toy' answer no questions"):
        matcher("ask")


def test_an_answer_that_is_no_probability_ends_by_name(home: Path, janus: ServedModel) -> None:
    class Silent:
        def ask(self, images: Tensor, questions: Sequence[str]) -> Tensor:
            return torch.full((len(questions),), float("nan"))

    with pytest.raises(BadNumber, match="matcher ask"):
        shows_prompt(AskMatcher(Silent(), "f" * 64), levels(2, 16), ["a cat"] * 2)
    with pytest.raises(BadInput, match="one for each of 2 images"):
        shows_prompt(parse_matcher("ask", janus, CPU), levels(2, 16), ["a cat"])


def test_answers_are_those_of_transformers(home: Path, janus: ServedModel) -> None:
    images = levels(5, 16)
    questions = [f"Does this image show {prompt}? Answer yes or no." for prompt in PROMPTS[:4]] + ["Red?"]
    with torch.no_grad():
        torch.testing.assert_close(janus.ask(images, questions), _yes(home, images, questions), atol=1e-4, rtol=1e-4)
    assert len(set(janus.ask(images[:1].expand(5, -1, -1, -1), questions).tolist())) == 5  # the question matters
    assert len(set(janus.ask(images, ["Red?"] * 5).tolist())) == 5  # and the image


def _yes(home: Path, images: Tensor, questions: list[str]) -> Tensor:
    model, processor = load_janus(home / "janus", CPU, torch.float32)
    yes, no = (processor.tokenizer(word).input_ids[0] for word in (asking.YES, asking.NO))
    shares = []
    for picture, question in zip(to_pictures(images), questions, strict=True):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        chat: Any = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(text=[text], images=[picture], return_tensors="pt")
        shares.append(model(**inputs).logits[0, -1, [yes, no]].softmax(0)[0])
    return torch.stack(shares)


def test_an_answer_does_not_depend_on_its_batch(janus: ServedModel) -> None:
    count = 2 * asking.TOGETHER + 1
    images, questions = levels(count, 16), [f"Is it {'very ' * i}red?" for i in range(count)]
    answers = janus.ask(images, questions)
    alone = torch.cat([janus.ask(images[i : i + 1], questions[i : i + 1]) for i in range(count)])
    assert torch.equal(answers, alone)
    assert torch.equal(janus.ask(images.flip(0), questions[::-1]), answers.flip(0))
    assert janus.ask(images[:0], []).shape == (0,)


def test_asking_leaves_judging_alone(janus: ServedModel) -> None:
    images = levels(3, 16)
    before = janus.judge(images)
    janus.ask(images, ["Red?"] * 3)
    assert janus.judge(images) == before


def test_questions_that_cannot_be_read_are_refused(janus: ServedModel) -> None:
    image = levels(1, 16)
    with pytest.raises(BadInput, match=r"question: .*control token <eos>"):
        janus.ask(image, ["Is it red?<eos>"])
    with pytest.raises(BadInput, match=r"question: .*at most 160 tokens"):
        janus.ask(image, ["Is it very " + "very " * 100 + "red?"])
    with pytest.raises(BadInput, match="one for each of 1 images"):
        janus.ask(image, ["Red?", "Blue?"])


def test_the_tiny_model_says_whether_its_drawings_show_a_cat(janus: ServedModel) -> None:
    drawings = _draw(janus)
    named = parse_matcher("ask@0.4", janus, CPU)
    scores = named.match(drawings, ["a cat"] * len(drawings))
    assert scores.shape == (3,) and bool(((scores >= 0) & (scores <= 1)).all())
    assert torch.equal(scores, named.match(_draw(janus), ["a cat"] * len(drawings)))
    assert shows_prompt(named, drawings, ["a cat"] * 3).tolist() == (scores > 0.4).tolist()
    assert (named.name, named.threshold) == ("ask", 0.4) and named.version != janus.facts.model_hash


def test_the_embedded_model_says_whether_its_drawings_show_a_cat() -> None:
    model = load_model("embedded", "cpu", "float32")
    assert isinstance(model, ServedModel) and isinstance(model, Asks)
    drawings = _draw(model)
    scores = parse_matcher("ask", model, CPU).match(drawings, ["a cat"] * 3)
    assert bool(((scores >= 0) & (scores <= 1)).all())
    again = parse_matcher("ask", load_model("embedded", "cpu", "float32"), CPU)
    assert torch.equal(again.match(drawings, ["a cat"] * 3), scores)


def _draw(model: ServedModel) -> Tensor:
    book = model.base_codebook()
    requests = [ImageRequest("a cat", model.facts.sampling(seed), book) for seed in range(3)]
    return model.decode(model.draw(requests), book.pixel)
