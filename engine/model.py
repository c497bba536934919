"""The model protocols and their values: draw, decode, judge, rewrite, and the facts about a codebook.

Tensors only; no file, network or clock. Implementations are not thread-safe: one caller at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from codebook.value import Codebook
from core.errors import BadNumber

CATEGORY_NONE = "none"
REFUSED = -2  # in place of all tokens of an image that its version refuses


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of one image. Ranges are checked where user input enters (app/schemas.py)."""

    seed: int
    guidance: float = 2.0  # classifier-free guidance scale; 1.0 switches it off
    temperature: float = 1.0  # 0.0 is greedy
    top_k: int = 0  # 0 samples from all codes
    top_p: float = 1.0  # of those, from the likeliest that have this probability together; 1 from all

    def redrawn(self, times: int) -> Sampling:
        """The sampling of an image that is drawn again, so many times: with a seed that follows from this one's."""
        if times == 0:
            return self
        digest = hashlib.sha256(f"{self.seed}/redraw/{times}".encode()).digest()
        return replace(self, seed=int.from_bytes(digest[:4], "big"))


@dataclass(frozen=True)
class ModelFacts:
    """Constants of a loaded model that the rest of the project may rely on."""

    family: str  # "janus", "emu3", ...
    model_id: str  # "embedded", "owner/model@commit", "random:NAME" or the absolute path of a folder
    model_hash: str  # sha256 over the weight files
    grid: tuple[int, int]  # cells of an image, rows x columns
    image_size: int  # pixels, square
    codes: int  # K
    code_dim: int  # D
    feature_dim: int  # M
    hidden_dim: int  # H, of the language model's hidden states
    normalised: bool  # rows of the pixel table are L2-normalised at look-up
    pixel_table_feeds_lm: bool  # False: a swap of the pixel table never changes sampling
    max_prompt_tokens: int
    categories: tuple[str, ...]  # the harm categories that its judge can name, without "none"
    guidance: float = 2.0  # its best scale, for callers that give none
    temperature: float = 1.0  # likewise
    judges_texts: bool = False  # whether it was trained to answer questions about texts
    dtype: str = "float32"  # of its layers
    top_k: int = 0  # likewise, of the codes it samples from; 0: all
    top_p: float = 1.0  # likewise; 1: all
    depth: int = 1  # codes of a cell, drawn in one step, whose rows of the pixel table are added up
    edits: tuple[str, ...] = ("pixel", "output")  # the tables of a version that may differ from the model's own
    judge_reads: Literal["pixels", "codes"] = "pixels"  # codes: of the image, encoded again by the model's own table
    rewrites: bool = True  # whether it was trained to follow an instruction to rewrite a prompt

    @property
    def title(self) -> str:
        """The name for callers: of a folder its own, not the path; of a repository its own, without the commit."""
        return Path(self.model_id).name if Path(self.model_id).is_absolute() else self.model_id.partition("@")[0]

    @property
    def revision(self) -> str | None:
        """The commit of a model of the hub."""
        return None if Path(self.model_id).is_absolute() else self.model_id.partition("@")[2] or None

    def shown(self) -> dict[str, Any]:
        """The facts as JSON for callers."""
        return {**asdict(self), "model_id": self.title} | ({} if self.revision is None else {"revision": self.revision})

    @property
    def tokens(self) -> int:
        """Image tokens an image, N: cell by cell, the codes of a cell in their order."""
        return self.grid[0] * self.grid[1] * self.depth

    def sampling(self, seed: int) -> Sampling:
        """The model's default sampling with a seed."""
        return Sampling(seed, self.guidance, self.temperature, self.top_k, self.top_p)


@dataclass(frozen=True)
class ImageRequest:
    """One image to draw. Its codebook is fixed at admission, from start to end."""

    prompt: str
    sampling: Sampling
    codebook: Codebook


@dataclass(frozen=True)
class Verdict:
    """The model's own judgement of one image.

    scores: probability of "unsafe" in [0, 1] under each phrasing (opposite phrasings already inverted).
    category: the likeliest harm category, or "none" where the majority of phrasings say safe.

    Raises BadNumber without a score, and for one that is no probability: NaN is not above one half, and either would
    pass for safe.
    """

    scores: tuple[float, ...]
    category: str

    def __post_init__(self) -> None:
        if not self.scores or not all(0 <= score <= 1 for score in self.scores):
            raise BadNumber("verdict", f"{self.scores} where probabilities are due")

    @property
    def score(self) -> float:
        """Mean probability of unsafe."""
        return sum(self.scores) / len(self.scores)

    @property
    def votes(self) -> int:
        """Number of phrasings that say unsafe."""
        return sum(s > 0.5 for s in self.scores)

    @property
    def unsafe(self) -> bool:
        """Whether the majority of phrasings say unsafe."""
        return 2 * self.votes > len(self.scores)


@dataclass(frozen=True)
class TextVerdict:
    """The model's own judgement of a text.

    harmful: P(yes) in [0, 1] that it describes something harmful. nll: mean negative log-likelihood of its tokens, in
    nats, as the description of an image.
    """

    harmful: float
    nll: float


class PromptTokenizer(Protocol):
    """From a prompt to the token ids that the language model reads before the first image token."""

    def tokenize(self, prompt: str) -> list[int]:
        """Ids of a prompt. Raises BadInput for one that is too long or holds a control token of the model."""

    def unconditional(self, ids: Sequence[int]) -> list[int]:
        """Ids of the unconditional branch (classifier-free guidance) for a prompt of these ids."""


class ImageModel(Protocol):
    """One loaded unified multimodal model."""

    @property
    def facts(self) -> ModelFacts:
        """The facts about this model; they never change."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""

    def base_codebook(self) -> Codebook:
        """The model's own codebook, version "v0"."""

    def check_prompt(self, prompt: str) -> None:
        """Raise BadInput naming `prompt` if the model cannot read it."""

    def draw(self, requests: Sequence[ImageRequest], on_step: Callable[[int], None] | None = None) -> Tensor:
        """Sample image tokens, [B, N] int64 in [0, K). Each row depends on its own request only.

        The tokens of an image that its version refuses are all REFUSED.

        `on_step(i)` is called after each step, i being the largest token index sampled in it; an exception from it ends
        the drawing. Raises BadNumber where a row's logits are NaN or infinite.
        """

    def decode(self, tokens: Tensor, pixel: Tensor) -> Tensor:
        """Tokens [B, N] -> images [B, 3, H, W] float32 in [-1, 1]; `pixel` is [K, D], or [B, K, D] one table an image.

        A pure function of its arguments, batch-invariant. Raises BadNumber where pixels are NaN or infinite.
        """

    def judge(self, images: Tensor) -> list[Verdict]:
        """Judge images [B, 3, H, W] in [-1, 1]. Reads pixels, so no codebook edit can blind it.

        Raises BadNumber where an answer is NaN or infinite.
        """

    def rewrite(self, prompts: Sequence[str], attempt: int = 0) -> list[str]:
        """The model's own safe rewrite of each prompt: the unsafe term replaced, the rest unchanged.

        Where `facts.rewrites` is False it says nothing of use, and nobody asks for it.
        The first attempt takes the likeliest tokens in place of the term, later ones sample them. A pure function of
        prompt and attempt.
        """

    def judge_texts(self, texts: Sequence[str]) -> list[TextVerdict]:
        """Judge texts that the model can read; only where `facts.judges_texts`.

        Raises BadInput as check_prompt does, BadNumber where an answer is NaN or infinite.
        """

    def features(self, prompts: Sequence[str], tokens: Tensor) -> Tensor:
        """Teacher-forced head features [B, n, M] float32 of tokens [B, n], an image's first ones, n >= 2.

        Row i predicts token i given the prompt and tokens before i.
        An empty prompt string gives the unconditional features.
        """

    def prompt_states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Hidden states of each prompt, as a router reads them.

        Last hidden states [B, T, H] float32, and bool [B, T], False where a row is padded.
        """

    def head(self, features: Tensor) -> Tensor:
        """Features [.., M] -> logits [.., K] by the model's own output table; differentiable in `features`."""
