"""The running batch: images join and leave at any step, and each one's tokens follow from its request alone."""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, cycle, product
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import TopKLogitsWarper, TopPLogitsWarper

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadModel
from engine.model import ImageRequest, Sampling
from engine.registry import EMBEDDED, load_model
from engine.runner.batch import RunningBatch
from engine.runner.cuda_graphs import Record, Recorded, Replay, recorder
from engine.runner.image_lm import CACHED_UNCONDITIONAL, ImageLM, Routed
from engine.runner.linear import Linear, can_pack
from engine.runner.memory import MAX_ROWS_ON_CPU, available, fitting, planned_rows
from engine.runner.sampling import floors, sample
from engine.runner.sequence import ImageSequence, kv_rows_of
from engine.runner.served import Served
from engine.runner.step import team
from engine.unified.served_model import ServedModel
from tests.support.draws import draws_of
from tests.support.tape import record
from tests.support.tiny import build_tiny

PROMPTS = (
    "a red apple",
    "a dog covered in snow on a blue background",
    "x",
    "two keys and a hat in the noto style, on a yellow background, drawn with care for somebody who likes long prompts",
    "a cat",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Served:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


@pytest.fixture(scope="module")
def embedded() -> Served:
    torch.set_num_threads(1)
    return load_model(str(EMBEDDED), "cpu", "float32")


def books(model: Served) -> list[Codebook]:
    """The model's own codebook, and one whose edit applies to every image."""
    base, noise = model.base_codebook(), torch.Generator().manual_seed(0)
    width = model.facts.feature_dim
    basis = torch.linalg.qr(torch.randn(1, width, 8, generator=noise)).Q
    down, up = torch.randn(1, width, 2, generator=noise) / 9, torch.randn(1, 2, width, generator=noise) / 9
    bias = torch.randn(1, model.facts.codes, generator=noise)
    edit = HeadEdit(basis, torch.zeros(width), down, up, bias=bias)
    return [base, replace(base, version="v1", output=edit)]


def random_requests(model: Served, count: int) -> list[ImageRequest]:
    chance, codebooks = random.Random(1), books(model)
    return [
        ImageRequest(
            chance.choice(PROMPTS),
            Sampling(
                seed, chance.choice([1.0, 2.0, 3.5]), chance.choice([0.0, 0.7, 1.0]), chance.choice([0, 0, 3]), how
            ),
            chance.choice(codebooks),
        )
        for seed, how in zip(range(count), cycle([1.0, 1.0, 0.6]), strict=False)
    ]


def mostly_recorded(model: Served, count: int) -> list[ImageRequest]:
    """Images of which few have an edit: while one is drawn that has, draws are not recorded."""
    plain = model.base_codebook()
    return [
        request if number % 20 == 7 else replace(request, codebook=plain)
        for number, request in enumerate(random_requests(model, count))
    ]


def noting(widths: list[int], record: Record) -> Record:
    """A recorder that notes how many rows each recording is for."""

    def noted(compute: Replay) -> Replay:
        replay = record(compute)
        widths.append(replay().shape[0])
        return replay

    return noted


def sequence_of(model: Served, request: ImageRequest) -> ImageSequence:
    return ImageSequence(request, model.tokenize(request.prompt))


def draw_batched(
    model: Served, requests: Sequence[ImageRequest], kv_rows: int, threads: Sequence[int] = (1,)
) -> Tensor:
    """Draw them in one batch of `kv_rows` rows, joining and leaving at random; some are dropped and begin anew.

    The threads of each step are chosen from `threads`: the scheduler changes them too.
    """
    chance, batch, waiting = random.Random(2), model.running_batch(kv_rows), list(enumerate(requests))
    tokens = torch.zeros(len(requests), model.facts.tokens, dtype=torch.int64)
    running: dict[ImageSequence, int] = {}
    while waiting or running:
        while waiting and chance.random() < 0.7 and kv_rows_of(waiting[0][1]) <= batch.free:
            number, request = waiting.pop(0)
            sequence = sequence_of(model, request)
            batch.admit([sequence])
            running[sequence] = number
        if batch.sequences and chance.random() < 0.02:
            sequence = chance.choice(batch.sequences)
            batch.drop(sequence)
            waiting.append((running.pop(sequence), sequence.request))
        if batch.sequences:
            torch.set_num_threads(chance.choice(threads))
            for sequence in batch.step():
                tokens[running.pop(sequence)] = sequence.tokens
    torch.set_num_threads(1)
    assert batch.free == kv_rows
    return tokens


def test_two_hundred_images_are_batch_invariant(tiny: Served) -> None:
    requests = random_requests(tiny, 200)
    alone = torch.cat([tiny.draw([request]) for request in requests])
    assert len(set(map(tuple, alone.tolist()))) > 100  # a third are greedy
    assert torch.equal(alone, draw_batched(tiny, requests, 32))


def probing(model: Served, features: Tensor, after: int) -> Codebook:
    """A codebook whose edit applies to no prompt, and halfway to images with a mean feature like the first.

    features: [2, M]: one at which the probe fires, and one at which it does not.
    """
    apart, middle = features[0] - features[1], features.mean(0)
    deaf = Router(torch.zeros(1, model.facts.hidden_dim), torch.tensor([-99.0]), torch.tensor([0]))
    probes = Router(apart[None], -(apart @ middle)[None], torch.tensor([0]))
    edited = books(model)[1]
    assert edited.output is not None
    return replace(edited, output=replace(edited.output, router=deaf, probe=HalfwayProbe(after, probes)))


@pytest.mark.parametrize("recorded", [False, True])
def test_an_image_whose_halfway_probe_fires_is_what_it_would_be_if_its_prompt_had_fired(
    recorded: bool, tiny: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, edited = books(tiny)
    requests = random_requests(tiny, 60)
    bare = torch.cat([tiny.draw([replace(request, codebook=plain)]) for request in requests])
    with torch.no_grad():
        means = tiny.features([request.prompt for request in requests], bare[:, :6]).mean(1)
    far = torch.cdist(means, means).argmax().item()
    book = probing(tiny, means[[int(far // 60), int(far % 60)]], 6)
    probed = [replace(request, codebook=book) for request in requests]
    drawn = torch.cat([tiny.draw([request]) for request in probed])
    routed = torch.cat([tiny.draw([replace(request, codebook=edited)]) for request in requests])
    same = [(torch.equal(a, b), torch.equal(a, c)) for a, b, c in zip(drawn, bare, routed, strict=True)]
    assert all(quiet or fired for quiet, fired in same)
    assert min(sum(quiet for quiet, _ in same), sum(fired for _, fired in same)) >= 10
    if recorded:
        monkeypatch.setattr("engine.runner.batch.recorder", lambda device: record)
    assert torch.equal(drawn, draw_batched(tiny, probed, 16))


def test_an_edit_leaves_its_images_a_share_of_their_guidance(tiny: Served) -> None:
    edited = books(tiny)[1]
    assert edited.output is not None
    calm = replace(edited, output=replace(edited.output, guidance=0.25))
    for scale, left in ((1.0, 1.0), (2.0, 1.25), (5.0, 2.0)):
        a, b = ([ImageRequest(PROMPTS[0], Sampling(3, s), book)] for s, book in ((scale, calm), (left, edited)))
        assert torch.equal(tiny.draw(a), tiny.draw(b))
    deaf = probing(tiny, torch.zeros(2, tiny.facts.feature_dim), 6)
    assert deaf.output is not None
    silent = replace(deaf, output=replace(deaf.output, guidance=0.25))
    plain = [[ImageRequest(PROMPTS[0], Sampling(3, 2.0), book)] for book in (silent, books(tiny)[0])]
    assert torch.equal(*map(tiny.draw, plain))


@pytest.mark.parametrize(("dtype", "images"), [("float32", 16), ("bfloat16", 6)])  # the latter emulated where slow
def test_the_embedded_model_is_batch_invariant(dtype: str, images: int) -> None:
    model = load_model(str(EMBEDDED), "cpu", dtype)
    requests = random_requests(model, images)
    batched = draw_batched(model, requests, 12, threads=(1, 2, 3))
    assert torch.equal(torch.cat([model.draw([one]) for one in requests]), batched)


def test_logits_are_batch_invariant_to_the_last_bit(embedded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    noted: list[Tensor] = []
    logits = ImageLM.logits

    def spied(image_lm: ImageLM, features: Tensor, routed: Routed) -> Tensor:
        result = logits(image_lm, features, routed)
        noted.append(result.clone())
        return result

    monkeypatch.setattr(ImageLM, "logits", spied)
    requests = random_requests(embedded, 7)
    for number, request in enumerate(requests):
        batch, rows = embedded.running_batch(16, lookahead=1), kv_rows_of(request)
        batch.admit([sequence_of(embedded, request)])
        for _ in range(20):
            batch.step()
        alone, before = [each[:rows] for each in noted], sum(map(kv_rows_of, requests[:number]))
        noted.clear()
        batch = embedded.running_batch(16, lookahead=1)
        batch.admit([sequence_of(embedded, each) for each in requests])
        for _ in range(20):
            torch.set_num_threads(2)
            batch.step()
        torch.set_num_threads(1)
        batched = [each[before : before + rows] for each in noted]
        noted.clear()
        assert all(map(torch.equal, alone, batched))


def test_a_draw_tries_numbers_of_threads_and_gives_them_back(embedded: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(embedded, 3)
    right, taken = embedded.draw(requests), set()
    monkeypatch.setattr(team, "FIRST_WAIT_S", 0.0)
    monkeypatch.setattr(team, "LAST_WAIT_S", 0.0)
    step = RunningBatch.step

    def spied(batch: RunningBatch) -> list[ImageSequence]:
        taken.add(torch.get_num_threads())
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", spied)
    try:
        torch.set_num_threads(2)
        assert torch.equal(embedded.draw(requests), right)
        assert taken == {1, 2} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_images_and_verdicts_are_batch_invariant_to_the_last_bit(embedded: Served) -> None:
    requests, table = random_requests(embedded, 6), embedded.base_codebook().pixel
    tokens = embedded.draw(requests)
    with torch.no_grad():
        images = embedded.decode(tokens, table)
        verdicts = embedded.judge(images)
        for i in range(6):
            alone = embedded.decode(tokens[i : i + 1], table)
            assert torch.equal(alone, images[i : i + 1])
            assert embedded.judge(alone) == verdicts[i : i + 1]


def test_a_full_batch_is_used_again(tiny: Served) -> None:
    batch, request = tiny.running_batch(4), random_requests(tiny, 1)[0]
    request = replace(request, sampling=Sampling(3))
    right = tiny.draw([request])[0]
    for _ in range(3):
        batch.admit([sequence_of(tiny, request) for _ in range(2)])
        assert batch.free == 0
        complete = list(chain.from_iterable(batch.step() for _ in range(tiny.facts.tokens)))
        assert all(torch.equal(sequence.tokens, right) for sequence in complete) and len(complete) == 2


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("biased", [True, False])
def test_stacked_layers_multiply_like_each_of_them(kind: torch.dtype, biased: bool) -> None:
    layers = [nn.Linear(50, outputs, bias=biased, dtype=kind) for outputs in (100, 7)]
    linear = Linear(layers)
    x = torch.randn(3, 40, 50).to(kind)
    with torch.no_grad():
        right = torch.cat([F.linear(x, layer.weight, layer.bias) for layer in layers], -1)
        tolerance = 2e-2 if kind == torch.bfloat16 else 1e-5
        torch.testing.assert_close(linear(x), right, atol=tolerance, rtol=tolerance)


@pytest.mark.skipif(not can_pack(torch.zeros(1, 1)), reason="oneDNN is not there: no promise is made")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_product_does_not_depend_on_the_number_of_rows(kind: torch.dtype) -> None:
    for inputs, outputs in ((384, 1152), (1024, 384), (50, 100)):
        linear, x = Linear([nn.Linear(inputs, outputs, dtype=kind)]), torch.randn(600, inputs).to(kind)
        with torch.no_grad():
            right = linear(x)
            for rows in (*range(1, 66), 90, 96, 100, 128, 150, 256, 257, 300, 513):
                assert torch.equal(linear(x[-rows:]), right[-rows:])


def test_the_model_keeps_one_copy_of_its_layers(tmp_path: Path) -> None:
    model: Any = load_model(str(build_tiny(tmp_path / "tiny")), "cpu", "float32")
    assert len(model._parts.drawing.backbone.layers) == 0


def test_recorded_steps_draw_the_same_in_padded_rows(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    requests = mostly_recorded(tiny, 100)
    right = torch.cat([tiny.draw([request]) for request in requests])
    monkeypatch.setattr("engine.runner.batch.recorder", lambda device: noting(widths, record))
    assert torch.equal(draw_batched(tiny, requests, 12), right)
    assert set(widths) <= {1, 2, 4, 8, 12} and all(widths.count(width) == 2 for width in (4, 8, 12))


def test_recordings_are_made_before_the_first_image(tiny: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    monkeypatch.setattr("engine.runner.batch.recorder", lambda device: noting(widths, record))
    batch = tiny.running_batch(6)
    batch.warm()
    assert widths == [1, 1, 2, 2, 4, 4, 6, 6]  # a draw and a reading each
    batch.admit([sequence_of(tiny, request) for request in random_requests(tiny, 3)])
    while batch.sequences:
        batch.step()
    assert len(widths) == 8


@pytest.mark.parametrize("recorded", [False, True])
def test_a_batch_is_freed_without_a_search_for_cycles(
    recorded: bool, tiny: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    if recorded:
        monkeypatch.setattr(
            "engine.runner.batch.recorder", lambda device: lambda compute: partial(torch.clone, compute())
        )
    batch = tiny.running_batch(2)
    batch.warm()
    gone = weakref.ref(batch)
    gc.disable()
    try:
        del batch
        assert gone() is None
    finally:
        gc.enable()


def test_no_images_are_drawn_of_no_requests(tiny: Served) -> None:
    assert tiny.draw([]).shape == (0, tiny.facts.tokens)


def test_a_computation_that_asks_the_host_cannot_be_recorded() -> None:
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="cannot be recorded"):
        record(lambda: x * x.sum().item())
    with pytest.raises(AssertionError, match="cannot be recorded"):
        record(lambda: x[x > 0])


def test_a_recording_computes_from_its_inputs() -> None:
    recorded: list[Tensor] = []

    def record(compute: Replay) -> Replay:
        recorded.append(compute())

        def replay() -> Tensor:
            return recorded[0].copy_(compute())

        return replay

    twice = Recorded(lambda x, y: 2 * x + y, record)
    with torch.no_grad():
        first, second = (twice(torch.tensor([x]), torch.tensor([1.0])) for x in (1.0, 5.0))
    assert (first.tolist(), second.tolist(), len(recorded)) == ([3.0], [11.0], 1)
    assert not second.is_inference()  # tuning may index with it


def test_a_gpu_is_recorded_and_a_cpu_is_not() -> None:
    assert recorder(torch.device("cpu")) is None
    assert recorder(torch.device("cuda")) is not None


def test_rows_are_planned_from_the_memory_that_is_free() -> None:
    assert fitting(100, 9, 256) == 10
    assert fitting(10**9, 9, 256) == 256
    with pytest.raises(BadModel, match="GiB"):
        fitting(15, 9, 256)
    with pytest.raises(BadModel):
        fitting(-5, 9, 256)
    assert planned_rows(torch.device("cpu"), 1) == MAX_ROWS_ON_CPU


def test_a_container_s_limit_counts(tmp_path: Path) -> None:
    machine = available(tmp_path)  # no such files: no limit
    assert machine > 0
    (tmp_path / "memory.current").write_text("300\n")
    for limit, left in (("max", machine), ("1000", 700), ("200", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        assert available(tmp_path) == pytest.approx(left, rel=0.2)


@pytest.mark.fault("F14")
@pytest.mark.parametrize(
    ("limit", "used", "cache"),
    [
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_a_container_s_file_cache_counts_as_free(tmp_path: Path, limit: str, used: str, cache: str) -> None:
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("1000\n")
    (tmp_path / used).write_text("950\n")
    assert available(tmp_path) == 50  # no memory.stat: nothing is known to be cache
    stat = (tmp_path / limit).parent / "memory.stat"
    stat.write_text(f"anon 100\ninactive_anon 20\n{cache} 800\nactive_file 30\n")
    assert available(tmp_path) == 850
    stat.write_text(f"{cache} 2000\n")  # the files are read one after the other
    assert available(tmp_path) == 1000


def test_few_unconditional_prompts_are_cached(tiny: Served) -> None:
    image_lm = cast(ServedModel, tiny)._image_lm
    for length in range(3, 60):
        tiny.draw([ImageRequest("x" * length, Sampling(1), tiny.base_codebook())])
    assert len(image_lm._unconditional) == CACHED_UNCONDITIONAL


@pytest.mark.parametrize("codes", [50, 333, 4096])
def test_top_k_and_top_p_leave_what_transformers_leaves(codes: int) -> None:
    logits = 3 * torch.randn(7, codes, generator=torch.Generator().manual_seed(codes))
    logits[:, 3] = logits[:, 7]  # equal ones stay or go together
    samplings = [Sampling(1, 2.0, heat, k, p) for heat, k, p in product((0.7, 2.0), (0, 1, 20, codes), (1.0, 0.3, 0.9))]
    for sampling in samplings:
        right = logits / sampling.temperature
        if sampling.top_k > 0:
            right = TopKLogitsWarper(sampling.top_k)(cast(Any, None), cast(Any, right))
        if sampling.top_p < 1:
            right = TopPLogitsWarper(sampling.top_p)(cast(Any, None), cast(Any, right))
        draws = draws_of([sampling] * 7, codes)
        left = logits >= floors(logits, draws) if draws.ranks else torch.ones_like(logits, dtype=torch.bool)
        left[:, 3] = left[:, 7]
        right[:, 3] = right[:, 7]
        assert torch.equal(left, right > -torch.inf)
        for row in range(7) if draws.ranks else ():
            alone = floors(logits[row : row + 1], draws_of([sampling], codes))
            mixed = floors(logits, draws_of([*samplings[:row], sampling, *samplings[: 6 - row]], codes))
            assert torch.equal(alone[0], mixed[row])


def test_one_row_s_top_k_is_its_own() -> None:
    logits = torch.randn(3, 50)
    samplings = [Sampling(1, top_k=4), Sampling(2), Sampling(3, top_k=9)]
    draws = draws_of(samplings, 50)
    assert draws.ranks == 9
    chosen = [sample(logits, draws, torch.full((3,), step)) for step in range(300)]
    kinds = [set(tokens) for tokens in torch.stack(chosen).T.tolist()]
    assert kinds[0] <= set(logits[0].topk(4).indices.tolist())
    assert kinds[2] <= set(logits[2].topk(9).indices.tolist())
    assert len(kinds[1]) > 20


def test_a_kv_row_takes_the_bytes_planned_for_it(tiny: Served) -> None:
    decoder = cast(ServedModel, tiny)._image_lm.decoder
    cache = decoder.new_cache(3, 40)
    assert cache.keys.nbytes + cache.values.nbytes == 3 * decoder.row_bytes(40)
