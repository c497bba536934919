"""Attention and rotary embedding in torch's operators, batch-invariant on a CPU. Knows tensors; knows no cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, the halves convention: heads [R, T, heads, d], cos and sin [R, T, 1, d].

    sin: as `signed` makes it.
    """
    return heads * cos + heads.roll(heads.shape[-1] // 2, -1).mul_(sin)


def signed(sin: Tensor) -> Tensor:
    """Return sin [.., d] with its first half negated, so that a rotation is two products and a sum."""
    first, second = sin.chunk(2, -1)
    return torch.cat([-first, second], -1)


def attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attend: query [R, T, heads, d], keys and values [R, key heads, S, d], mask [R, 1, T, S] -> [R, T, heads * d]."""
    heads, groups = query.shape[2], query.shape[2] // keys.shape[1]
    query = query.transpose(1, 2)
    if query.is_cuda:
        output = F.scaled_dot_product_attention(query, keys, values, mask, enable_gqa=groups > 1)
    else:
        # Written out, and in float32: the fused CPU kernel is not batch-invariant, and products in bfloat16 change with
        # the number of positions.
        if groups > 1:
            keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        masks = mask.float().expand(-1, heads, -1, -1).flatten(0, 1)
        scale = query.shape[-1] ** -0.5
        scores = torch.baddbmm(masks, query.float().flatten(0, 1), keys.float().flatten(0, 1).mT, alpha=scale)
        output = (scores.softmax(-1) @ values.float().flatten(0, 1)).view(query.shape).to(query.dtype)
    return output.transpose(1, 2).flatten(2)


def attend_apart(query: Tensor, keys: Tensor, values: Tensor, masks: Tensor) -> Tensor:
    """As `attend` on a CPU, a query at a time: products of several round differently. masks: [T, R * heads, 1, S]."""
    groups = query.shape[2] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    keys, values = keys.float().flatten(0, 1).mT, values.float().flatten(0, 1)
    queries = query.float().transpose(0, 1).flatten(1, 2)[:, :, None]  # [T, R * heads, 1, d]
    scores, scale = masks.clone(), query.shape[-1] ** -0.5
    for part, row in zip(queries.unbind(), scores.unbind(), strict=True):
        row.baddbmm_(part, keys, alpha=scale)
    output = torch.empty_like(queries)
    for weights, row in zip(scores.softmax(-1).unbind(), output.unbind(), strict=True):
        torch.bmm(weights, values, out=row)
    return output.view(query.transpose(0, 1).shape).transpose(0, 1).to(query.dtype).flatten(2)
