"""Rows of a language model that stand for image codes: its image head and what it reads, where codes are words.

Knows a vocabulary's ids. Knows nothing of any one family's names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from core.errors import BadModel
from engine.runner.image_lm import ImageHead

NEVER = -1e4  # logit of a word that may not be written; finite, since infinity would look like a fault


def named_codes(ids: Mapping[str, int] | None, names: Iterable[str], model_id: str) -> list[int]:
    """Return the words of the codes by the name of each: their order is the checkpoint's own.

    ids: the vocabulary_map of its configuration. Raises BadModel for one that lacks a name.
    """
    try:
        return [(ids or {})[name] for name in names]
    except KeyError as missing:
        raise BadModel(f"{model_id}: its vocabulary_map lacks {missing}") from None


def image_head(text_head: nn.Linear, embed: Any, codes: Sequence[int], given: Sequence[int] = ()) -> ImageHead:  # noqa: ANN401
    """Return the image head of a model whose code k is the word `codes[k]`; given: the words of its script's tokens.

    embed: ids -> what the language model reads for them.
    """
    rows = torch.tensor(list(codes), device=text_head.weight.device)
    # On the meta device: initialising it would draw from torch's global random state.
    table = nn.Linear(text_head.in_features, len(rows), text_head.bias is not None, torch.device("meta"))
    table.weight = nn.Parameter(text_head.weight.data[rows], requires_grad=False)
    if text_head.bias is not None:
        table.bias = nn.Parameter(text_head.bias.data[rows], requires_grad=False)
    with torch.no_grad():
        embeddings = embed(torch.tensor([*codes, *given], device=text_head.weight.device))
    return ImageHead(table, embeddings)


def text_head(head: nn.Linear, ids: Sequence[int]) -> nn.Linear:
    """Return a language model's head without these words, such as codes: they are never the likeliest, nor sampled."""
    part = nn.Linear(head.in_features, head.out_features, True, torch.device("meta"))
    bias = torch.zeros_like(head.weight[:, 0]) if head.bias is None else head.bias.detach().clone()
    bias[torch.tensor(list(ids), device=bias.device)] = NEVER
    part.weight, part.bias = head.weight, nn.Parameter(bias, requires_grad=False)
    return part


def nearest(features: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """The nearest rows [N] int64 of a table [K, D] to features [N, D]; in float32, since bfloat16 finds others."""
    features, table = features.float(), table.float()
    distances = (table**2).sum(1) - 2 * features @ table.T
    return distances.argmin(1)
