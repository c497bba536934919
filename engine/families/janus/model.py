"""The Janus family: transformers' JanusForConditionalGeneration behind the project's model interface.

Serves the embedded model and Janus-Pro alike. Joins the parts; each part is in its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor, JanusVisionConfig, JanusVQVAEConfig

from codebook.tensors import finite
from codebook.value import Codebook
from core.errors import BadModel
from engine.families.janus import pixels
from engine.families.janus.judging import Judge
from engine.families.janus.prompting import Chat
from engine.families.janus.rewriting import Rewriter
from engine.instructions import Instructions
from engine.model import ImageRequest, ModelFacts, Verdict
from engine.runner.batch import RunningBatch, Served, check_drawn
from engine.runner.cuda_graphs import Recorded, recorder
from engine.runner.decoder import Decoder
from engine.runner.image_lm import ImageLM
from engine.runner.memory import planned_rows
from engine.runner.sequence import rows_of

FAMILY = "janus"
LONGEST_PROMPT = 512  # tokens: far above any description, far below what a long context would cost


class JanusModel(Served):
    """A loaded Janus checkpoint.

    A request's tokens follow from the request alone; docs/07-engine.md says where bit for bit, and where but for the
    last bits of a logit.
    """

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        processor: JanusProcessor,
        instructions: Instructions,
        model_id: str,
        model_hash: str,
    ) -> None:
        """Take a model on its device, and its processor. Raises BadModel."""
        model.train(False).requires_grad_(False)
        inner = model.model
        self._vq = inner.vqmodel
        text = inner.language_model.config
        longest: int = text.max_position_embeddings
        self._facts = _facts(
            self._vq.config, inner.vision_model.config, longest, text.hidden_size, instructions, model_id, model_hash
        )
        # The longest row is a prompt with an image, or a rewrite question with its answer (16 tokens longer).
        positions = min(longest, 2 * LONGEST_PROMPT + self._facts.tokens)
        # Twice as long: a text that is at its end is written on, to no effect, until its longest batch mate is.
        language = Decoder(inner.language_model, 2 * positions)
        self._places = self._facts.max_prompt_tokens + self._facts.tokens
        self._chat = Chat(processor, self._facts.max_prompt_tokens)
        self._drawer = ImageLM(inner, language, self._chat, self._facts.tokens)
        pixels.quicken(self._vq)
        self._picture = Recorded(partial(pixels.picture, self._vq), recorder(self.device))
        self._judge = Judge(model, language, self._chat, instructions)
        instruction = instructions.rewrite_instruction
        self._rewriter = Rewriter(model.lm_head, language, self._chat, instruction, positions)

    @property
    def facts(self) -> ModelFacts:
        """See ImageModel."""
        return self._facts

    def base_codebook(self) -> Codebook:
        """See ImageModel; a copy, so that nobody holds the model's own table."""
        table = self._vq.quantize.embedding.weight.detach().to("cpu", torch.float32, copy=True)
        return Codebook("v0", FAMILY, self._facts.model_hash, table)

    def check_prompt(self, prompt: str) -> None:
        """See ImageModel; also refuses the model's control tokens inside a prompt."""
        self._chat.check(prompt)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        """See ImageModel. An empty prompt draws unconditionally. Raises BadInput as check_prompt does."""
        tokens = torch.zeros(len(requests), self._facts.tokens, dtype=torch.int64, device=self._drawer.codes.device)
        if not requests:
            return tokens
        longest = max(self._chat.length(request.prompt) for request in requests)
        slots = RunningBatch(self._drawer, sum(map(rows_of, requests)), longest + self._facts.tokens)
        places = {sequence: b for b, sequence in enumerate(slots.admit(requests))}
        while slots.drawing:
            furthest = max(sequence.step for sequence in slots.drawing)
            for sequence, drawn in slots.step():
                tokens[places[sequence]] = drawn
            if on_step is not None:
                on_step(furthest)
        return check_drawn(tokens)

    def slots(self, rows: int) -> RunningBatch:
        """See Served."""
        return RunningBatch(self._drawer, rows, self._places)

    @property
    def device(self) -> torch.device:
        """See Served."""
        return self._drawer.codes.device

    def rows(self) -> int:
        """See Served."""
        return planned_rows(self.device, self._drawer.language.row_bytes(self._places))

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See ImageModel; differentiable in `pixel`."""
        picture = partial(pixels.picture, self._vq) if torch.is_grad_enabled() else self._picture
        return pixels.decode(picture, tokens.to(self.device), pixel.to(self.device))

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See Served."""
        with torch.no_grad():
            return pixels.preview(self._picture, self._facts.grid, tokens.to(self.device), pixel.to(self.device))

    def encode(self, images: Tensor) -> Tensor:
        """See ImageModel."""
        return pixels.encode(self._vq, images)

    def judge(self, images: Tensor) -> list[Verdict]:
        """See ImageModel."""
        return self._judge(images)

    def rewrite(self, prompts: Sequence[str]) -> list[str]:
        """See ImageModel. Raises BadInput as check_prompt does."""
        return self._rewriter(prompts)

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """See ImageModel; a plain tensor without history, to which autograd may attach."""
        return finite("features", self._drawer.features(prompts, tokens))

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """See ImageModel."""
        states, seen = self._drawer.prompt_states(prompts)
        return finite("prompt states", states), seen

    def head(self, features: Tensor) -> Tensor:
        """See ImageModel."""
        return self._drawer.head(features)


def _facts(
    vq: JanusVQVAEConfig,
    vision: JanusVisionConfig,
    longest: int,
    hidden: int,
    instructions: Instructions,
    model_id: str,
    model_hash: str,
) -> ModelFacts:
    """Read the facts off a configuration; raises BadModel where its parts contradict each other."""
    side = vq.num_patches
    size = side * 2 ** (len(vq.channel_multiplier) - 1)
    if side * side != vision.num_image_tokens:
        raise BadModel(f"{model_id}: {vision.num_image_tokens} image tokens do not fill a {side} x {side} grid")
    if size != vision.image_size:
        raise BadModel(f"{model_id}: draws {size} pixels a side, but its vision tower reads {vision.image_size}")
    return ModelFacts(
        family=FAMILY,
        model_id=model_id,
        model_hash=model_hash,
        grid=(side, side),
        image_size=size,
        codes=vq.num_embeddings,
        code_dim=vq.embed_dim,
        feature_dim=vq.projection_dim,
        hidden_dim=hidden,
        normalised=True,
        pixel_table_feeds_lm=False,
        max_prompt_tokens=min(longest - side * side, LONGEST_PROMPT),
        categories=instructions.categories,
        guidance=instructions.guidance,
        temperature=instructions.temperature,
    )
