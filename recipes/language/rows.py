"""Rows of training: texts as padded ids, prompts followed by their images, and losses of what follows a mark.

Rows are padded on the right: under causal attention the padding changes nothing, and rotary positions are relative,
so the learned function is the one that left-padded generation computes. Knows nothing of what the rows say.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import JanusForConditionalGeneration, PreTrainedTokenizerFast

from recipes.pictures.geometry import ASSISTANT, BOI, EOS, USER, opening, token_id
from recipes.pictures.questions import REWRITE_INSTRUCTION


def tokenise(tokenizer: PreTrainedTokenizerFast, texts: list[str], length: int) -> Tensor:
    """Texts -> ids [B, length], padded on the right."""
    rows = tokenizer(texts, add_special_tokens=False).input_ids
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    for row, target in zip(rows, ids, strict=True):
        target[: len(row)] = torch.tensor(row[:length])
    return ids


def drawing_text(prompt: str) -> str:
    """What stands before the tokens of an image that `prompt` asks for."""
    return f"{USER}{opening(prompt)}{ASSISTANT}{BOI}"


def rewriting_text(before: str, after: str) -> str:
    """A prompt, and its rewrite as the answer: it begins with a space as prompts do, so that tokens are copied."""
    return f"{USER}{opening(REWRITE_INSTRUCTION + before)}{ASSISTANT}{opening(after)}{EOS}"


def last_states(model: JanusForConditionalGeneration, embeddings: Tensor) -> Tensor:
    """Embeddings [B, T, H] -> last hidden states, causal, no padding mask."""
    read: Tensor = model.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
    return read


def drawing_states(model: JanusForConditionalGeneration, text: Tensor, length: Tensor, tokens: Tensor) -> Tensor:
    """Hidden states [B, n, H] from which each of the image tokens [B, n] is predicted.

    text: embeddings of prompts [B, T, H], of which the first length[b] count.
    """
    inner, width, count = model.model, text.shape[1], tokens.shape[1]
    codes: Tensor = inner.generation_aligner(inner.generation_embeddings(tokens))
    # Row b is its length[b] prompt embeddings, then its codes: gathered from the two laid end to end.
    span = torch.arange(width + count - 1)[None] - length[:, None]
    source = torch.where(span < 0, span + length[:, None], width + span.clamp(max=count - 1))
    both = torch.cat([text, codes.to(text.dtype)], 1)
    hidden = last_states(model, both.gather(1, source[:, :, None].expand(-1, -1, both.shape[2])))
    places = (length[:, None] - 1 + torch.arange(count))[:, :, None].expand(-1, -1, hidden.shape[2])
    return hidden.gather(1, places)


def answer_loss(
    model: JanusForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    embeddings: Tensor,
    ids: Tensor,
    head: Tensor,
) -> Tensor:
    """Next-token cross-entropy over what follows the assistant mark, the end token included.

    embeddings [B, T, H] are those of ids [B, T]; head [V, H] gives the logits.
    """
    hidden = last_states(model, embeddings)[:, :-1]
    answered = torch.eq(ids, token_id(tokenizer, ASSISTANT)).cumsum(1)[:, :-1] > 0
    mask = (answered & (ids[:, 1:] != tokenizer.pad_token_id)).flatten()
    logits = F.linear(hidden.flatten(0, 1)[mask], head)
    return F.cross_entropy(logits.float(), ids[:, 1:].flatten()[mask])
