"""The Janus family: transformers' JanusForConditionalGeneration behind the project's model interface.

Serves the embedded model and Janus-Pro alike. Joins the parts; each part is in its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import transformers
from torch import Tensor
from transformers import JanusForConditionalGeneration, JanusProcessor, JanusVisionConfig, JanusVQVAEConfig

from codebook.tensors import finite
from codebook.value import Codebook
from core.errors import BadModel
from engine.families.janus import pixels
from engine.families.janus.asking import Asker
from engine.families.janus.judging import Judge
from engine.families.janus.prompting import Chat
from engine.families.janus.rewriting import Rewriter
from engine.families.janus.text_judging import TextJudge
from engine.instructions import Instructions
from engine.model import ImageRequest, ModelFacts, TextVerdict, Verdict
from engine.runner.batch import RunningBatch, check_drawn
from engine.runner.cuda_graphs import Recorded, recorder
from engine.runner.decoder import Decoder
from engine.runner.image_lm import ImageHead, ImageLM
from engine.runner.memory import planned_rows
from engine.runner.revision import revise
from engine.runner.sequence import ImageSequence, kv_rows_of
from engine.runner.served import Served

FAMILY = "janus"
LONGEST_PROMPT = 512  # tokens: far above any description, far below the cost of a long context


class JanusModel(Served):
    """A loaded Janus checkpoint.

    A request's tokens follow from the request alone; docs/explanation/engine.md says where bit for bit, and where up
    to the last bits of a logit.
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
        configs, hidden = (self._vq.config, inner.vision_model.config), text.hidden_size
        self._facts = _facts(*configs, longest, hidden, instructions, model_id, model_hash, model.dtype)
        # The longest row is a prompt with an image, or a rewrite question with its answer (16 tokens longer).
        positions = min(longest, 2 * LONGEST_PROMPT + self._facts.tokens)
        # Twice as long: a rewrite that has ended is written on, to no effect, until the longest of its batch has.
        decoder = Decoder(inner.language_model, 2 * positions)
        self._positions = self._facts.max_prompt_tokens + self._facts.tokens
        self._chat = Chat(processor, self._facts.max_prompt_tokens)
        self._image_lm = ImageLM(_image_head(inner), decoder, self._chat, self._facts.tokens)
        pixels.use_fast_norms(self._vq)
        self._decode_one = Recorded(partial(pixels.decode_one, self._vq), recorder(self.device))
        self._judge = Judge(model, decoder, self._chat, instructions)
        self._asker = Asker(model.lm_head, decoder, self._chat, self._judge.embed_images, positions)
        instruction, question = instructions.rewrite_instruction, instructions.text_question
        self._rewriter = Rewriter(model.lm_head, decoder, self._chat, instruction, positions)
        self._text_judge = None if question is None else TextJudge(model.lm_head, decoder, self._chat, question)

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
        self._chat.tokenize(prompt)

    def tokenize(self, prompt: str) -> list[int]:
        """See Served."""
        return self._chat.tokenize(prompt)

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        """See ImageModel. An empty prompt draws unconditionally. Raises BadInput as check_prompt does."""
        if not requests:
            return torch.zeros(0, self._facts.tokens, dtype=torch.int64, device=self.device)
        sequences = [ImageSequence(request, self.tokenize(request.prompt)) for request in requests]
        rewrites = any(request.codebook.mode == "rewrite" for request in requests)
        longest = max(len(sequence.prompt_ids) for sequence in sequences) + self._facts.tokens
        positions = self._positions if rewrites else longest  # a rewrite may be as long as any prompt
        batch = RunningBatch(self._image_lm, sum(map(kv_rows_of, requests)), positions)
        aside = batch.admit(sequences)
        revise(self, revised := [sequence for sequence in aside if sequence.mode == "rewrite"])
        batch.admit(revised)
        while batch.sequences:
            furthest = max(sequence.step for sequence in batch.sequences)
            batch.step()
            if on_step is not None:
                on_step(furthest)
        return check_drawn(torch.stack([sequence.tokens for sequence in sequences]))

    def running_batch(self, kv_rows: int) -> RunningBatch:
        """See Served."""
        return RunningBatch(self._image_lm, kv_rows, self._positions)

    @property
    def device(self) -> torch.device:
        """See Served."""
        return self._image_lm.codes.device

    def kv_rows(self) -> int:
        """See Served."""
        return planned_rows(self.device, self._image_lm.decoder.row_bytes(self._positions))

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See ImageModel; differentiable in `pixel`."""
        decode_one = partial(pixels.decode_one, self._vq) if torch.is_grad_enabled() else self._decode_one
        return pixels.decode(decode_one, tokens.to(self.device), pixel.to(self.device))

    def preview(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """See Served."""
        with torch.no_grad():
            return pixels.preview(self._decode_one, self._facts.grid, tokens.to(self.device), pixel.to(self.device))

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


def _image_head(janus: transformers.JanusModel) -> ImageHead:
    head = janus.generation_head
    with torch.no_grad():  # no codebook version edits what the language model reads, so once is enough
        embeddings: Tensor = janus.generation_aligner(janus.generation_embeddings.weight)
    return ImageHead(head.proj_out, head.activation_fn, head.vision_head, embeddings)


def _facts(
    vq: JanusVQVAEConfig,
    vision: JanusVisionConfig,
    longest: int,
    hidden: int,
    instructions: Instructions,
    model_id: str,
    model_hash: str,
    dtype: torch.dtype,
) -> ModelFacts:
    """The facts that a configuration states; raises BadModel where its parts contradict each other."""
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
        judges_texts=instructions.text_question is not None,
        dtype=str(dtype).removeprefix("torch."),
    )
