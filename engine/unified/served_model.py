"""Served model: the parts of any family behind the project's model interface.

Joins the parts; each is in its own file. Knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from codebook.tensors import finite
from codebook.value import Codebook
from engine.model import ImageRequest, ModelFacts, TextVerdict, Verdict
from engine.runner.batch import RunningBatch, check_drawn
from engine.runner.cuda_graphs import Recorded, recorder
from engine.runner.decoder import Decoder
from engine.runner.image_lm import ImageLM
from engine.runner.memory import planned_rows
from engine.runner.revision import revise, unsafe_again
from engine.runner.sequence import ImageSequence, kv_rows_of
from engine.runner.served import Served
from engine.runner.step.lookahead import LOOKAHEAD
from engine.runner.step.team import Team, take_threads
from engine.unified import pixels
from engine.unified.asking import Asker
from engine.unified.judging import Judge
from engine.unified.parts import Parts
from engine.unified.rewriting import Rewriter
from engine.unified.text_judging import TextJudge

LONGEST_PROMPT = 512  # tokens: far above any description, far below the cost of a long context


class ServedModel(Served):
    """A loaded checkpoint of any family.

    A request's tokens follow from the request alone; docs/explanation/engine.md says where bit for bit, and where up
    to the last bits of a logit.
    """

    def __init__(self, parts: Parts, products: Path | None = None) -> None:
        """Take the parts, whose layers move out of their backbones. Raises BadModel.

        products: the file that remembers which products are fastest on this machine, if any.
        """
        self._parts, self._facts = parts, parts.facts
        drawing, reading = parts.drawing, parts.reading or parts.drawing
        steps, instructions = parts.script.steps, parts.instructions
        # The longest row is a prompt with an image, or a rewrite question with its answer (16 tokens longer).
        longest = min(drawing.longest, 2 * LONGEST_PROMPT + steps)
        # Twice as long: a rewrite that has ended is written on, to no effect, until the longest of its batch has.
        decoder = Decoder(drawing.backbone, 2 * longest)
        self._positions = self._facts.max_prompt_tokens + steps
        self._image_lm = ImageLM(parts.head, decoder, drawing.chat, parts.script)
        self._image_lm.choose_products(products)
        self._team = Team(torch.get_num_threads(), tried=self.device.type == "cpu")
        self._decode_one = Recorded(parts.picture, recorder(self.device))
        if parts.reading is not None:
            longest = min(reading.longest, 2 * LONGEST_PROMPT + steps)
            decoder = Decoder(reading.backbone, 2 * longest)
        head, chat = reading.text_head, reading.chat
        self._judge = Judge(head, decoder, chat, reading.see, instructions)
        self._asker = Asker(head, decoder, chat, reading.see, longest)
        self._rewriter = Rewriter(head, decoder, chat, instructions.rewrite_instruction, longest)
        question = instructions.text_question
        self._text_judge = None if question is None else TextJudge(head, decoder, chat, question)

    @property
    def facts(self) -> ModelFacts:
        """See ImageModel."""
        return self._facts

    def base_codebook(self) -> Codebook:
        """See ImageModel; a copy, so that nobody holds the model's own table."""
        table = self._parts.table.detach().to("cpu", torch.float32, copy=True)
        return Codebook("v0", self._facts.family, self._facts.model_hash, table)

    def check_prompt(self, prompt: str) -> None:
        """See ImageModel; also refuses the model's control tokens inside a prompt."""
        self._parts.drawing.chat.tokenize(prompt)

    def tokenize(self, prompt: str) -> list[int]:
        """See Served."""
        return self._parts.drawing.chat.tokenize(prompt)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        """See ImageModel. An empty prompt draws unconditionally. Raises BadInput as check_prompt does."""
        if not requests:
            return torch.zeros(0, self._facts.tokens, dtype=torch.int64, device=self.device)
        sequences = [ImageSequence(request, self.tokenize(request.prompt)) for request in requests]
        rewrites = any(request.codebook.mode == "rewrite" for request in requests)
        prompt = max(self._image_lm.prompt_length(sequence.prompt_ids) for sequence in sequences)
        longest = prompt + self._parts.script.steps
        positions = self._positions if rewrites else longest  # a rewrite may be as long as any prompt
        batch = RunningBatch(self._image_lm, sum(map(kv_rows_of, requests)), positions)
        again = sequences
        while again:
            with self._drawing_team() as team:
                self._draw(batch, again, team, on_step)
            again = unsafe_again(self, again)
        return check_drawn(torch.stack([sequence.tokens for sequence in sequences]))

    @contextmanager
    def _drawing_team(self) -> Iterator[Team]:
        """The team of the calling thread's draws: as many threads as it has, and again afterwards.

        What else it computes, pixels above all, has other last bits with another number of threads.
        """
        if self._team.most != (most := torch.get_num_threads()):
            self._team = Team(most, tried=self.device.type == "cpu")
        try:
            yield self._team
        finally:
            take_threads(most)

    def _draw(
        self,
        batch: RunningBatch,
        sequences: Sequence[ImageSequence],
        team: Team,
        on_step: Callable[[int], None] | None,
    ) -> None:
        """Draw images from their first step to their last one."""
        aside = batch.admit(sequences)
        revise(self, revised := [sequence for sequence in aside if sequence.mode == "rewrite"])
        batch.admit(revised)
        while batch.sequences:
            running = batch.sequences
            furthest = max(map(batch.drawn, running))
            with team.step(batch):
                batch.step()
            if on_step is not None:
                on_step(max(furthest, *(batch.drawn(sequence) - 1 for sequence in running)))

    def running_batch(self, kv_rows: int, lookahead: int = LOOKAHEAD) -> RunningBatch:
        """See Served."""
        return RunningBatch(self._image_lm, kv_rows, self._positions, lookahead)

    @property
    def device(self) -> torch.device:
        """See ImageModel."""
        return self._image_lm.codes.device

    def kv_rows(self) -> int:
        """See Served."""
        return planned_rows(self.device, self._image_lm.decoder.row_bytes(self._positions))

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See ImageModel; differentiable in `pixel`."""
        decode_one = self._parts.picture if torch.is_grad_enabled() else self._decode_one
        return pixels.decode(decode_one, tokens.to(self.device), pixel.to(self.device))

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See Served."""
        with torch.no_grad():
            return pixels.preview(self._decode_one, self._facts, tokens.to(self.device), pixel.to(self.device))

    def encode(self, images: Tensor) -> Tensor | None:
        """See Served; image by image, as the judge reads them where it reads codes."""
        if (encode := self._parts.encode) is None:
            return None
        with torch.no_grad():
            return torch.stack([encode(image[None].to(self.device)) for image in images])

    def judge(self, images: Tensor) -> list[Verdict]:
        """See ImageModel."""
        return self._judge(images)

    def ask(self, images: Tensor, questions: Sequence[str]) -> Tensor:
        """P(yes) [B] float32 in [0, 1] of one question about each of images [B, 3, H, W] in [-1, 1]; see Asker."""
        return self._asker(images, questions)

    def rewrite(self, prompts: Sequence[str], attempt: int = 0) -> list[str]:
        """See ImageModel. Raises BadInput as check_prompt does."""
        return self._rewriter(prompts, attempt)

    def judge_texts(self, texts: Sequence[str]) -> list[TextVerdict]:
        """See ImageModel. Raises ValueError for a model without a question about texts."""
        if self._text_judge is None:
            raise ValueError(f"{self._facts.model_id} was not trained to judge texts")
        return [self._text_judge(text) for text in texts]

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """See ImageModel; a plain tensor without history, to which autograd may attach."""
        return finite("features", self._image_lm.features(prompts, tokens))

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See ImageModel."""
        states, mask = self._image_lm.prompt_states(prompts)
        return finite("prompt states", states), mask

    def head(self, features: Tensor) -> Tensor:
        """See ImageModel."""
        return self._image_lm.head(features)
