"""Ablation of the method: variants of an edit, all made from the pairs of one round.

Makes codebooks; the evaluation measures them. Variants that do not ship are here only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from codebook.identity import Identity
from codebook.mode import Mode
from codebook.tensors import pack, unpack
from codebook.value import Codebook, HeadEdit
from safety.collect.collection import collect
from safety.collect.round_data import RoundData, enough
from safety.edit.harmful_space import harmful_space, join
from safety.edit.harmfulness import weights
from safety.edit.head_editor import GUIDANCE, HeadEditor
from safety.edit.pixel_editor import REMAP, PixelEditor
from safety.rounds import LoopState, find_edits, make_round_data
from safety.runtime.run_context import RunContext

SUPPRESSION = 6.0  # l: nats by which a code of weight 1 is made less likely
SHARES = {"all": 1.0, "half": 0.5, "none": 0.0}  # of a request's guidance
PLAIN_RANK = 4  # directions a category of a plain projection

Makers = dict[str, tuple[str, Callable[[], Codebook]]]  # by name: the line for the table, and the maker


@dataclass(frozen=True)
class Variant:
    """about: one line for the table; seconds: to make `codebook` from the pairs, whose collection is not counted."""

    about: str
    codebook: Codebook
    seconds: float


def variants(context: RunContext) -> Iterator[tuple[str, Variant]]:
    """Every variant by its name, from a first round under the model's own codebook; each is kept."""
    runner = context.runner
    runner.round = 1
    state = LoopState.of(context, runner.base, collect(context, runner.base).pairs)
    round_data = make_round_data(context, enough(state.pairs, context.config.least_pairs))
    if round_data is None:
        return
    makers: Makers = {}
    for editor in [e for table in find_edits(context, state, round_data).values() for e in table]:
        if isinstance(editor, PixelEditor):
            makers |= pixel_variants(editor)
        if isinstance(editor, HeadEditor):
            makers |= HeadVariants(context, round_data, editor).makers()
    identity = Identity.of(runner.base, {})
    for name, (about, make) in makers.items():
        runner.report(f"variant {name}", 0, 1)
        tensors = runner.cache.tensors(f"variant-{name}", lambda make=make: _timed(make))  # type: ignore[misc]
        seconds = float(tensors.pop("seconds"))
        yield name, Variant(about, unpack(name, identity, tensors), seconds)


def _timed(make: Callable[[], Codebook]) -> dict[str, Tensor]:
    started = time.monotonic()
    return pack(make()) | {"seconds": torch.tensor(time.monotonic() - started)}


def pixel_variants(editor: PixelEditor) -> Makers:
    """Variants of the pixel table; the editor is one of the two that ship."""
    if editor.way == REMAP:
        return {"pixel-remap": ("pixel table, weighted re-map to partner codes", lambda: editor.draft(1.0))}
    everything = replace(editor, weights=torch.ones_like(editor.weights))
    return {
        "pixel-project-all": ("pixel table, all rows projected", lambda: everything.draft(1.0)),
        "pixel-weighted": ("pixel table, weighted projection", lambda: editor.draft(1.0)),
        "pixel-weighted-tuned": ("the same, tuned", lambda: editor.tune(editor.draft(1.0), 1.0)),
    }


@dataclass(frozen=True)
class HeadVariants:
    """Variants of the head edit; the editor is the one that ships."""

    context: RunContext
    round_data: RoundData
    editor: HeadEditor

    def makers(self) -> Makers:
        """All of them, the simplest first."""
        return {
            "output-project": ("output table, plain projection, every image", self.projected_everywhere),
            "output-suppress": ("suppression of weighted codes, every image", self.suppressed_everywhere),
            "routed-project": ("routed, plain projection", lambda: self._routed(self._projections(self.editor.spaces))),
            "routed-project-pooled": ("the same, space of pooled differences of images", self.projected_pooled),
            "routed-suppress": ("routed, suppression of weighted codes", self.suppressed),
            "routed-refit": ("routed, projection refitted to the safe partners", lambda: self.editor.draft(1.0)),
            "routed-tuned-category": ("the same, tuned, a map a category", self.tuned_by_category),
            "routed-tuned-concept": ("the same, then a map a concept, on the pairs' images", self.tuned_on_pairs),
            "routed-tuned-own": ("the same, on images that it draws itself: what ships", lambda: self.shipped),
            "without-probe": ("what ships, without its halfway probe", self.without_probe),
            **{f"{name}-guidance": self._guided(name, share) for name, share in SHARES.items()},
            "redraw-alone": ("drawn again where judged unsafe, without any edit", lambda: self._unedited("redraw")),
            "redraw": ("what ships, in mode redraw", lambda: self.shipped.in_mode("redraw")),
            **(self._rewriting() if self.context.runner.model.facts.rewrites else {}),
            "refuse": ("what ships, in mode refuse: a prompt filter", lambda: self.shipped.in_mode("refuse")),
            "with-suppression": ("what ships, with suppression", lambda: self._suppressing(self.shipped)),
        }

    def _rewriting(self) -> Makers:
        """Those of a model that rewrites prompts."""
        return {
            "rewrite-alone": ("the model's own rewrite, without any edit", lambda: self._unedited("rewrite")),
            "rewrite": ("what ships, in mode rewrite", lambda: self.shipped.in_mode("rewrite")),
        }

    def projected_everywhere(self) -> Codebook:
        """One plain projection off all categories' leading directions, for every image."""
        bases = [basis[:, :PLAIN_RANK] for basis in self.editor.spaces.values()]
        joined = join(bases, bases[0].shape[0] // 2)
        return replace(self.editor.start, output=_projection(joined, self.round_data.baseline.mean))

    def suppressed_everywhere(self) -> Codebook:
        """Every category's weighted codes made less likely, for every image."""
        heaviest = torch.stack(list(self._weights().values())).amax(0)
        edit = replace(self._still(), bias=-SUPPRESSION * heaviest[None])
        return replace(self.editor.start, output=edit)

    def projected_pooled(self) -> Codebook:
        """Plain projections off spaces in which the text's part and the image's are mixed."""
        contrast, spaces = self.round_data.attribution.contrast, {}
        differences = contrast.unsafe[:, 0].mean(1) - contrast.safe[:, 1].mean(1)
        for name in self.editor.spaces:
            rows = self.round_data.of(name)
            halves, sure = self.round_data.first_half[rows], self.round_data.confidence[rows]
            space = harmful_space(differences[rows], sure, halves, self.round_data.generator("pooled", name))
            spaces[name] = space.basis if space.rank else torch.zeros(differences.shape[1], 1)
        return self._routed(self._projections(spaces))

    def suppressed(self) -> Codebook:
        """Nothing but suppression, of the image's own harm."""
        return self._suppressing(self._routed({name: self._still() for name in self.editor.spaces}))

    def tuned_by_category(self) -> Codebook:
        """The shipped edit before its concepts part."""
        return self.editor.by_category(self.editor.draft(1.0))

    def tuned_on_pairs(self) -> Codebook:
        """The same with a map a concept, tuned as the categories were: on images drawn without the edit."""
        return self.editor.by_concept(self.tuned_by_category(), self.round_data.attribution.contrast)

    @cached_property
    def shipped(self) -> Codebook:
        """The codebook that a round proposes at full strength."""
        return self.editor.tune(self.editor.draft(1.0), 1.0)

    def without_probe(self) -> Codebook:
        """The shipped edit without the halfway probe: the prompt alone decides."""
        return self._shipped_but(lambda edit: replace(edit, probe=None))

    def _unedited(self, mode: Mode) -> Codebook:
        """The shipped router in a mode, before an edit that changes nothing: what fires is rewritten, or redrawn."""
        return self._shipped_but(
            lambda edit: replace(
                edit,
                basis=torch.zeros_like(edit.basis),
                up=torch.zeros_like(edit.up),
                guidance=1.0,
                probe=None,
                mode=mode,
            )
        )

    def _guided(self, name: str, share: float) -> tuple[str, Callable[[], Codebook]]:
        about = f"what ships, under {name} of a request's guidance (it leaves {GUIDANCE:g})"
        return about, lambda: self._shipped_but(lambda edit: replace(edit, guidance=share))

    def _shipped_but(self, change: Callable[[HeadEdit], HeadEdit]) -> Codebook:
        """The shipped edit with some parts changed, and not tuned again."""
        edit = self.shipped.output
        return self.shipped if edit is None else replace(self.shipped, output=change(edit))

    def _projections(self, spaces: Mapping[str, Tensor]) -> dict[str, HeadEdit]:
        mean = self.round_data.baseline.mean
        return {name: _projection(basis[:, :PLAIN_RANK], mean) for name, basis in spaces.items()}

    def _still(self) -> HeadEdit:
        """An edit that does nothing."""
        mean = self.round_data.baseline.mean
        return _projection(torch.zeros(mean.numel(), 1), mean)

    def _routed(self, edits: Mapping[str, HeadEdit]) -> Codebook:
        return self.editor.with_experts([edits[category] for category, _ in self.editor.concepts])

    def _suppressing(self, book: Codebook) -> Codebook:
        """The codebook with suppression added to each expert."""
        weight = self._weights()
        bias = torch.stack([-SUPPRESSION * weight[category] for category, _ in self.editor.concepts])
        return book if book.output is None else replace(book, output=replace(book.output, bias=bias))

    def _weights(self) -> dict[str, Tensor]:
        """w_k of each category, [K]."""
        unsafe, safe = self.round_data.attribution.counts(self.context.runner.model.facts.codes)
        rows = {name: self.round_data.of(name) for name in self.editor.spaces}
        use = self.round_data.baseline.use
        return {name: weights(unsafe[of], safe[of], use) for name, of in rows.items()}


def _projection(basis: Tensor, mean: Tensor) -> HeadEdit:
    """One expert that projects off the columns of `basis` [M, k] and does no more."""
    nothing = torch.zeros(1, mean.numel(), 1)
    return HeadEdit(basis[None].contiguous(), mean, nothing, nothing.mT.contiguous())
