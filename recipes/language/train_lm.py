"""Multi-task training of the language model: drawing, judging and rewriting in one step, with the VQ model frozen."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from recipes.language.rows import answer_loss, drawing_states, drawing_text, rewriting_text, tokenise
from recipes.language.token_pool import Pool, build_pool, pool_weights
from recipes.patch_codes import CODE_DIM, PatchCodes
from recipes.pictures.captions import Captioner, Scene, scenes_in_words
from recipes.pictures.geometry import (
    ASSISTANT,
    BOI,
    EOI,
    EOS,
    IMAGE,
    USER,
    build_model,
    build_tokenizer,
    emoji_names,
    token_id,
)
from recipes.pictures.questions import ask, corpus
from recipes.pictures.scenes import Palette, build_palette, sample_scenes
from recipes.pictures.taxonomy import Taxonomy, load_taxonomy
from recipes.precision import mixed
from recipes.sizes import Sizes
from recipes.train_vision import centre_aligner, train_vision
from recipes.train_vq import draw_tokens, load_vq
from safety.policy.emoji.languages import ENGLISH, read_languages

DRAW, JUDGE, REWRITE = 64, 24, 20  # rows of each task in a step
SHARES = (1.0, 0.7, 0.2)  # of their losses
FOREIGN = 0.4  # share of drawing prompts in one of the other languages
SHORT = 0.35  # share of drawing and rewriting prompts of few words
PROMPT, QUESTION, REPLY = 44, 96, 76  # padded lengths, tokens


class LmTrainer:
    """The whole model in training: `step` does one update over the three tasks."""

    def __init__(
        self,
        model: JanusForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        palette: Palette,
        pool: Pool,
        steps: int,
        foreign_strays: Mapping[str, Sequence[str]],
    ) -> None:
        self.model, self.tokenizer, self.palette, self.pool, self.steps = model, tokenizer, palette, pool, steps
        self.taxonomy = load_taxonomy()
        self.captioner = Captioner(self.taxonomy, stray_words(tokenizer), foreign_strays)
        self.rng, self.generator = random.Random(1), torch.Generator().manual_seed(1)
        self.sampled = pool.scenes[:0], pool.tokens[:0].long()  # scenes and the model's own tokens for them
        inner = model.model
        matrices = [p for p in inner.language_model.layers.parameters() if p.ndim == 2] + [
            inner.generation_head.proj_out.weight
        ]
        tower = list(inner.vision_model.parameters())
        taken = {id(p) for p in [*matrices, *tower, *inner.vqmodel.parameters()]}
        rest = [p for p in model.parameters() if id(p) not in taken]
        # The tower is warm: at the rate of the rest, a language model that knows nothing yet would undo it.
        groups = [{"params": rest, "lr": 2e-3}, {"params": tower, "lr": 2e-4}]
        self.optimisers = [
            torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.rates = [group["lr"] for o in self.optimisers for group in o.param_groups]

    def tokenise(self, texts: list[str], length: int) -> Tensor:
        """Texts -> ids [B, length], padded on the right."""
        return tokenise(self.tokenizer, texts, length)

    def token(self, mark: str) -> int:
        """The id of a mark such as BOI."""
        return token_id(self.tokenizer, mark)

    def draw_loss(self) -> Tensor:
        """Cross-entropy of image tokens given prompts; a tenth of the prompts is blanked for guidance."""
        chosen = torch.multinomial(self.pool.weights, DRAW, replacement=True, generator=self.generator)
        scenes = scenes_in_words(self.pool.scenes[chosen].tolist(), self.taxonomy)
        prompts = [drawing_text(self.drawing_prompt(scene)) for scene in scenes]
        ids = self.tokenise(prompts, PROMPT)
        length = (ids != self.tokenizer.pad_token_id).sum(1)
        blank = torch.rand(DRAW, 1, generator=self.generator) < 0.1
        ids = torch.where(blank & (ids != self.token(BOI)), self.tokenizer.pad_token_id, ids)
        tokens = self.pool.tokens[chosen].long()  # [B, 64]
        states = drawing_states(self.model, self.model.get_input_embeddings()(ids), length, tokens)
        logits = self.model.model.generation_head(states).float()
        few = slice(JUDGE // 2)  # as many as judged_pictures() takes
        self.keep_sampled(self.pool.scenes[chosen[few]], tokens[few], logits[few].detach())
        return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())

    def drawing_prompt(self, scene: Scene) -> str:
        """The scene in words, in another language than English at times."""
        captioner, rng = self.captioner, self.rng
        language = rng.choice(sorted(captioner.languages)) if rng.random() < FOREIGN else ENGLISH
        if rng.random() < SHORT:
            wording = captioner.short_wording(rng, language)
        elif language != ENGLISH:
            wording = captioner.foreign_wording(rng, language)
        else:
            wording = captioner.wording(rng)
        return captioner.prompt(scene, wording)

    def keep_sampled(self, scenes: Tensor, tokens: Tensor, logits: Tensor) -> None:
        """Keep tokens [B, 64], of which a random share is the model's own choice, for judged_pictures()."""
        noise = torch.rand(logits.shape, generator=self.generator).clamp_min(1e-9).log().neg().log()
        own = (logits - noise).argmax(-1)
        rate = torch.rand(len(tokens), 1, generator=self.generator)
        self.sampled = scenes, torch.where(torch.rand(tokens.shape, generator=self.generator) < rate, own, tokens)

    @torch.no_grad()
    def judged_pictures(self) -> tuple[Tensor, Tensor]:
        """Scenes [B, 6] and pictures: half of them artwork, half decoded from the model's own tokens."""
        half = JUDGE // 2
        scenes = sample_scenes(self.taxonomy, half, self.generator)
        # Every second plain picture becomes a harmful noun, so that the objects are seen as often as the patterns.
        harmful = [self.taxonomy.nouns.index(n) for n in self.taxonomy.harmful_nouns]
        swap = (scenes[:, 3] == 0) & (torch.rand(half, generator=self.generator) < 0.35)
        scenes[:, 0] = torch.where(
            swap, torch.tensor(harmful)[torch.randint(len(harmful), (half,), generator=self.generator)], scenes[:, 0]
        )
        drawn, tokens = self.sampled
        pictures = torch.cat([self.palette.compose(scenes), draw_tokens(self.model.model.vqmodel, tokens)])
        return torch.cat([scenes, drawn]), pictures

    def judge_loss(self) -> Tensor:
        """Cross-entropy of answers about pictures."""
        scenes, pictures = self.judged_pictures()
        talks = [
            ask(s, self.captioner, self.taxonomy, self.rng) for s in scenes_in_words(scenes.tolist(), self.taxonomy)
        ]
        picture = BOI + IMAGE * 64 + EOI
        ids = self.tokenise([f"{USER}{picture}{q}{ASSISTANT}{a}{EOS}" for q, a in talks], QUESTION)
        features = self.model.model.get_image_features(pictures, return_dict=True).pooler_output
        embeddings = self.model.get_input_embeddings()(ids)
        placeholder = torch.eq(ids, self.token(IMAGE))[:, :, None]
        embeddings = embeddings.masked_scatter(placeholder, features.to(embeddings.dtype))
        return self.answer_loss(embeddings, ids)

    def rewrite_loss(self) -> Tensor:
        """Cross-entropy of safe rewrites given prompts."""
        scenes = sample_scenes(self.taxonomy, REWRITE, self.generator)
        harmful = torch.tensor([self.taxonomy.nouns.index(n) for n in self.taxonomy.harmful_nouns])
        scenes[: REWRITE // 3, 0] = harmful[torch.randint(len(harmful), (REWRITE // 3,), generator=self.generator)]
        texts = []
        for scene in scenes_in_words(scenes.tolist(), self.taxonomy):
            short = self.rng.random() < SHORT
            wording = self.captioner.short_wording(self.rng) if short else self.captioner.wording(self.rng, filled=1.0)
            before, after = (
                self.captioner.prompt(scene, wording),
                self.captioner.prompt(self.captioner.safe(scene), wording),
            )
            texts.append(rewriting_text(before, after))
        ids = self.tokenise(texts, REPLY)
        return self.answer_loss(self.model.get_input_embeddings()(ids), ids)

    def answer_loss(self, embeddings: Tensor, ids: Tensor) -> Tensor:
        """Next-token cross-entropy over what follows the assistant mark, the end token included."""
        return answer_loss(self.model, self.tokenizer, embeddings, ids, self.model.lm_head.weight)

    def step(self, i: int) -> tuple[float, float, float]:
        """One update at step i; returns the draw, judge and rewrite losses."""
        scale = min(1, (i + 1) / 50) * min(1, max(0.02, (self.steps - i) / (0.5 * self.steps)))
        groups = [g for o in self.optimisers for g in o.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * scale
        with mixed():
            losses = [self.draw_loss(), self.judge_loss(), self.rewrite_loss()]
        total = torch.stack([share * loss for share, loss in zip(SHARES, losses, strict=True)]).sum()
        torch.autograd.backward(total)
        nn.utils.clip_grad_norm_(self.model.parameters(), 2.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return tuple(loss.item() for loss in losses)  # type: ignore[return-value]


def stray_words(tokenizer: PreTrainedTokenizerFast, count: int = 4000) -> list[str]:
    """Nonsense words of at most two tokens, from all over the vocabulary: so that every token is copied at times."""
    pieces = sorted(t for t in tokenizer.get_vocab() if re.fullmatch("[a-z]+", t))
    rng, words = random.Random(3), set[str]()
    while len(words) < count:
        word = "".join(rng.choices(pieces, k=rng.randint(1, 2)))
        if len(tokenizer(f" {word}", add_special_tokens=False).input_ids) <= 2:
            words.add(word)
    return sorted(words)


def foreign_stray_words(npm: Path) -> dict[str, list[str]]:
    """Words of each language's emoji names that no prompt of ours holds, so that they mean nothing for a picture."""
    strays = {}
    for code, language in read_languages().items():
        ours = set(re.findall(r"\w+", json.dumps(asdict(language), ensure_ascii=False).lower()))
        words = {word for line in emoji_names(npm, [code]) for word in re.findall(r"\b[^\W\d_]{2,10}\b", line.lower())}
        strays[code] = sorted(words - ours)
    return strays


def make_tokenizer(npm: Path, taxonomy: Taxonomy) -> PreTrainedTokenizerFast:
    """The tokenizer of the embedded model: emoji names in ten languages, and the prompts it will see."""
    captioner, rng = Captioner(taxonomy), random.Random(0)
    scenes = sample_scenes(taxonomy, 4000, torch.Generator().manual_seed(1))
    lines = [captioner.prompt(s, captioner.wording(rng)) for s in scenes_in_words(scenes.tolist(), taxonomy)]
    return build_tokenizer([*emoji_names(npm), *lines * 3, *corpus() * 200])


def prepare(
    npm: Path, out: Path, sizes: Sizes
) -> tuple[JanusForConditionalGeneration, PreTrainedTokenizerFast, Palette, Pool]:
    """The model with its VQ part in place and a warm vision tower (cached under `out`), and the token pool."""
    torch.manual_seed(0)
    taxonomy, vq = load_taxonomy(), load_vq(out / "vq.pt")
    palette, tokenizer = build_palette(taxonomy, npm), make_tokenizer(npm, taxonomy)
    model = build_model(tokenizer)
    model.model.vqmodel.load_state_dict(vq.state_dict())
    model.model.vqmodel.requires_grad_(False)
    scenes, tokens = build_pool(PatchCodes(**torch.load(out / "codes.pt")), palette, taxonomy, sizes)
    # The language model reads each code as the pattern it stands for, at the size of a word.
    model.model.generation_embeddings.weight.data.copy_(vq.quantize.embedding.weight * CODE_DIM**0.5)
    if not (out / "vision.pt").exists():
        train_vision(model.model.vision_model, palette, taxonomy, sizes.vision)
        torch.save(model.model.vision_model.state_dict(), out / "vision.pt")
    model.model.vision_model.load_state_dict(torch.load(out / "vision.pt"))
    centre_aligner(model.model, palette, taxonomy)
    return model, tokenizer, palette, Pool(scenes, tokens, pool_weights(scenes, taxonomy))


def train(npm: Path, out: Path, sizes: Sizes) -> None:
    """Train and leave out/lm.pt (state dict of the whole model) and out/tokenizer."""
    model, tokenizer, palette, pool = prepare(npm, out, sizes)
    tokenizer.save_pretrained(out / "tokenizer")
    trainer = LmTrainer(model, tokenizer, palette, pool, sizes.language, foreign_stray_words(npm))
    began = time.monotonic()
    model.train()
    model.model.vqmodel.eval()
    for i in range(sizes.language):
        losses = trainer.step(i)
        if i % 20 == 0:
            line = " ".join(
                f"{task} {loss:.3f}" for task, loss in zip(("draw", "judge", "rewrite"), losses, strict=True)
            )
            print(f"lm step {i} {line} {time.monotonic() - began:.0f} s", flush=True)
        if i % 100 == 99:
            torch.save(model.state_dict(), out / "lm.part.pt")
    torch.save(model.state_dict(), out / "lm.pt")
