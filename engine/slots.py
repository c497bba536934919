"""The images that are being drawn, each at its own step: they join at any step and leave when they are complete.

What is drawn of an image follows from its request alone, whoever else is being drawn. Knows tensors and requests;
knows nothing of queues, callers and time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from codebook.value import NO_EXPERT, Look, OutputEdit
from engine.drawing import Drawer, Prefill, Routed
from engine.graphs import StepReader, recorder
from engine.model import ImageModel, ImageRequest
from engine.sampling import Draws, choose


@dataclass(eq=False)
class Slot:
    """One image being drawn. place: its row of the token table; prompt: its tokens; step: tokens drawn so far.

    rows: the rows of the context that read for it, the conditional one first, then the unconditional one, if any.
    began: the hidden states [H] from which they began.
    """

    request: ImageRequest
    place: int
    prompt: int
    expert: int
    rows: list[int] = field(default_factory=list)
    began: list[Tensor] = field(default_factory=list)
    step: int = 0

    @property
    def look(self) -> Look | None:
        """The look that its edit takes at it, if none of its experts applies yet."""
        edit = self.request.codebook.output
        return edit.look if edit is not None and self.expert == NO_EXPERT else None

    @property
    def guidance(self) -> float:
        """Its classifier-free guidance scale: the request's, or what its edit leaves of it."""
        asked, edit = self.request.sampling.guidance, self.request.codebook.output
        return asked if edit is None or self.expert == NO_EXPERT else 1 + edit.guidance * (asked - 1)


def rows_of(request: ImageRequest) -> int:
    """How many rows an image takes: one, and one more if it is guided."""
    return 1 if request.sampling.guidance == 1.0 else 2


class Slots:
    """The images being drawn with one model, in at most `rows` rows. One caller at a time."""

    def __init__(self, drawer: Drawer, rows: int, places: int) -> None:
        """Reserve `rows` rows of `places` tokens each."""
        self._drawer, self._rows = drawer, rows
        self._context = drawer.language.context(rows, places)
        self._read_step = StepReader(drawer.language, self._context, recorder(drawer.codes.device))
        self._hidden = drawer.codes.new_zeros(rows, drawer.codes.shape[1])
        self._tokens = torch.zeros(rows, drawer.tokens, dtype=torch.int64, device=drawer.codes.device)
        self._features = torch.zeros(rows, drawer.width, device=drawer.codes.device)  # sums by place, for a look
        self._places = list(range(rows))  # free rows of the token table
        self._slots: list[Slot] = []
        self._owners: list[Slot] = []  # of each row in use: these are the first ones, without a gap
        self._plan: _Plan | None = None  # made anew when an image has joined or left
        self._drawn_event: torch.cuda.Event | None = None  # of the last step, on a GPU

    @property
    def drawing(self) -> Sequence[Slot]:
        """The images being drawn, in the order in which they joined."""
        return tuple(self._slots)

    @property
    def free(self) -> int:
        """How many rows are free."""
        return self._rows - len(self._owners)

    def admit(self, requests: Sequence[ImageRequest]) -> list[Slot]:
        """Read prompts and begin their images, for which there must be room. Raises BadInput for a bad prompt."""
        with torch.inference_mode():
            read = self._drawer.prefill(requests)
            joined: list[Slot] = []
            try:
                for request, prefills in zip(requests, read, strict=True):
                    self._join(joined, request, *prefills)
            except BaseException:
                for slot in joined:
                    self._leave(slot)
                raise
            return joined

    def step(self) -> list[tuple[Slot, Tensor]]:
        """Draw one more token of every image; those that are complete leave, each with its tokens [N] int64.

        An image that shows a harm at its look begins again: its step is 0 then.
        """
        with torch.inference_mode():
            plan = self._planned()
            features = self._drawer.read_off(self._hidden[: len(self._owners)])
            if len(plan.looked):
                self._features.index_add_(0, plan.looked, features[plan.looking])
            logits = self._drawer.logits(features, plan.routed)
            self._tokens[plan.places, plan.steps] = choose(plan.guide(logits), plan.draws, plan.steps)
            plan.steps.add_(1)
            for slot in self._slots:
                slot.step += 1
            done = [slot for slot in self._slots if slot.step == self._drawer.tokens]
            for slot in done:
                self._leave(slot)
            if self._slots:
                self._read(self._planned())
            for slot in self._slots:
                if slot.look is not None and slot.step == slot.look.after:
                    self._look(slot, slot.look)
        self._pace()
        # Cloned outside inference mode, so that autograd may later index with it.
        return [(slot, self._tokens[slot.place].clone()) for slot in done]

    def drawn(self, slot: Slot) -> Tensor:
        """The tokens [step] int64 of an image so far, on the CPU."""
        return self._tokens[slot.place, : slot.step].to("cpu", copy=True)

    def drop(self, slot: Slot) -> None:
        """Stop drawing an image."""
        with torch.inference_mode():
            self._leave(slot)

    def warm(self) -> None:
        """Prepare all that a step may need, before the first image, with as many threads as the caller has now."""
        with torch.inference_mode():
            self._drawer.language.warm()
            for width in self._read_step.warm():
                self._drawer.logits(self._drawer.read_off(self._hidden[:width]), ())

    def clear(self) -> None:
        """Stop drawing all images."""
        self._owners.clear()
        self._slots.clear()
        self._places, self._plan = list(range(self._rows)), None

    def _pace(self) -> None:
        """Let the host be one step ahead of a GPU, no more: so that it joins, drops and tells the time in step."""
        if self._tokens.is_cuda:
            if self._drawn_event is not None:
                self._drawn_event.synchronize()
            self._drawn_event = torch.cuda.current_stream().record_event()

    def _read(self, plan: _Plan) -> None:
        """Let every row read the token that its image has just got."""
        drawn = self._tokens[plan.places, plan.steps - 1][plan.owners]
        self._context.longest = max(slot.prompt + slot.step - 1 for slot in self._slots)
        self._hidden[: len(self._owners)] = self._read_step(self._drawer.codes[drawn])

    def _look(self, slot: Slot, look: Look) -> None:
        """Begin an image again under an expert, if what is drawn of it calls for one."""
        slot.expert = int(look.choose(self._features[slot.place][None] / look.after))
        if slot.expert != NO_EXPERT:
            slot.step, self._plan = 0, None
            for row, hidden in zip(slot.rows, slot.began, strict=True):
                self._context.lengths[row], self._hidden[row] = slot.prompt, hidden

    def _join(self, joined: list[Slot], request: ImageRequest, read: Prefill, twin: Prefill | None) -> None:
        slot = Slot(request, self._places.pop(), read.length, read.expert)
        self._slots.append(slot)
        joined.append(slot)
        self._features[slot.place], self._plan = 0.0, None
        for prefill in (read,) if twin is None else (read, twin):
            row = len(self._owners)
            slot.rows.append(row)
            slot.began.append(prefill.hidden)
            self._owners.append(slot)
            self._context.put(row, prefill.context, prefill.row)
            self._hidden[row] = prefill.hidden

    def _leave(self, slot: Slot) -> None:
        """Free the rows of an image; the last rows in use move to where they were."""
        for row in sorted(slot.rows, reverse=True):
            last = len(self._owners) - 1
            mover = self._owners.pop()
            if row != last:
                self._context.put(row, self._context, last)
                self._hidden[row] = self._hidden[last]
                self._owners[row] = mover
                mover.rows[mover.rows.index(last)] = row
            self._context.lengths[last] = 0  # whoever reads padded rows reads nothing of it
        self._slots.remove(slot)
        self._places.append(slot.place)
        self._plan = None

    def _planned(self) -> _Plan:
        if self._plan is None:
            self._plan = _Plan.of(self._slots, self._owners, self._tokens.device, self._drawer.codes.shape[0])
        return self._plan


class Served(ImageModel, Protocol):
    """A model whose images can join and leave at any step."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def slots(self, rows: int) -> Slots:
        """Reserve `rows` rows in which images of any readable prompt can be drawn."""

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """An image [1, 3, H, W] in [-1, 1] of its first tokens [n], n >= 1, grey where none are."""

    def rows(self) -> int:
        """How many rows fit this model's device. Raises BadModel where there is no room for an image."""


@dataclass(frozen=True)
class _Plan:
    """What the steps have in common until an image joins or leaves, as tensors: n images in R rows, g of them guided.

    places, steps: [n] int64; owners: [R] int64, which image a row reads for; conditional: [n] int64, the image's row;
    guided: [g] int64, which images; unconditional: [g] int64, their rows; scales: [g, 1] float32;
    looked, looking: [l] int64, places and conditional rows of the images that a look may be taken at.
    """

    places: Tensor
    steps: Tensor
    owners: Tensor
    conditional: Tensor
    guided: Tensor
    unconditional: Tensor
    scales: Tensor
    looked: Tensor
    looking: Tensor
    draws: Draws
    routed: Routed

    @classmethod
    def of(cls, slots: Sequence[Slot], owners: Sequence[Slot], device: torch.device, codes: int) -> _Plan:
        number = {slot: n for n, slot in enumerate(slots)}
        guided = [slot for slot in slots if len(slot.rows) == 2]
        looked = [slot for slot in slots if slot.look is not None]

        def whole(values: Iterable[int]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.int64, device=device)

        scales = torch.tensor([slot.guidance for slot in guided], device=device)
        return cls(
            places=whole(slot.place for slot in slots),
            steps=whole(slot.step for slot in slots),
            owners=whole(number[slot] for slot in owners),
            conditional=whole(slot.rows[0] for slot in slots),
            guided=whole(number[slot] for slot in guided),
            unconditional=whole(slot.rows[1] for slot in guided),
            scales=scales[:, None],
            looked=whole(slot.place for slot in looked),
            looking=whole(slot.rows[0] for slot in looked),
            draws=Draws.of([slot.request.sampling for slot in slots], codes, device),
            routed=[(edit.on(device), expert, whole(rows)) for edit, expert, rows in _routed(slots)],
        )

    def guide(self, logits: Tensor) -> Tensor:
        """Logits [R, K] of rows -> [n, K] of images: unconditional + scale * (conditional - unconditional)."""
        conditional, unconditional = logits[self.conditional], logits[self.unconditional]
        guided = unconditional + self.scales * (conditional[self.guided] - unconditional)
        return conditional.index_copy(0, self.guided, guided)


def _routed(slots: Sequence[Slot]) -> list[tuple[OutputEdit, int, list[int]]]:
    """The conditional rows to which each expert of each version's edit applies."""
    groups: dict[tuple[int, int], tuple[OutputEdit, int, list[int]]] = {}
    for slot in slots:
        edit = slot.request.codebook.output
        if edit is not None and slot.expert != NO_EXPERT:
            groups.setdefault((id(edit), slot.expert), (edit, slot.expert, []))[2].append(slot.rows[0])
    return list(groups.values())
