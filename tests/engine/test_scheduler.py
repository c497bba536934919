"""The scheduler: many callers, one batch; an image's error is its own, and no caller crowds others out."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from threading import get_ident
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from codebook.router import HalfwayProbe, Router
from codebook.value import Codebook, HeadEdit
from core.errors import BadInput, Busy, Stopping, Unavailable
from core.wire import NICE
from engine.image_result import ImageResult, PartialImage
from engine.model import ImageRequest, Sampling
from engine.registry import load_model
from engine.runner.batch import RunningBatch
from engine.runner.decoder import KVCache
from engine.runner.sequence import ImageSequence, results_of
from engine.runner.served import Served
from engine.scheduler.fair_queue import FairQueue, Place, Refused
from engine.scheduler.scheduler import QUEUE, Scheduler
from engine.scheduler.start_times import starts
from tests.support.serving import wait_for
from tests.support.tiny import build_tiny

ROWS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Served:
    torch.set_num_threads(1)
    return load_model(str(build_tiny(tmp_path_factory.mktemp("tiny"))), "cpu", "float32")


@pytest.fixture(scope="module")
def base(model: Served) -> Codebook:
    return model.base_codebook()


class Gate:
    """Lets the scheduler run `allowed` more steps, and notes the images of each."""

    def __init__(self) -> None:
        self.allowed, self.steps = threading.Semaphore(0), list[list[int]]()

    def step(self, batch: RunningBatch) -> None:
        self.steps.append([sequence.request.sampling.seed for sequence in batch.sequences])
        assert self.allowed.acquire(timeout=60)

    def let_all(self) -> None:
        self.allowed.release(10_000)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    gate, step = Gate(), RunningBatch.step

    def gated(batch: RunningBatch) -> object:
        gate.step(batch)
        return step(batch)

    monkeypatch.setattr(RunningBatch, "step", gated)
    return gate


@pytest.fixture
def scheduler(model: Served) -> Iterator[Scheduler]:
    """A scheduler of one token a step: how many lookahead takes is measured at its start."""
    scheduler = Scheduler(model, ROWS, cores=1, queue_limit=16, lookahead=1)
    yield scheduler
    scheduler.close()


@pytest.fixture
def timed(model: Served, base: Codebook) -> Iterator[Scheduler]:
    """A scheduler whose steps take half a second by its clock, one token each; to be made before a gate stops them."""
    scheduler = Scheduler(model, ROWS, 1, queue_limit=16, clock=count(0.0, 0.5).__next__, lookahead=1)
    scheduler.submit_draw(requests_for(base, 0)).result(60)
    yield scheduler
    scheduler.close()


def requests_for(base: Codebook, *seeds: int, guidance: float = 2.0) -> list[ImageRequest]:
    return [ImageRequest("a cat", Sampling(seed, guidance), base) for seed in seeds]


def sequences(model: Served, requests: list[ImageRequest]) -> list[ImageSequence]:
    return [ImageSequence(request, model.tokenize(request.prompt)) for request in requests]


def test_it_is_warm_for_every_share_of_the_cores(model: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    warmed: list[tuple[int, int]] = []
    monkeypatch.setattr(RunningBatch, "warm", lambda self: warmed.append((torch.get_num_threads(), get_ident())))
    Scheduler(model, ROWS, cores=8).close()
    assert sorted(count for count, _ in warmed) == [1, 2, 3, 6, 7]
    assert get_ident() not in {thread for _, thread in warmed}  # its helpers would stay


def test_an_image_joins_between_steps_and_is_batch_invariant(
    gate: Gate, scheduler: Scheduler, model: Served, base: Codebook
) -> None:
    first = scheduler.submit_draw(requests_for(base, 1))
    wait_for("the first step", lambda: gate.steps)
    second = scheduler.submit_draw(requests_for(base, 2, guidance=1.0))
    gate.let_all()
    tokens = [future.result(60)[0].tokens for future in (first, second)]
    assert gate.steps[0] == [1] and [1, 2] in gate.steps and gate.steps[-1] == [2]
    assert torch.equal(torch.stack(tokens), model.draw(requests_for(base, 1) + requests_for(base, 2, guidance=1.0)))


def test_one_call_may_be_larger_than_the_room(scheduler: Scheduler, model: Served, base: Codebook) -> None:
    requests = requests_for(base, *range(10))
    drawn = scheduler.submit_draw(requests).result(60)
    assert torch.equal(torch.stack([image.tokens for image in drawn]), model.draw(requests))


def test_callers_take_turns(gate: Gate, scheduler: Scheduler, base: Codebook) -> None:
    many = scheduler.submit_draw(requests_for(base, *range(4)), "a")
    wait_for("the first step", lambda: gate.steps)
    more = scheduler.submit_draw(requests_for(base, *range(10, 18)), "a")
    few = scheduler.submit_draw(requests_for(base, 20, 21), "b")
    gate.let_all()
    for future in (many, more, few):
        future.result(60)
    joined = list(dict.fromkeys(seed for step in gate.steps for seed in step))
    assert joined == [0, 1, 2, 3, 10, 20, 11, 21, 12, 13, 14, 15, 16, 17]


def test_a_bad_prompt_fails_alone(scheduler: Scheduler, base: Codebook) -> None:
    good = scheduler.submit_draw(requests_for(base, 1))
    with pytest.raises(BadInput):
        scheduler.submit_draw([*requests_for(base, 1), replace(requests_for(base, 2)[0], prompt="<begin_of_image>")])
    assert len(good.result(60)) == 1


def test_a_cancelled_image_frees_its_rows_at_the_next_step(gate: Gate, scheduler: Scheduler, base: Codebook) -> None:
    cancelled, other = scheduler.submit_draw(requests_for(base, 1)), scheduler.submit_draw(requests_for(base, 2))
    gate.allowed.release(5)
    wait_for("six steps have begun", lambda: len(gate.steps) == 6)
    assert gate.steps[-1] == [1, 2]
    before = len(gate.steps)
    assert cancelled.cancel()
    gate.let_all()
    assert len(other.result(60)) == 1
    assert all(step == [2] for step in gate.steps[before:])


def test_a_cancelled_call_leaves_the_queue(gate: Gate, scheduler: Scheduler, base: Codebook) -> None:
    drawing = scheduler.submit_draw(requests_for(base, *range(4)))
    wait_for("the first step", lambda: gate.steps)
    waiting = scheduler.submit_draw(requests_for(base, 7, 8))
    assert scheduler.waiting() == 2
    assert waiting.cancel()
    gate.let_all()
    assert len(drawing.result(60)) == 4
    wait_for("the queue is empty", lambda: scheduler.waiting() == 0)
    assert 7 not in {seed for step in gate.steps for seed in step}


def test_each_image_is_decoded_under_its_own_version(scheduler: Scheduler, base: Codebook) -> None:
    other = replace(base, version="v1", pixel=base.pixel.flip(0))
    futures = [scheduler.submit_draw([ImageRequest("a cat", Sampling(1), book)]) for book in (base, other)]
    one, two = (future.result(60)[0] for future in futures)
    assert torch.equal(one.tokens, two.tokens)
    for result, book in ((one, base), (two, other)):
        alone: ImageResult = scheduler.submit_draw([ImageRequest("a cat", Sampling(1), book)]).result(60)[0]
        assert torch.equal(result.image, alone.image)
    assert not torch.equal(one.image, two.image)


def test_a_full_queue_says_when_there_is_room(timed: Scheduler, gate: Gate, base: Codebook) -> None:
    drawing = timed.submit_draw(requests_for(base, *range(4)))
    gate.allowed.release(6)
    wait_for("seven steps have begun", lambda: len(gate.steps) == 7)
    waiting = timed.submit_draw(requests_for(base, *range(16)))
    # 6 of 16 steps are done, and four images fit at once; those refused before are to come first, four steps an image.
    for more, steps in ((2, 10), (4, 10 + 4 * 2), (6, 26 + 4 * 6), (16, 58 + 4 * 12)):
        with pytest.raises(Busy) as refused:
            timed.submit_draw(requests_for(base, *range(more)))
        assert refused.value.retry_after == 0.5 * steps
    with pytest.raises(Busy) as refused:
        timed.submit_draw(requests_for(base, *range(17)))
    assert refused.value.retry_after == 60.0  # in place of 0.5 * (58 + 4 * 28)
    gate.let_all()
    assert len(drawing.result(60)) == 4 and len(waiting.result(60)) == 16


@pytest.mark.fault("F11")
def test_a_call_knows_its_place(timed: Scheduler, gate: Gate, base: Codebook) -> None:
    drawing = timed.submit_draw(requests_for(base, *range(4)), "a")
    wait_for("the first step", lambda: gate.steps)
    behind = timed.submit_draw(requests_for(base, *range(6)), "a")
    turns = timed.submit_draw(requests_for(base, *range(2)), "b")
    # Four images fit at once and take 16 steps; "a" and "b" take turns.
    assert timed.place(drawing) == Place(0, 0.5 * 16)
    assert timed.place(behind) == Place(0, 0.5 * (16 + 16 + 16))
    assert timed.place(turns) == Place(1, 0.5 * (16 + 16))
    gate.let_all()
    assert [len(call.result(60)) for call in (drawing, behind, turns)] == [4, 6, 2]


@pytest.mark.fault("F10")
def test_what_is_given_up_fails_and_what_is_finished_stays(gate: Gate, scheduler: Scheduler, base: Codebook) -> None:
    drawing, waiting = (
        scheduler.submit_draw(requests_for(base, 1)),
        scheduler.submit_draw(requests_for(base, *range(8))),
    )
    wait_for("the first step", lambda: gate.steps)
    scheduler.give_up()
    for call in (drawing, waiting):
        with pytest.raises(Stopping):
            call.result(0)
    with pytest.raises(Stopping):
        scheduler.submit_draw(requests_for(base, 2))
    gate.let_all()
    scheduler.close()
    assert len(gate.steps) == 1 and not scheduler.broken


def test_a_caller_who_fills_the_queue_keeps_nobody_else_out(timed: Scheduler, gate: Gate, base: Codebook) -> None:
    drawing = timed.submit_draw(requests_for(base, *range(4)), "a")
    wait_for("the first step", lambda: gate.steps)
    calls = [
        timed.submit_draw(requests_for(base, *range(16)), "a"),
        timed.submit_draw(requests_for(base, *range(8)), "b"),
    ]
    for caller in ("a", "b"):
        with pytest.raises(Busy):
            timed.submit_draw(requests_for(base, 1), caller)
    with pytest.raises(Busy) as refused:
        timed.submit_draw(
            requests_for(base, *range(8)), "c"
        )  # a third of 16 is 5: three too many, and none of them wait
    # Until 16 of 24 have begun, four at a time; and one each of those who have just been refused.
    assert refused.value.retry_after == 0.5 * (4 * 16 + 2 * 4)
    calls.append(timed.submit_draw(requests_for(base, *range(5)), "c"))
    gate.let_all()
    assert [len(call.result(60)) for call in (drawing, *calls)] == [4, 16, 8, 5]


def test_many_callers_leave_room_for_one_with_many_images(base: Codebook) -> None:
    queue = FairQueue()
    for caller in "abcdefgh":
        queue.join(caller, [ImageSequence(request, ()) for request in requests_for(base, 1)])
    assert queue.over("z", 8, 16) == (7, 0)  # more than its share, but there is room
    assert queue.over("a", 9, 16) == (8, 1)


def test_who_is_refused_comes_after_those_refused_before() -> None:
    refused = Refused()
    for due in (11.0, 10.0, 12.0, 13.0):
        refused.add("a", due, 2)
    refused.add("b", 12.0, 1)
    assert refused.before("a", 2) == 8 + 1
    assert refused.before("b", 2) == 1 + 3  # of a flood no more than one has oneself: callers take turns
    assert refused.before("c", 2) == 2 + 1
    refused.admit("a")  # before it was due
    assert refused.before("a", 2) == 6 + 1
    refused.forget(12.0)
    assert refused.before("a", 2) == 2 and refused.before("b", 2) == 2
    for caller in ("a", "b", "c"):
        refused.admit(caller)
    assert refused.before("c", 9) == 0


def test_callers_of_one_image_each_get_different_times(timed: Scheduler, gate: Gate, base: Codebook) -> None:
    calls = [timed.submit_draw(requests_for(base, 0), "0")]
    wait_for("the first step", lambda: gate.steps)
    calls += [timed.submit_draw(requests_for(base, number), str(number)) for number in range(1, 4)]
    gate.allowed.release()
    wait_for("four are drawn", lambda: gate.steps[-1] == [0, 1, 2, 3])
    calls += [timed.submit_draw(requests_for(base, number), str(number)) for number in range(4, 20)]
    waits = []
    for number in range(20, 26):
        with pytest.raises(Busy) as refused:
            timed.submit_draw(requests_for(base, number), str(number))
        waits.append(refused.value.retry_after)
    assert waits == [8.0, 10.0, 12.0, 14.0, 16.0, 18.0]  # 16 steps until one begins, and four more for each before
    gate.let_all()
    assert all(len(call.result(60)) == 1 for call in calls)


def test_the_schedule_knows_when_every_image_begins() -> None:
    # Rows: 8. Two images of 2 rows with 3 and 9 steps left; then a row is free for the small one immediately.
    assert starts([(2, 3), (2, 9)], [2, 2, 2, 1, 2, 2], 8, 16) == [0, 0, 3, 9, 16, 16]
    assert starts([], [], 8, 16) == []


def test_a_queue_without_images_is_empty(base: Codebook) -> None:
    queue = FairQueue()
    assert len(queue) == 0 and queue.first() is None and queue.order() == []
    calls = [
        [ImageSequence(request, ()) for request in requests_for(base, *seeds)] for seeds in ((1, 2, 3), (4,), (5,))
    ]
    for caller, images in zip("aab", calls, strict=True):
        queue.join(caller, images)
    assert [sequence.request.sampling.seed for _, sequence in queue.order()] == [1, 5, 2, 3, 4]
    results_of(calls[0]).cancel()
    queue.drop_settled()
    assert [queue.take().request.sampling.seed for _ in range(len(queue))] == [4, 5]


def test_the_first_error_of_a_call_settles_it_and_gives_up_its_other_images(base: Codebook) -> None:
    one, two = (ImageSequence(request, ()) for request in requests_for(base, 1, 2))
    results = results_of([one, two])
    two.fail(ZeroDivisionError())
    one.fail(ValueError())  # too late
    assert isinstance(results.exception(0), ZeroDivisionError) and one.future.cancelled()


def test_a_prompt_is_tokenised_once_in_its_caller_s_thread(
    scheduler: Scheduler, model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    tokenizer, encode = cast(Any, model)._parts.drawing.chat._tokenizer, PreTrainedTokenizerBase.__call__

    def counted(self: object, *args: Any, **options: Any) -> object:  # noqa: ANN401
        threads.append(get_ident())
        return encode(tokenizer, *args, **options)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    assert len(scheduler.submit_draw(requests_for(base, 1, 2, 3)).result(60)) == 3
    assert threads == [get_ident()]


def test_closing_finishes_what_was_accepted(model: Served, base: Codebook) -> None:
    scheduler = Scheduler(model, ROWS, cores=1)
    future = scheduler.submit_draw(requests_for(base, 1))
    scheduler.close()
    assert len(future.result(0)) == 1
    with pytest.raises(Unavailable):
        scheduler.submit(lambda model: None)
    with pytest.raises(Unavailable):
        scheduler.submit_draw(requests_for(base, 1))


def test_other_uses_of_the_model_take_their_turn(scheduler: Scheduler) -> None:
    assert scheduler.submit(lambda model: model.facts.codes).result(60) == 64
    with pytest.raises(ZeroDivisionError):
        scheduler.submit(lambda model: 1 // 0).result(60)


@pytest.mark.parametrize("what", ["decode", "step", "prefill"])
def test_a_failing_model_fails_the_calls_and_goes_on(
    what: str, scheduler: Scheduler, model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = model.draw(requests_for(base, 1))
    with monkeypatch.context() as patch:
        match what:
            case "decode":
                patch.setattr(model, "decode", lambda tokens, pixel: 1 / 0)
            case "step":
                patch.setattr(RunningBatch, "_read_next", lambda batch, ahead: 1 / 0)
            case "prefill":
                patch.setattr(RunningBatch, "admit", lambda batch, sequences: 1 / 0)
        futures: list[Future[list[ImageResult]]] = [scheduler.submit_draw(requests_for(base, seed)) for seed in (1, 2)]
        for future in futures:
            with pytest.raises(ZeroDivisionError):
                future.result(60)
    assert torch.equal(scheduler.submit_draw(requests_for(base, 1)).result(60)[0].tokens[None], right)


def test_a_prompt_whose_reading_fails_harms_no_other(
    scheduler: Scheduler, model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go, admit = threading.Event(), threading.Event(), RunningBatch.admit

    def failing(batch: RunningBatch, sequences: list[ImageSequence]) -> list[ImageSequence]:
        held.set()
        assert go.wait(60)
        if any(sequence.request.prompt == "bad" for sequence in sequences):
            raise ZeroDivisionError
        return admit(batch, sequences)

    monkeypatch.setattr(RunningBatch, "admit", failing)
    first = scheduler.submit_draw(requests_for(base, 1))
    assert held.wait(60)
    good = scheduler.submit_draw(requests_for(base, 2))
    bad = scheduler.submit_draw([replace(requests_for(base, 3)[0], prompt="bad")])
    go.set()
    assert len(first.result(60)) == len(good.result(60)) == 1
    with pytest.raises(ZeroDivisionError):
        bad.result(60)


def test_an_image_that_half_joined_leaves_no_trace(
    model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, copy_row, calls = model.running_batch(ROWS), KVCache.copy_row, []
    first = sequences(model, requests_for(base, 1, 2))

    def failing(cache: KVCache, row: int, source: KVCache, source_row: int) -> None:
        calls.append(row)
        if len(calls) == 4:
            raise ZeroDivisionError
        copy_row(cache, row, source, source_row)

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "copy_row", failing)
        with pytest.raises(ZeroDivisionError):
            batch.admit(first)
    assert batch.free == ROWS and not batch.sequences
    batch.admit(joined := [*first, *sequences(model, requests_for(base, 3, 4))])
    while batch.sequences:
        batch.step()
    tokens = torch.stack([sequence.tokens for sequence in joined])
    assert torch.equal(tokens, model.draw(requests_for(base, 1, 2, 3, 4)))


def test_a_thread_that_dies_fails_every_call_and_is_reported(
    gate: Gate, model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = Scheduler(model, ROWS, cores=1)
    drawing = scheduler.submit_draw(requests_for(base, *range(4)))
    wait_for("the first step", lambda: gate.steps)
    waiting = scheduler.submit_draw(requests_for(base, 5))
    assert not scheduler.broken
    monkeypatch.setattr(RunningBatch, "free", property(lambda batch: 1 / 0))
    gate.let_all()
    for future in (drawing, waiting):
        with pytest.raises(ZeroDivisionError):
            future.result(60)
    wait_for("it is reported", lambda: scheduler.broken)
    with pytest.raises(Unavailable, match="failed"):
        scheduler.submit_draw(requests_for(base, 1))
    scheduler.close()


def test_images_and_other_uses_take_turns(
    scheduler: Scheduler, model: Served, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    held, go, judge = threading.Event(), threading.Event(), model.judge

    def judged(images: torch.Tensor) -> object:
        done.append("image")
        return judge(images)

    monkeypatch.setattr(model, "judge", judged)
    monkeypatch.setattr("engine.scheduler.postprocess.DECODE_BATCH", 1)

    def hold(model: Served) -> None:
        held.set()
        assert go.wait(60)

    scheduler.submit(hold)
    assert held.wait(60)
    images = scheduler.submit_draw(requests_for(base, *range(4)))
    wait_for("all are drawn", lambda: scheduler._postprocessor.backlog() == 4)
    uses = [scheduler.submit(lambda model: done.append("use")) for _ in range(2)]
    go.set()
    images.result(60)
    for use in uses:
        use.result(60)
    assert done[:4] == ["image", "use", "image", "use"]


def test_nothing_is_drawn_that_could_not_be_finished(
    scheduler: Scheduler, base: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(model: Served) -> None:
        held.set()
        assert go.wait(60)

    scheduler.submit(hold)
    assert held.wait(60)
    futures = [scheduler.submit_draw(requests_for(base, *range(4))) for _ in range(4)]
    wait_for(
        "the postprocessor has enough",
        lambda: scheduler._postprocessor.backlog() >= ROWS and not scheduler._batch.sequences,
    )
    assert scheduler.waiting() == 16 - scheduler._postprocessor.backlog()
    go.set()
    assert all(len(future.result(60)) == 4 for future in futures)


def test_callers_get_parts_of_their_images_on_the_way(scheduler: Scheduler, model: Served, base: Codebook) -> None:
    parts: list[PartialImage] = []
    drawn = scheduler.submit_draw(requests_for(base, 1, 2), on_part=parts.append).result(60)
    assert [(part.index, len(part.tokens)) for part in parts] == [(i, n) for n in (4, 8, 12) for i in (0, 1)]
    assert all(torch.equal(part.tokens, drawn[part.index].tokens[: len(part.tokens)]) for part in parts)
    whole = model.preview(drawn[0].tokens, base.pixel)
    assert torch.equal(whole, model.decode(drawn[0].tokens[None], base.pixel))
    half = model.preview(drawn[0].tokens[:8], base.pixel)
    assert not half[..., 8:, :].any() and half[..., :8, :].any()


def test_an_image_that_begins_again_is_reported_again_and_names_its_expert(
    scheduler: Scheduler, model: Served, base: Codebook
) -> None:
    width, nothing = model.facts.feature_dim, torch.tensor([0])
    deaf = Router(torch.zeros(1, model.facts.hidden_dim), torch.tensor([-99.0]), nothing)
    probe = HalfwayProbe(6, Router(torch.zeros(1, width), torch.tensor([1.0]), nothing))
    still = torch.zeros(1, width, 1)
    book = replace(base, output=HeadEdit(still, torch.zeros(width), still, still.mT, deaf, probe=probe))
    parts: list[PartialImage] = []
    drawn = scheduler.submit_draw(requests_for(book, 1), on_part=parts.append).result(60)
    assert [len(part.tokens) for part in parts] == [4, 4, 8, 12]
    assert [one.experts for one in drawn] == [(0,)]
    (bare,) = scheduler.submit_draw(requests_for(base, 1)).result(60)
    assert bare.experts == () and torch.equal(drawn[0].tokens, bare.tokens)


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has no priority of its own")
def test_threads_that_compute_let_the_others_come_first(scheduler: Scheduler, base: Codebook) -> None:
    priorities: list[int] = []

    def note(_: object = None) -> None:
        priorities.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    scheduler.submit_draw(requests_for(base, 1), on_part=note).result(60)
    scheduler.submit(note).result(60)
    assert set(priorities) == {min(19, os.getpriority(os.PRIO_PROCESS, os.getpid()) + NICE)}


def test_a_listener_that_fails_fails_its_own_call(scheduler: Scheduler, base: Codebook) -> None:
    bad = scheduler.submit_draw(requests_for(base, 1), on_part=lambda part: 1 / 0)  # type: ignore[arg-type]
    good = scheduler.submit_draw(requests_for(base, 2))
    with pytest.raises(ZeroDivisionError):
        bad.result(60)
    assert len(good.result(60)) == 1


def test_a_full_gpu_is_a_matter_of_time(
    scheduler: Scheduler, base: Codebook, model: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(batch: RunningBatch, ahead: bool) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(RunningBatch, "_read_next", full)
        with pytest.raises(Unavailable) as refused:
            scheduler.submit_draw(requests_for(base, 1)).result(60)
    assert refused.value.retry_after > 0
    assert len(scheduler.submit_draw(requests_for(base, 1)).result(60)) == 1


def test_as_many_may_wait_as_there_are_rows(model: Served, base: Codebook) -> None:
    scheduler = Scheduler(model, QUEUE + 2, cores=1)
    assert len(scheduler.submit_draw(requests_for(base, *range(QUEUE + 2), guidance=1.0)).result(60)) == QUEUE + 2
    scheduler.close()
