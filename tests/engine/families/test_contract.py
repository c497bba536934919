"""Contract of every family, on a tiny random model of each: batches, teacher forcing, previews, gradients."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadInput, BadModel
from engine.family import families
from engine.model import REFUSED, ImageRequest, Sampling
from engine.registry import check_model, find_family, load_model, load_published
from engine.runner.served import Served
from engine.scheduler.scheduler import Scheduler
from engine.unified.published import Published
from engine.unified.served_model import ServedModel
from tests.support.families.builders import BUILDERS

PROMPTS = ("a red fox", "a dog", "", "a long sentence about a red apple and a star on the table", "x")


@pytest.fixture(scope="module", params=BUILDERS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return BUILDERS[request.param](tmp_path_factory.mktemp(request.param) / "ein Modell, für Tests")


@pytest.fixture(scope="module")
def model(folder: Path) -> Served:
    return load_model(str(folder), "cpu", "float32")


def requests(base: Codebook, count: int) -> list[ImageRequest]:
    """Requests of all kinds: greedy and sampled, guided and not, with and without a limit of codes."""
    return [
        ImageRequest(
            PROMPTS[n % len(PROMPTS)],
            Sampling(n, (1.0, 2.0, 3.0)[n % 3], (0.0, 0.7, 1.0)[n % 3], (0, 5)[n % 2], (1.0, 0.5)[n % 4 // 2]),
            base,
        )
        for n in range(count)
    ]


def test_a_family_is_found_by_its_config_and_checked_before_it_is_loaded(folder: Path, model: Served) -> None:
    family = find_family(folder)
    assert family in families() and model.facts.family == family.NAME
    assert family.NAME in check_model(str(folder))


def test_a_kv_row_is_known_before_the_model_is_loaded(folder: Path, model: Served) -> None:
    assert isinstance(model, ServedModel)
    row = model._image_lm.decoder.row_bytes(model._positions)
    assert find_family(folder).kv_numbers(folder) * torch.float32.itemsize == row


@pytest.mark.parametrize("part", [r"decoder\..*weight", "quantize.*weight"])
def test_a_weight_for_pixels_that_is_no_number_is_refused_by_its_name(part: str, folder: Path, tmp_path: Path) -> None:
    """Of the image decoder, which transformers loads for two families alone, and of the pixel table."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    files = {file: load_file(file) for file in copy.rglob("*.safetensors")}
    file, key = next((file, key) for file, tensors in files.items() for key in tensors if re.search(part, key))
    files[file][key].view(-1)[3] = torch.nan
    save_file(files[file], file, {"format": "pt"})
    with pytest.raises(BadModel, match="holds NaN or infinity"):
        load_model(str(copy), "cpu", "float32")


@pytest.fixture(scope="module")
def reference(folder: Path) -> Published:
    published = load_published(str(folder), "cpu", "float32")
    assert published is not None
    return published


@pytest.mark.parametrize("guidance", [2.0, 7.0])
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_tokens_and_logits_are_those_of_generate(
    model: Served, reference: Published, prompt: str, guidance: float
) -> None:
    (tokens,) = model.draw([ImageRequest(prompt, Sampling(1, guidance, 0.0), model.base_codebook())])
    greedy = reference.greedy(prompt, guidance, model.facts.tokens)
    assert torch.equal(greedy.tokens, tokens)
    assert torch.allclose(model.head(model.features([prompt], tokens[None]))[0], greedy.logits, rtol=1e-3, atol=1e-4)


def test_pixels_are_those_of_the_published_decoder_to_the_bit(
    model: Served, reference: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = model.base_codebook()
    tokens = torch.randperm(model.facts.codes, generator=torch.Generator().manual_seed(1))[: model.facts.tokens]
    assert reference.decode is not None and torch.equal(reference.table, base.pixel)
    if model.facts.family == "emu3":
        # As published it decodes four frames together, and oneDNN adds otherwise for four than for the one served.
        assert torch.allclose(model.decode(tokens[None], base.pixel), reference.decode(tokens), atol=5e-6)
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert torch.equal(model.decode(tokens[None], base.pixel), reference.decode(tokens))


def test_codes_of_an_image_follow_from_it_alone(model: Served) -> None:
    base = model.base_codebook()
    images = model.decode(model.draw(requests(base, 3)), base.pixel)
    codes = model.encode(images)
    assert codes is not None and codes.shape == (3, model.facts.tokens)
    alone = model.encode(images[2:])
    assert alone is not None and torch.equal(codes[2:], alone)


def test_an_image_is_the_same_alone_and_in_any_batch(model: Served) -> None:
    drawn_for = requests(model.base_codebook(), 24)
    together = model.draw(drawn_for)
    alone = torch.cat([model.draw([request]) for request in drawn_for])
    assert torch.equal(together, alone)
    assert int(together.min()) >= 0 and int(together.max()) < model.facts.codes
    assert together.shape == (24, model.facts.tokens)


def test_codes_are_drawn_within_top_k_and_top_p(model: Served) -> None:
    """Of the first code, which many seeds draw from the same logits."""
    base, how = model.base_codebook(), Sampling(0, 1.0, 2.0, 7, 0.8)
    logits = model.head(model.features(PROMPTS[:1], torch.zeros(1, 2, dtype=torch.int64)))[0, 0] / how.temperature
    ranked, codes = logits.topk(how.top_k)
    before = ranked.softmax(0).cumsum(0) - ranked.softmax(0)
    drawn = model.draw([ImageRequest(PROMPTS[0], replace(how, seed=seed), base) for seed in range(80)])
    assert set(drawn[:, 0].tolist()) <= set(codes[before < how.top_p].tolist())
    wide = model.draw([ImageRequest(PROMPTS[0], Sampling(seed, 1.0, 2.0), base) for seed in range(80)])
    assert not set(wide[:, 0].tolist()) <= set(codes.tolist())


def test_a_family_has_its_own_sampling(model: Served) -> None:
    own = {"anole": (0, 0.9), "emu3": (64, 1.0), "janus": (0, 1.0), "liquid": (64, 0.96), "vila_u": (64, 0.96)}
    sampling = model.facts.sampling(3)
    assert (sampling.top_k, sampling.top_p) == own[model.facts.family]


def test_images_that_join_and_leave_are_the_same(model: Served) -> None:
    drawn_for = requests(model.base_codebook(), 12)
    right = model.draw(drawn_for)
    scheduler = Scheduler(model, 6, cores=1)
    try:
        results = [scheduler.submit_draw([request]) for request in drawn_for]
        drawn = torch.stack([result.result(120)[0].tokens for result in results])
    finally:
        scheduler.close()
    assert torch.equal(drawn, right)


def test_features_are_those_that_drew_the_tokens(model: Served) -> None:
    base = model.base_codebook()
    greedy = [ImageRequest(prompt, Sampling(1, 1.0, 0.0), base) for prompt in PROMPTS]
    tokens = model.draw(greedy)
    features = model.features(PROMPTS, tokens)
    assert features.shape == (len(PROMPTS), model.facts.tokens, model.facts.feature_dim)
    assert torch.equal(model.head(features).argmax(-1), tokens)
    some = model.facts.tokens // 2
    assert torch.allclose(model.features(PROMPTS, tokens[:, :some]), features[:, :some], atol=1e-5)


def test_a_halfway_probe_reads_the_mean_of_the_features_so_far(model: Served) -> None:
    """Of the codes up to the end of a cell, some of them beyond the first line of the image."""
    base, facts, cells = model.base_codebook(), model.facts, model.facts.grid[1] + 2
    requests = [ImageRequest(f"a fox {seed}", Sampling(seed, 1.0), base) for seed in range(6)]
    bare, ends = model.draw(requests), cells * facts.depth
    with torch.no_grad():
        means = model.features([request.prompt for request in requests], bare[:, :ends]).mean(1)
    apart, middle = means[0] - means[1], means[:2].mean(0)
    probes = Router(apart[None], -(apart @ middle)[None], torch.tensor([0]))
    deaf = Router(torch.zeros(1, facts.hidden_dim), torch.tensor([-99.0]), torch.tensor([0]))
    still = torch.zeros(1, facts.feature_dim, 1), torch.zeros(1, 1, facts.feature_dim)
    edit = HeadEdit(torch.eye(facts.feature_dim, 1)[None], torch.zeros(facts.feature_dim), *still, deaf, mode="refuse")
    right = torch.where((means @ apart > apart @ middle)[:, None], REFUSED, bare)
    assert 0 < int((right == REFUSED).all(1).sum()) < len(requests)
    for after in {ends, ends - facts.depth + 1}:
        book = replace(base, version="draft", output=replace(edit, probe=HalfwayProbe(after, probes)))
        assert torch.equal(model.draw([replace(request, codebook=book) for request in requests]), right)


def test_pictures_follow_from_tokens_and_table_image_by_image(model: Served) -> None:
    base, count = model.base_codebook(), 4
    tokens = model.draw(requests(base, count))
    images = model.decode(tokens, base.pixel)
    assert images.shape == (count, 3, model.facts.image_size, model.facts.image_size)
    assert float(images.abs().max()) <= 1.0
    assert torch.equal(images[1:2], model.decode(tokens[1:2], base.pixel))
    tables = torch.stack([base.pixel * scale for scale in (1.0, -1.0, 1.0, 1.0)])
    mixed = model.decode(tokens, tables)
    assert torch.equal(mixed[0], images[0]) and not torch.equal(mixed[1], images[1])
    preview = model.preview(tokens[0, :5], base.pixel)
    assert preview.shape == images[:1].shape


def test_a_tables_gradient_is_that_of_differences(model: Served) -> None:
    base = model.base_codebook()
    tokens = model.draw(requests(base, 1))
    code, step = int(tokens[0, 0]), 1e-2

    def brightness(table: torch.Tensor) -> torch.Tensor:
        return model.decode(tokens, table).mean()

    table = base.pixel.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(brightness(table), table)
    moved = torch.zeros_like(base.pixel)
    moved[code, 0] = step
    difference = (brightness(base.pixel + moved) - brightness(base.pixel - moved)) / (2 * step)
    assert float(gradient[code, 0]) == pytest.approx(float(difference), rel=0.1, abs=1e-4)


def test_a_verdict_and_an_answer_do_not_depend_on_their_batch(model: Served) -> None:
    base = model.base_codebook()
    images = model.decode(model.draw(requests(base, 6)), base.pixel)
    assert model.judge(images)[4] == model.judge(images[4:5])[0]
    assert all(0 <= score <= 1 for verdict in model.judge(images) for score in verdict.scores)


def test_a_judge_reads_what_the_model_s_facts_say(model: Served) -> None:
    """What does not change the codes of an image a judge of codes does not see, and a judge of pixels does."""
    base = model.base_codebook()
    images = model.decode(model.draw(requests(base, 3)), base.pixel) * 0.9
    other = images + 1e-4 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    codes, same = model.encode(images), model.encode(other)
    assert codes is not None and same is not None and torch.equal(codes, same)
    assert (model.judge(images) == model.judge(other)) == (model.facts.judge_reads == "codes")


def test_a_rewrite_and_its_likelihood_are_functions_of_the_prompt(model: Served) -> None:
    alone = [model.rewrite([prompt])[0] for prompt in ("a red fox", "a dog")]
    assert model.rewrite(["a red fox", "a dog"]) == alone
    (verdict,) = model.judge_texts(["a red fox"])
    assert 0 <= verdict.harmful <= 1 and verdict.nll > 0


def test_prompts_that_cannot_be_read_are_refused(model: Served) -> None:
    with pytest.raises(BadInput, match="at most"):
        model.check_prompt("fox " * 2000)


def test_an_edit_of_the_pixel_table_changes_no_token(model: Served) -> None:
    base = model.base_codebook()
    edited = replace(base, version="draft", pixel=base.pixel.flip(0))
    tokens = model.draw(requests(base, 5))
    assert torch.equal(tokens, model.draw(requests(edited, 5)))
    assert not torch.equal(model.decode(tokens, base.pixel), model.decode(tokens, edited.pixel))


def test_a_folder_of_another_kind_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BadModel, match=r"is a 'llama' model; the families served are: 'anole', 'emu3', 'janus'"):
        find_family(tmp_path)
    with pytest.raises(
        BadModel, match=r"there are random:anole-7b, random:emu3, random:janus-pro-1b, random:janus-pro-7b"
    ):
        load_model("random:none", "cpu", "auto")
