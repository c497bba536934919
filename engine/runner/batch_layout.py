"""What the steps have in common until an image joins or leaves: which rows are whose, and how each image is drawn.

Its tensors stay at their addresses, so that what reads them can be recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from codebook.value import NO_EXPERT, HeadEdit
from engine.runner.image_lm import Routed
from engine.runner.sampling import CfgRows, SamplingTensors, counted
from engine.runner.sequence import ImageSequence


class BatchLayout:
    """A plan for n images in R rows.

    places, steps: [n] int64, each image's row of the token table and how many tokens it has; owners: [R] int64, which
    image a row reads for; guides, draws: of the images; routed: which rows edits apply to; looks: whether any image may
    be looked at.
    """

    def __init__(self, rows: int, codes: int, device: torch.device) -> None:
        """Make room for `rows` rows; `codes` is K."""
        self._nobody, self._codes = rows, codes  # padded images have a place of their own
        self._whole = torch.zeros(7, rows, dtype=torch.int64, device=device)
        self._real = torch.zeros(2, rows, device=device)
        self.write((), (), rows, rows)

    @property
    def recordable(self) -> bool:
        """Whether a draw is the same computation whoever the images are."""
        return not self.routed and not self.draws.deepest

    def write(self, slots: Sequence[ImageSequence], owners: Sequence[ImageSequence], images: int, rows: int) -> None:
        """Plan for `slots`, and for padding up to `images` images and `rows` rows; owners: whose each row in use is."""
        number = {sequence: n for n, sequence in enumerate(slots)}
        padding = rows - len(slots)
        whole = [
            (
                sequence.place,
                sequence.step,
                sequence.rows[0],
                sequence.rows[-1],
                *counted(sequence.request.sampling, self._codes),
            )
            for sequence in slots
        ]
        real = [(sequence.guidance, sequence.request.sampling.temperature) for sequence in slots]
        reads_for = [*(number[sequence] for sequence in owners), *repeat(0, rows - len(owners))]
        self._send(self._whole, [*zip(*whole, *repeat((self._nobody, 0, 0, 0, 0, 0), padding), strict=True), reads_for])
        self._send(self._real, [*zip(*real, *repeat((1.0, 0.0), padding), strict=True)])
        places, steps, conditional, unconditional, seeds, kept = self._whole[:-1, :images]
        scales, temperature = self._real[:, :images, None]
        self.places, self.steps, self.owners = places, steps, self._whole[-1, :rows]
        self.guides = CfgRows(conditional, unconditional, scales)
        self.draws = SamplingTensors(seeds, temperature, kept[:, None], max((image[-1] for image in whole), default=0))
        self.routed = self._routed(slots)
        self.looks = any(sequence.look is not None for sequence in slots)

    def _send(self, tensor: Tensor, rows: Sequence[Sequence[float]]) -> None:
        """Fill the first columns of a tensor, without waiting for a GPU."""
        on_gpu = tensor.is_cuda
        values = torch.tensor(rows, dtype=tensor.dtype, pin_memory=on_gpu)
        tensor[:, : values.shape[1]].copy_(values, non_blocking=on_gpu)

    def _routed(self, slots: Sequence[ImageSequence]) -> Routed:
        """The conditional rows to which each expert of each version's edit applies."""
        groups: dict[tuple[int, int], tuple[HeadEdit, int, list[int]]] = {}
        for sequence in slots:
            edit = sequence.request.codebook.output
            if edit is not None and sequence.expert != NO_EXPERT:
                groups.setdefault((id(edit), sequence.expert), (edit, sequence.expert, []))[2].append(sequence.rows[0])
        device = self._whole.device
        return [(edit.on(device), expert, torch.tensor(rows, device=device)) for edit, expert, rows in groups.values()]
