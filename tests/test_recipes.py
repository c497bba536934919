"""The recipe, from artwork to a model folder that the engine serves: a few steps of everything, on made-up icons."""

import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.optim._muon import _zeropower_via_newtonschulz as newton_schulz
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from engine.model import CATEGORY_NONE, ImageRequest, Sampling
from engine.registry import load_model
from recipes.build import build
from recipes.patch_codes import PatchCodes
from recipes.pictures.captions import Captioner, Scene
from recipes.pictures.geometry import LANGUAGES, opening
from recipes.pictures.taxonomy import load_taxonomy
from recipes.sizes import SMOKE
from safety.policy.emoji.classifiers import load_classifier

NEWTON_SCHULZ = "torch.optim._muon._zeropower_via_newtonschulz"


def made_up_npm(folder: Path) -> Path:
    """A node_modules folder in which every icon of the taxonomy is a few random shapes."""
    taxonomy, rng = load_taxonomy(), random.Random(0)

    def icon() -> dict[str, str]:
        shapes = [
            f'<circle cx="{rng.randint(20, 108)}" cy="{rng.randint(20, 108)}" r="{rng.randint(8, 40)}" '
            f'fill="#{rng.randrange(1 << 24):06x}"/>'
            for _ in range(4)
        ]
        return {"body": "".join(shapes)}

    for name in taxonomy.styles.values():
        home = folder / "@iconify-json" / name
        home.mkdir(parents=True)
        icons = {"width": 128, "height": 128, "icons": {i: icon() for i in taxonomy.icons}}
        (home / "icons.json").write_text(json.dumps(icons))
    for language in LANGUAGES:
        home = folder / "emojibase-data" / language
        home.mkdir(parents=True)
        (home / "compact.json").write_text(json.dumps([{"label": f"apple {language}", "tags": ["fruit"]}]))
    return folder


def orthogonal_in_one_step(grad: Tensor, coefficients: tuple[float, float, float], _: int, eps: float) -> Tensor:
    """Muon's iteration, once in place of five times: emulated bfloat16 would be half of what the build costs."""
    return newton_schulz(grad, coefficients, 1, eps)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(2)
    home = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NEWTON_SCHULZ, orthogonal_in_one_step)
        build(made_up_npm(home / "npm"), home / "out", home / "model", SMOKE)
    return home


def test_the_built_folder_is_served_by_the_engine(built: Path) -> None:
    model = load_model(str(built / "model"), "cpu", "float32")
    base = model.base_codebook()
    tokens = model.draw([ImageRequest("a red apple", Sampling(seed=1), base)])
    images = model.decode(tokens, base.pixel)
    assert images.shape == (1, 3, 64, 64)
    assert len(model.judge(images)) == 1
    assert model.facts.categories == ("gore", "decay", "weapons", "substances")


def test_both_classifiers_are_shipped_and_differ(built: Path) -> None:
    judges = [load_classifier(built / "model" / name) for name in ("second_judge", "referee")]
    assert judges[0].arch != judges[1].arch
    assert judges[0].nouns == judges[1].nouns == load_taxonomy().nouns


def test_further_words_leave_english_prompts_and_old_embeddings_as_they_are(built: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(built / "model")
    before = PreTrainedTokenizerFast.from_pretrained(built / "out" / "tokenizer")
    for text in Captioner(load_taxonomy()).english():
        assert tokenizer(opening(text)).input_ids == before(opening(text)).input_ids
    text = opening("ein Fuchs und foxes, \N{CYRILLIC SMALL LETTER EL}\u0438\u0441\u0430")
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    fox = next(i for i in ids if tokenizer.convert_ids_to_tokens(i) == "\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}fuchs")
    assert len(before) <= fox < len(tokenizer)

    embeddings = JanusForConditionalGeneration.from_pretrained(built / "model").lm_head.weight
    old = torch.load(built / "out" / "lm.pt")["lm_head.weight"][: len(before)].half()
    assert len(embeddings) == len(tokenizer)
    assert torch.equal(embeddings[: len(old)], old)


def test_every_file_is_small_enough_to_ship(built: Path) -> None:
    sizes = [path.stat().st_size for path in (built / "model").rglob("*") if path.is_file()]
    assert max(sizes) <= 16 * 2**20
    assert sum(sizes) <= 40 * 2**20


def test_a_code_is_its_own_token(built: Path) -> None:
    codes = PatchCodes(**torch.load(built / "out" / "codes.pt"))
    found = (codes.codes @ codes.codes.T).argmax(1)
    assert (codes.codes[found] - codes.codes).abs().max() < 1e-5


def test_the_safe_rewrite_differs_in_the_harm_only() -> None:
    taxonomy = load_taxonomy()
    captioner = Captioner(taxonomy)
    for scene in (Scene("fox", "twemoji", "blue", "splatter"), Scene("axe", "noto", "pink")):
        wording = captioner.wording(random.Random(3), "test")
        before, after = captioner.prompt(scene, wording), captioner.prompt(captioner.safe(scene), wording)
        assert taxonomy.category(scene.noun, scene.pattern) != CATEGORY_NONE
        assert before != after
        assert (scene.colour in after) == (scene.colour in before)
        assert (scene.style in after) == (scene.style in before)
        assert "blood" not in after and "axe" not in after
