"""Further words for a trained model: one embedding each, learned from what the model draws for English prompts.

The model teaches itself: it draws English prompts, and the same scene in other words, with the new tokens, has to
predict each image token as the English prompt does. All else is frozen, so that whatever holds no new word is read
and drawn bit for bit as before.
"""

from __future__ import annotations

import random
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from engine.model import ImageRequest
from engine.registry import load_model
from recipes.assemble import SHARD
from recipes.language.further_words import further_words, plurals, with_words
from recipes.language.rows import answer_loss, drawing_states, drawing_text, rewriting_text, tokenise
from recipes.pictures.captions import SAYS_COLOUR, SAYS_STYLE, Captioner, Scene, Wording, scenes_in_words
from recipes.pictures.geometry import build_processor
from recipes.pictures.scenes import sample_scenes
from recipes.pictures.taxonomy import load_taxonomy
from recipes.sizes import Sizes

DRAW, REWRITE = 64, 8  # rows of each task in a step
PROMPT, REPLY = 40, 76  # padded lengths, tokens
TOKENS = 32  # an image's first tokens; what it shows is settled by then
RATE = 2e-3
SHORT = 0.4  # share of prompts of few words
PLURAL = 0.15  # share of English plurals, where the scene has one


class WordTrainer:
    """The embeddings of new tokens in training: `step` does one update of them."""

    def __init__(self, folder: Path, captioner: Captioner, sizes: Sizes) -> None:
        """Reads the model folder and draws the pictures to learn from (sizes.lessons of them)."""
        self.captioner, self.steps, self.rng = captioner, sizes.words, random.Random(4)
        self.model = JanusForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model.train(False).requires_grad_(False)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        # The rows that have a token; the input embeddings too, since they are tied.
        self.old: Tensor = self.model.lm_head.weight.detach()[: len(tokenizer)]
        words = further_words(tokenizer, captioner)
        self.tokenizer, self.plurals = with_words(tokenizer, words), plurals(captioner.taxonomy)
        self.new = nn.Parameter(self.first_guesses(tokenizer, words))
        self.optimiser = torch.optim.Adam([self.new], lr=RATE, betas=(0.9, 0.98))
        rows = sample_scenes(captioner.taxonomy, sizes.lessons, torch.Generator().manual_seed(5))
        self.scenes = scenes_in_words(rows.tolist(), captioner.taxonomy)
        self.says = [(self.rng.random() < SAYS_STYLE, self.rng.random() < SAYS_COLOUR) for _ in self.scenes]
        prompts = [captioner.prompt(s, self.english(*says)) for s, says in zip(self.scenes, self.says, strict=True)]
        self.tokens = own_tokens(folder, prompts)
        self.states = self.taught(prompts)

    def first_guesses(self, tokenizer: PreTrainedTokenizerFast, words: dict[str, list[str]]) -> Tensor:
        """Means of the embeddings of the English terms, at the length that embeddings have: [words, H]."""

        def mean(term: str) -> Tensor:
            ids: list[int] = tokenizer(f" {term}", add_special_tokens=False).input_ids
            return self.old[ids].mean(0)

        means = torch.stack([torch.stack([mean(term) for term in terms]).mean(0) for terms in words.values()])
        length = float(self.old.norm(dim=1).median())
        return F.normalize(means, dim=1) * length

    def english(self, says_style: bool, says_colour: bool, short: bool = False) -> Wording:
        """An English wording that says these things and has no fillers."""
        captioner, rng = self.captioner, self.rng
        wording = captioner.short_wording(rng) if short else captioner.wording(rng, filled=0.0)
        while not short and "{style}" not in wording.template:
            wording = captioner.wording(rng, filled=0.0)
        return replace(
            wording,
            style_form=rng.choice(captioner.style_forms) if says_style else "",
            background_form=rng.choice(captioner.background_forms) if says_colour else "",
            plural=False,
            synonym=0,
            pattern_synonym=0,
        )

    def reworded(self, scene: Scene, says_style: bool, says_colour: bool) -> str:
        """The scene in another language, or in English with a plural; it says the same of style and colour."""
        captioner, rng = self.captioner, self.rng
        short = rng.random() < SHORT
        has_plural = scene.noun in self.plurals and scene.companion is None
        if has_plural and rng.random() < PLURAL:
            return captioner.prompt(scene, replace(self.english(says_style, says_colour, short), plural=True))
        code = rng.choice(sorted(captioner.languages))
        words = captioner.languages[code]
        wording = captioner.short_wording(rng, code) if short else captioner.foreign_wording(rng, code)
        style, background = words.style if says_style else "", words.background if says_colour else ""
        return captioner.prompt(scene, replace(wording, style_form=style, background_form=background))

    def table(self) -> Tensor:
        """The embeddings of all tokens, which give the logits too: [V, H]."""
        return torch.cat([self.old, self.new])

    def embed(self, ids: Tensor) -> Tensor:
        """Ids [B, T] -> embeddings [B, T, H], of which the new tokens' are in training."""
        return F.embedding(ids, self.table())

    @torch.no_grad()
    def taught(self, prompts: list[str]) -> Tensor:
        """States [n, TOKENS, H] from which the model predicts its own images of these English prompts."""
        parts = zip(torch.split(torch.arange(len(prompts)), DRAW), torch.split(self.tokens, DRAW), strict=True)
        return torch.cat([self.states_of([prompts[i] for i in chosen.tolist()], tokens) for chosen, tokens in parts])

    def states_of(self, prompts: list[str], tokens: Tensor) -> Tensor:
        """States [B, TOKENS, H] that predict these tokens [B, TOKENS] for these prompts."""
        ids = tokenise(self.tokenizer, [drawing_text(prompt) for prompt in prompts], PROMPT)
        ids = ids[:, : int((ids != self.tokenizer.pad_token_id).sum(1).max())]
        return drawing_states(self.model, self.embed(ids), (ids != self.tokenizer.pad_token_id).sum(1), tokens)

    def draw_loss(self) -> Tensor:
        """Kullback-Leibler divergence of the reworded prompts' predictions from the English ones', nats a token."""
        chosen = self.rng.choices(range(len(self.scenes)), k=DRAW)
        prompts = [self.reworded(self.scenes[i], *self.says[i]) for i in chosen]
        head = self.model.model.generation_head
        with torch.no_grad():
            target = head(self.states[chosen]).flatten(0, 1).log_softmax(-1)
        prediction = head(self.states_of(prompts, self.tokens[chosen])).flatten(0, 1).log_softmax(-1)
        return F.kl_div(prediction, target, reduction="batchmean", log_target=True)

    def rewrite_loss(self) -> Tensor:
        """Cross-entropy of English rewrites, half with plurals: new tokens are copied, and come nowhere else."""
        captioner, texts = self.captioner, []
        for number in range(REWRITE):
            scene = self.rng.choice(self.scenes)
            wording = replace(captioner.wording(self.rng, filled=1.0), plural=number % 2 == 0)
            safe = captioner.prompt(captioner.safe(scene), wording)
            texts.append(rewriting_text(captioner.prompt(scene, wording), safe))
        ids = tokenise(self.tokenizer, texts, REPLY)
        return answer_loss(self.model, self.tokenizer, self.embed(ids), ids, self.table())

    def step(self, i: int) -> tuple[float, float]:
        """One update at step i; returns both losses."""
        self.optimiser.param_groups[0]["lr"] = RATE * min(1.0, 2 * (self.steps - i) / self.steps)
        losses = self.draw_loss(), self.rewrite_loss()
        torch.autograd.backward(losses[0] + 0.2 * losses[1])
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return losses[0].item(), losses[1].item()

    def save(self, folder: Path) -> None:
        """Write the model and its processor with the new tokens."""
        self.model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
        self.model.lm_head.weight.data.copy_(self.table().detach())
        nn.Module.half(self.model)
        self.model.save_pretrained(folder, max_shard_size=SHARD)
        build_processor(self.tokenizer).save_pretrained(folder)


def own_tokens(folder: Path, prompts: list[str]) -> Tensor:
    """The first TOKENS image tokens of one image a prompt, as the model draws with its own settings: [n, TOKENS]."""
    model = load_model(str(folder), "cpu", "float32")
    codebook = model.base_codebook()
    requests = [ImageRequest(p, model.facts.sampling(10**5 + i), codebook) for i, p in enumerate(prompts)]
    parts = [requests[start : start + DRAW] for start in range(0, len(requests), DRAW)]
    return torch.cat([model.draw(part)[:, :TOKENS] for part in parts])


def extend(folder: Path, sizes: Sizes) -> None:
    """Give the model in `folder` tokens for its further words, in place."""
    trainer = WordTrainer(folder, Captioner(load_taxonomy()), sizes)
    began = time.monotonic()
    for i in range(sizes.words):
        draw, rewrite = trainer.step(i)
        if i % 20 == 0:
            print(f"words step {i} draw {draw:.4f} rewrite {rewrite:.3f} {time.monotonic() - began:.0f} s", flush=True)
    trainer.save(folder)
