"""The layout of a batch, constant until an image joins or leaves: rows, guidance, sampling and edits of its images.

Its tensors stay at their addresses, so that CUDA graphs can read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat

import torch
from torch import Tensor

from codebook.value import HeadEdit
from engine.runner.image_lm import Routed
from engine.runner.sampling import CfgRows, SamplingTensors, ranks_of, seed_and_top_k
from engine.runner.sequence import ImageSequence


class BatchLayout:
    """The layout of n images in R KV rows; with lookahead, of W steps of each image in W rows for each KV row.

    token_rows, steps: [n] int64, each image's row of the token table and its step; owners: [R] int64, the image that a
    KV row reads for; cfg_rows, sampling: of the images; routed: the rows to which edits apply; probed: whether any
    image has a halfway probe.
    """

    def __init__(self, kv_rows: int, room: int, codes: int, device: torch.device, recorded: bool) -> None:
        """Make room for `kv_rows` KV rows, and for `room` rows with lookahead. codes: K; recorded: if steps are."""
        self.room, self.codes = room, codes
        self._padding_row = kv_rows  # padded images have a token row of their own
        self._least_ranks = codes if recorded else 0  # a recording must do for images with any top-k and top-p
        self._integers = torch.zeros(7, room, dtype=torch.int64, device=device)
        self._floats = torch.zeros(3, room, device=device)
        self.write((), (), kv_rows, kv_rows)

    @property
    def recordable(self) -> bool:
        """Whether sampling is the same computation for any images."""
        return not self.routed

    def write(
        self,
        sequences: Sequence[ImageSequence],
        owners: Sequence[ImageSequence],
        images: int,
        kv_rows: int,
        window: int = 1,
    ) -> None:
        """Lay out `sequences`, padded to `images` images and `kv_rows` rows; owners: the image of each row in use.

        window: W, with which nothing is padded.
        """
        self.window = window
        number = {sequence: n for n, sequence in enumerate(sequences)}
        images, kv_rows = images * window, kv_rows * window
        padding = kv_rows - len(sequences) * window
        integers = [
            (
                sequence.token_row,
                sequence.step + offset,
                sequence.kv_rows[0] * window + offset,
                sequence.kv_rows[-1] * window + offset,
                *seed_and_top_k(sequence.sampling, self.codes),
            )
            for sequence in sequences
            for offset in range(window)
        ]
        floats = [
            (sequence.guidance, sequence.sampling.temperature, sequence.sampling.top_p)
            for sequence in sequences
            for _ in range(window)
        ]
        owned = [number[sequence] * window + offset for sequence in owners for offset in range(window)]
        reads_for = [*owned, *repeat(0, kv_rows - len(owned))]
        padded = repeat((self._padding_row, 0, 0, 0, 0, 0), padding)
        self._send(self._integers, [*zip(*integers, *padded, strict=True), reads_for])
        self._send(self._floats, [*zip(*floats, *repeat((1.0, 0.0, 1.0), padding), strict=True)])
        token_rows, steps, conditional, unconditional, seeds, top_k = self._integers[:-1, :images]
        scales, temperature, top_p = self._floats[:, :images, None]
        self.token_rows, self.steps, self.owners = token_rows, steps, self._integers[-1, :kv_rows]
        self.cfg_rows = CfgRows(conditional, unconditional, scales)
        ranks = max((ranks_of(sequence.sampling, self.codes) for sequence in sequences), default=0)
        self.sampling = SamplingTensors(seeds, temperature, top_k[:, None], top_p, max(ranks, self._least_ranks))
        self.routed = self._routed(sequences)
        self.probed = any(sequence.probe is not None for sequence in sequences)

    def _send(self, tensor: Tensor, rows: Sequence[Sequence[float]]) -> None:
        """Fill the first columns of a tensor, without waiting for a GPU."""
        on_gpu = tensor.is_cuda
        values = torch.tensor(rows, dtype=tensor.dtype, pin_memory=on_gpu)
        tensor[:, : values.shape[1]].copy_(values, non_blocking=on_gpu)

    def _routed(self, sequences: Sequence[ImageSequence]) -> Routed:
        """The conditional rows to which each expert of each version's edit applies: all first ones, then all second."""
        groups: dict[tuple[int, int, int], tuple[HeadEdit, int, list[int]]] = {}
        for sequence in sequences:
            edit = sequence.request.codebook.output
            if edit is None:
                continue
            for place, expert in enumerate(sequence.experts):
                groups.setdefault((place, id(edit), expert), (edit, expert, []))[2].append(sequence.kv_rows[0])
        device, offsets = self._integers.device, range(self.window)
        routed = []
        for key in sorted(groups):
            edit, expert, kv_rows = groups[key]
            rows = [row * self.window + offset for row in kv_rows for offset in offsets]
            routed.append((edit.on(device), expert, torch.tensor(rows, device=device)))
        return routed
