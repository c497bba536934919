"""Judges by name: the grammar, each kind on a tiny random checkpoint against transformers itself, and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
    ShieldGemma2ForImageClassification,
)

from core.errors import BadInput, BadModel, BadNumber
from safety.judges.checkpoints import load_image_processor, to_pictures
from safety.judges.combined import AnyJudge, AtThreshold
from safety.judges.contrastive import read_texts
from safety.judges.grammar import read_categories, read_name, split_names
from safety.judges.guards import GuardQuestion, read_question
from safety.judges.names import parse_judge, parse_second_judge
from safety.judges.registry import Judge, finds_harm
from tests.safety.judges import tiny_judges as tiny
from tests.support.toy_model import ToyModel

CPU = torch.device("cpu")
TEXTS = {
    "harmful": {"gore": ["a picture of blood", "blood"], "weapons": ["a weapon"]},
    "harmless": ["a picture of flowers", "flowers"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One checkpoint of each kind, and the files of texts."""
    folder = tmp_path_factory.mktemp("judges")
    tiny.build_vit(folder / "vit")
    tiny.build_vit(folder / "multi", multi=True)
    tiny.build_clip(folder / "clip")
    tiny.build_siglip(folder / "siglip")
    tiny.build_shield_gemma(folder / "shield")
    tiny.build_llava(folder / "llava")
    (folder / "texts.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    question = {"question": "policy?", "prefix": ' "rating":"', "unsafe": ["unsafe"], "safe": ["safe"]}
    (folder / "ask.json").write_text(json.dumps({**question, "covers": ["violence"]}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Seven images [7, 3, 32, 32] of whole levels of 8 bits, so that PIL's are the same."""
    return torch.randint(0, 256, (7, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 127.5 - 1


def judge(name: str) -> Judge:
    return parse_judge(name, ToyModel(), CPU)


def names(home: Path) -> dict[str, str]:
    return {
        "vit": f"hf:{home}/vit#gore",
        "multi": f"hf:{home}/multi#gore+drawing",
        "clip": f"zeroshot:{home}/clip?texts={home}/texts.json",
        "siglip": f"zeroshot:{home}/siglip?texts={home}/texts.json",
        "shield": f"guard:{home}/shield",
        "llava": f"guard:{home}/llava",
        "asked": f"guard:{home}/llava?ask={home}/ask.json",
    }


KINDS = ["vit", "multi", "clip", "siglip", "shield", "llava", "asked"]


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_the_same_in_any_batch(kind: str, home: Path, images: Tensor) -> None:
    named = judge(names(home)[kind])
    scores = named.harmful(images)
    assert (scores.shape, scores.dtype, scores.is_inference()) == ((7,), torch.float32, False)
    assert bool(((scores >= 0) & (scores <= 1)).all()) and len(set(scores.tolist())) > 1
    alone = torch.cat([named.harmful(image[None]) for image in images])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(named.harmful(images[[3, 1, 4]]), scores[[3, 1, 4]], atol=1e-5, rtol=0)
    assert named.harmful(images[:0]).shape == (0,)
    assert named.name == names(home)[kind] and named.threshold == 0.5
    assert finds_harm(named, images).tolist() == (scores > 0.5).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_transformers(kind: str, home: Path, images: Tensor) -> None:
    reference = {"vit": _labels, "multi": _labels, "clip": _texts, "siglip": _texts, "shield": _policies}
    expected = reference.get(kind, _answers)(home, kind, images)
    torch.testing.assert_close(judge(names(home)[kind]).harmful(images), expected, atol=1e-5, rtol=1e-4)


def _labels(home: Path, kind: str, images: Tensor) -> Tensor:
    inputs = load_image_processor(home / kind)(to_pictures(images), return_tensors="pt")
    logits = AutoModelForImageClassification.from_pretrained(home / kind)(**inputs).logits.detach()
    probability: Tensor = logits.sigmoid()[:, :2].amax(1) if kind == "multi" else logits.softmax(1)[:, 1]
    return probability


def _texts(home: Path, kind: str, images: Tensor) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(home / kind)
    pad = {"padding": True} if kind == "clip" else {"padding": "max_length", "max_length": 24}
    texts = tokenizer([*TEXTS["harmful"]["gore"], "a weapon", *TEXTS["harmless"]], return_tensors="pt", **pad)  # type: ignore[index]
    if kind == "siglip":
        del texts["attention_mask"]
    pixels = load_image_processor(home / kind)(to_pictures(images), return_tensors="pt")
    model = AutoModelForZeroShotImageClassification.from_pretrained(home / kind)
    logits = model(input_ids=texts["input_ids"], attention_mask=texts.get("attention_mask"), **pixels).logits_per_image
    probability: Tensor = logits.softmax(1)[:, :3].sum(1) if kind == "clip" else logits[:, :3].sigmoid().amax(1)
    return probability.detach()


@torch.no_grad()
def _policies(home: Path, kind: str, images: Tensor) -> Tensor:
    processor = AutoProcessor.from_pretrained(home / kind)  # type: ignore[no-untyped-call]
    model = ShieldGemma2ForImageClassification.from_pretrained(home / kind)
    rows = [
        max(
            float(model(**processor(images=[picture], policies=[policy], return_tensors="pt")).probabilities[0, 0])
            for policy in ("dangerous", "sexual", "violence")
        )
        for picture in to_pictures(images)
    ]
    return torch.tensor(rows)


@torch.no_grad()
def _answers(home: Path, kind: str, images: Tensor) -> Tensor:
    """P(unsafe) by hand: the chat template's text, then the words' own first tokens."""
    general = kind == "llava"
    processor = AutoProcessor.from_pretrained(home / "llava")  # type: ignore[no-untyped-call]
    model = AutoModelForImageTextToText.from_pretrained(home / "llava")
    question = GuardQuestion().question if general else "policy?"
    text = f"<bos><image>{question} Answer:" + ("" if general else ' "rating":"')
    sides = (("Yes", "yes"), ("No", "no")) if general else (("unsafe",), ("safe",))
    tokens = [[processor.tokenizer(word).input_ids[0] for word in words] for words in sides]
    probabilities = []
    for picture in to_pictures(images):
        inputs = processor(text=text, images=picture, add_special_tokens=False, return_tensors="pt")
        shares = model(**inputs).logits[0, -1].softmax(0)
        unsafe, safe = (float(shares[side].sum()) for side in tokens)
        probabilities.append(unsafe / (unsafe + safe))
    return torch.tensor(probabilities)


def test_covers(home: Path) -> None:
    shield = f"guard:{home}/shield"
    expected = {
        f"hf:{home}/vit#gore": None,
        f"hf:{home}/vit#gore?covers=gore,shocking": {"gore", "shocking"},
        names(home)["clip"]: {"gore", "weapons"},
        shield: {"sexual", "nudity", "violence", "gore", "shocking", "dangerous"},
        f"{shield}?policies=sexual": {"sexual", "nudity"},
        f"{shield}?policies=sexual+violence&covers=weapons": {"weapons"},
        names(home)["llava"]: None,
        names(home)["asked"]: {"violence"},
        f"any(opennsfw,hf:{home}/vit#gore?covers=gore+decay)": {"nudity", "sexual", "gore", "decay"},
        f"any(opennsfw,hf:{home}/vit#gore)": None,
    }
    assert {name: judge(name).covers for name in expected} == expected


def test_several_labels_are_added(home: Path, images: Tensor) -> None:
    gore, knife = (judge(f"hf:{home}/vit#{label}").harmful(images) for label in ("gore", "weapon+knife"))
    both = judge(f"hf:{home}/vit#gore+drawing").harmful(images)
    torch.testing.assert_close(both, 1 - knife, atol=1e-6, rtol=0)
    assert bool((both > gore).all())


def test_a_threshold_behind_the_name(home: Path, images: Tensor) -> None:
    plain = judge(f"hf:{home}/vit#gore")
    middle = round(float(plain.harmful(images).median()), 4)
    named = judge(f"hf:{home}/vit#gore@{middle}")
    assert (named.threshold, named.name, named.version) == (middle, plain.name, plain.version)
    assert finds_harm(named, images).tolist() == (plain.harmful(images) > middle).tolist()
    assert 0 < int(finds_harm(named, images).sum()) < 7
    assert judge("self@0.25").threshold == 0.25
    assert judge("any(self,opennsfw)@.75").threshold == 0.75


def test_any_finds_harm_where_one_does(home: Path, images: Tensor) -> None:
    parts = [f"hf:{home}/vit#gore@0.4", f"{names(home)['siglip']}@0.47", f"hf:{home}/multi#drawing"]
    both, single = judge(f"any({','.join(parts)})"), [judge(part) for part in parts]
    verdicts = torch.stack([finds_harm(part, images) for part in single])
    assert finds_harm(both, images).tolist() == verdicts.any(0).tolist()
    assert bool(verdicts.any()) and not bool(verdicts.any(0).all())
    plain = judge(f"any(hf:{home}/vit#gore,any({names(home)['shield']},hf:{home}/multi#drawing))")
    scores = [judge(name).harmful(images) for name in (f"hf:{home}/vit#gore", names(home)["shield"], parts[2])]
    assert torch.equal(plain.harmful(images), torch.stack(scores).amax(0))
    assert both.name == f"any({','.join(parts)})" and both.batch == 32
    assert judge(f"any({parts[0]},{parts[2]})").version != judge(f"any({parts[0][:-4]},{parts[2]})").version


@pytest.mark.parametrize("threshold", [0.0, 0.01, 0.5, 0.9, 1.0])
def test_any_bends_probabilities_at_the_thresholds(threshold: float) -> None:
    steps = torch.linspace(0, 1, 8)
    scores = torch.cat([steps, torch.tensor([threshold]), torch.tensor([threshold]).nextafter(torch.tensor(1.0))])
    part = AtThreshold(Fixed(scores), threshold)
    both = AnyJudge((part, part), "any(a,b)")
    bent = both.harmful(torch.zeros(10, 3, 4, 4))
    assert (bent > 0.5).tolist() == (scores > threshold).tolist()
    assert bool(((bent >= 0) & (bent <= 1)).all()) and bool((bent[:8].diff() >= 0).all())


class Fixed:
    """A judge of given answers."""

    name, version, threshold, covers, batch = "fixed", "1", 0.5, frozenset({"gore"}), 8

    def __init__(self, scores: Tensor) -> None:
        self.scores = scores

    def harmful(self, images: Tensor) -> Tensor:
        return self.scores


@pytest.mark.parametrize("answer", [float("nan"), -0.5, 1.5])
def test_any_names_the_part_that_answers_no_probability(answer: float) -> None:
    both = AnyJudge((Fixed(torch.tensor([0.9])), Fixed(torch.tensor([answer]))), "any(a,b)")
    with pytest.raises(BadNumber, match="judge fixed"):
        finds_harm(both, torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_versions_follow_weights_and_questions(kind: str, home: Path, tmp_path: Path) -> None:
    name = names(home)[kind]
    folder = home / read_name(name).source
    before = judge(name).version
    assert judge(name).version == before
    copied = _changed(folder, tmp_path / "copy", lambda weight: weight + 1e-3)
    assert judge(name.replace(f":{folder}", f":{copied}")).version != before
    others = {
        "vit": "hf:{}/vit#drawing",
        "multi": "hf:{}/multi#gore",
        "shield": "guard:{}/shield?policies=sexual",
        "llava": "guard:{0}/llava?ask={0}/ask.json",
    }
    if other := others.get(kind):
        assert judge(other.format(home)).version != before


def test_versions_follow_the_texts(home: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.json").write_text(json.dumps({**TEXTS, "harmless": ["a weapon"]}), encoding="utf-8")
    other = judge(f"zeroshot:{home}/clip?texts={tmp_path}/texts.json")
    assert other.version != judge(names(home)["clip"]).version


def _changed(folder: Path, copy: Path, change: Callable[[Tensor], Tensor]) -> Path:
    """A copy of a checkpoint with a change to the first number of its last weight."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    weight = weights[max(weights)].flatten()
    weight[0] = change(weight[0])
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    return copy


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(kind: str, value: float, home: Path, tmp_path: Path) -> None:
    name = names(home)[kind]
    folder = home / read_name(name).source
    copied = _changed(folder, tmp_path / "copy", lambda weight: weight * 0 + value)
    with pytest.raises(BadModel, match=r"^judge (hf|zeroshot|guard):.*holds NaN or infinity"):
        judge(name.replace(f":{folder}", f":{copied}"))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hf:{0}/vit#nudity", "no label 'nudity'; its labels are 'drawing', 'gore', 'weapon\\+knife'"),
        ("hf:{0}/vit#gore+nudity", "no label 'nudity'"),
        ("hf:{0}/vit#weapon", "no label 'weapon'"),
        ("hf:{0}/pair#a+b", "every label it has"),
        ("hf:{0}/shield#LABEL_1", "name it guard:"),
        ("hf:{0}/nowhere#gore", "no such folder|neither a folder"),
        ("hf:{0}/siglip#LABEL_1", "lacks the weights classifier"),
        ("hf:{0}/vit24#gore", "cannot take an image of 32 x 32 pixels"),
        ("hf:{0}/blind#gore", "has no image processor"),
        ("hf:{0}/empty#gore", "config.json"),
        ("hf:{0}/bare#gore", "no .safetensors file"),
        ("zeroshot:{0}/vit?texts={0}/texts.json", "is a 'vit' model, not a CLIP or SigLIP"),
        ("zeroshot:{0}/halved?texts={0}/texts.json", "lacks the weights"),
        ("guard:{0}/vit", "is a 'vit' model, not a chat model"),
        ("guard:{0}/shield?policies=hate", "no policy 'hate'; its policies are dangerous, sexual, violence"),
        ("guard:{0}/shield?ask={0}/ask.json", "its own policies"),
        ("guard:{0}/llava?policies=sexual", "only ShieldGemma 2 has policies"),
        ("guard:{0}/llava?ask={0}/same.json", "begin with the same token"),
    ],
)
def test_checkpoints_that_cannot_judge_are_refused(name: str, reason: str, home: Path) -> None:
    if not (home / "blind").exists():
        _spoil(home)
    with pytest.raises(BadModel, match=rf"^judge {name.split(':')[0]}:.*({reason})"):
        judge(name.format(home))


def _spoil(home: Path) -> None:
    tiny.build_vit(home / "pair", ("a", "b"))
    tiny.build_vit(home / "vit24", size=24)
    for name in ("blind", "bare"):
        shutil.copytree(home / "vit", home / name)
    (home / "blind" / "preprocessor_config.json").unlink()
    (home / "bare" / "model.safetensors").unlink()
    (home / "empty").mkdir()
    shutil.copytree(home / "clip", home / "halved")
    weights = load_file(home / "clip" / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, home / "halved" / "model.safetensors", {"format": "pt"})
    (home / "same.json").write_text(json.dumps({"question": "?", "unsafe": ["yes"], "safe": ["yes"]}))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "FileNotFoundError"),
        ("{", "JSONDecodeError"),
        ('{"harmful": {"gore": ["a"]}}', "harmless"),
        ('{"harmful": {}, "harmless": ["b"]}', "names no category"),
        ('{"harmful": {"gore": []}, "harmless": ["b"]}', "at least one"),
        ('{"harmful": {"gore": ["a"]}, "harmless": [" "]}', "list of texts"),
        ('{"harmful": ["a"], "harmless": ["b"]}', "AttributeError"),
    ],
)
def test_texts_are_read_before_any_weights(text: str | None, reason: str, home: Path, tmp_path: Path) -> None:
    file = tmp_path / "texts.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    spoilt = f"hf:{home}/nowhere#gore"  # never looked for
    with pytest.raises(BadModel, match=rf"^texts {file}: .*{reason}"):
        judge(f"any({spoilt},zeroshot:{home}/clip?texts={file})")


@pytest.mark.parametrize(
    "text",
    [
        None,
        "[]",
        '{"question": 1, "unsafe": ["a"], "safe": ["b"]}',
        '{"question": "?", "unsafe": "a", "safe": ["b"]}',
        '{"question": "?", "unsafe": ["a"]}',
        '{"question": "?", "unsafe": ["a"], "safe": ["b"], "more": 1}',
    ],
)
def test_questions_are_read_before_any_weights(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "ask.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(BadModel, match=rf"^question {file}: "):
        judge(f"guard:nowhere?ask={file}")


@pytest.mark.parametrize(
    ("name", "allowed"),
    [
        ("nobody", "one of .*opennsfw.*hf:FOLDER#LABEL"),
        ("", "one of"),
        ("hf:", "a folder or repository after hf:"),
        ("hf:#gore", "a folder or repository after hf:"),
        ("hf:folder", "a label of the classifier after #"),
        ("hf:folder#", "a label of the classifier after #"),
        ("hf:folder#a++b", "a label of the classifier after #"),
        ("hf:folder#a?cover=b", "each of covers=... at most once"),
        ("hf:folder#a?covers=b&covers=c", "at most once"),
        ("hf:folder#a?covers=", "at most once"),
        ("hf:folder#a?covers=b,,c", "none of them empty"),
        ("zeroshot:folder", r"\?texts=FILE"),
        ("zeroshot:?texts=a.json", "a folder or repository after zeroshot:"),
        ("guard:", "a folder or repository after guard:"),
        ("guard:folder?policies=a&ask=b", "not both"),
        ("clip:folder", "one of"),
        ("any()", "two or more names"),
        ("any(self)", "two or more names"),
        ("any(self,nobody)", "one of"),
        ("any(self,hf:folder#a?covers=gore,decay)", "one of"),
        ("any(self,opennsfw", "one of"),
        ("self@", "a number from 0 to 1"),
        ("self@1.1", "a number from 0 to 1"),
        ("self@-0.5", "a number from 0 to 1"),
        ("self@nan", "a number from 0 to 1"),
        ("self@0_5", "a number from 0 to 1"),
        ("any(self@2,opennsfw)", "a number from 0 to 1"),
    ],
)
def test_bad_names_are_refused_with_what_is_allowed(name: str, allowed: str) -> None:
    with pytest.raises(BadInput, match=allowed):
        judge(name)


def test_names_are_split_outside_parentheses() -> None:
    assert split_names("self, any(a,any(b,c)@0.2),hf:x#y") == ["self", "any(a,any(b,c)@0.2)", "hf:x#y"]
    name = read_name("any(hf:a@b/c#x+y?covers=d+e@0.4,zeroshot:o/m?texts=f.json)@1")
    assert (name.kind, name.threshold, [part.threshold for part in name.parts]) == ("any", 1.0, [0.4, None])
    assert (name.parts[0].source, name.parts[0].label) == ("a@b/c", "x+y")
    assert name.parts[0].covers == frozenset({"d", "e"}) and name.parts[1].options == {"texts": "f.json"}


def test_the_names_in_the_documentation_are_names(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "judges-by-name.md").read_text(encoding="utf-8")
    lines = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    named = [line for line in lines if line.startswith(("self", "hf:", "zeroshot:", "any("))]
    assert [read_name(line).threshold for line in named] == [0.6, None, 0.05, None]
    texts = page[page.index('    {"harmful"') : page.index("**Questions**")]
    (tmp_path / "texts.json").write_text(texts, encoding="utf-8")
    assert set(read_texts(tmp_path / "texts.json").harmful) == {"gore", "weapons"}
    for line in (line for line in lines if line.startswith('{"question"')):
        (tmp_path / "ask.json").write_text(line, encoding="utf-8")
        assert not read_question(tmp_path / "ask.json").prefix.endswith(" ")


def test_a_part_of_a_model_is_no_judge(home: Path, tmp_path: Path) -> None:
    tiny.build_clip(tmp_path / "eye")
    CLIPVisionModel.from_pretrained(tmp_path / "eye").save_pretrained(tmp_path / "eye")
    with pytest.raises(BadModel, match="is a 'clip_vision_model' model"):
        judge(f"zeroshot:{tmp_path}/eye?texts={home}/texts.json")


def test_beside_is_the_second_judge_of_the_embedded_model() -> None:
    from engine.registry import EMBEDDED, load_model

    model = load_model("embedded", "cpu", "float32")
    named = parse_judge("any(beside@0.6,referee)", model, CPU)
    assert named.covers == frozenset({"gore", "decay", "weapons", "substances"})
    size = model.facts.image_size
    assert named.harmful(torch.zeros(2, 3, size, size)).shape == (2,)
    assert read_categories(EMBEDDED / "second_judge") == parse_second_judge("beside", model, CPU).covers
    for name in ("referee", "any(beside@0.6,referee)", "self"):
        with pytest.raises(BadInput, match="second_judge"):
            parse_second_judge(name, model, CPU)
    with pytest.raises(BadModel):
        judge("beside")
