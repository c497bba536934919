"""Depth transformer of VILA-U (RQ-Transformer, arXiv 2203.01941): the codes of a cell, each given those before it.

Its modules have the names of the checkpoint. Batch-invariant. Knows nothing of language models and of sampling.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.runner.image_lm import DepthStep
from engine.runner.linear import Linear


class Block(nn.Module):
    """The modules of one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({name: nn.Linear(width, width) for name in ("key", "query", "value", "proj")})
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class DepthModules(nn.Module):
    """The modules of a depth transformer of `layers` layers.

    code_dim: D, hidden: H, width: M, codes: K, depth: codes a cell.
    """

    def __init__(self, code_dim: int, hidden: int, width: int, codes: int, depth: int, layers: int) -> None:
        super().__init__()
        self.in_mlp_1, self.in_mlp_2 = nn.Linear(code_dim, width), nn.Linear(hidden, width)
        self.head_transformer = nn.ModuleDict({"blocks": nn.ModuleList(Block(width) for _ in range(layers))})
        self.pos_emb_d = nn.Parameter(0.02 * torch.randn(1, depth, width))
        self.classifier_mlp = nn.ModuleDict({"layer_norm": nn.LayerNorm(width), "linear": nn.Linear(width, codes)})


class _Layer:
    """One layer's weights for inference: query, key and value in one product."""

    def __init__(self, block: Block) -> None:
        self.attention_norm, self.mlp_norm = block.ln1, block.ln2
        self.qkv = Linear([_linear(block.attn, name) for name in ("query", "key", "value")])
        self.output = Linear([_linear(block.attn, "proj")])
        self.up, self.down = Linear([_linear(block.mlp, "0")]), Linear([_linear(block.mlp, "2")])


class DepthTransformer:
    """The head of a model that draws several codes a step; see engine.runner.image_lm.DepthHead."""

    def __init__(self, modules: DepthModules, heads: int, table: Tensor, projector: Sequence[nn.Linear]) -> None:
        """Take the parts. table: [K, D], the model's own; projector: its layers, between which there is a GELU."""
        blocks = modules.head_transformer["blocks"]
        assert isinstance(blocks, nn.ModuleList)
        self.layers = [_Layer(block) for block in blocks if isinstance(block, Block)]
        self.codes_in, self.hidden_in = Linear([modules.in_mlp_1]), Linear([modules.in_mlp_2])
        self.positions, self.heads, self.table = modules.pos_emb_d.detach()[0], heads, table.to(modules.pos_emb_d)
        self.norm = modules.classifier_mlp["layer_norm"]
        self._projector = [Linear([layer]) for layer in projector]

    def begin(self, hidden: Tensor) -> DepthStep:
        """See DepthHead."""
        return _Step(self, hidden)

    def read(self, tokens: Tensor) -> Tensor:
        """See DepthHead: the projected sum of the codes' rows."""
        return self.project(self.table[tokens].sum(-2))

    def project(self, codes: Tensor) -> Tensor:
        """Sums of codes [.., D] -> what the language model reads of them, [.., H]."""
        first, *rest = self._projector
        read = first(codes)
        for layer in rest:
            read = layer(F.gelu(read))
        return read


class _Step:
    """The codes of one cell in R rows; the keys and values of those drawn are cached."""

    def __init__(self, transformer: DepthTransformer, hidden: Tensor) -> None:
        self._transformer, self._hidden = transformer, hidden
        self._sum = hidden.new_zeros(hidden.shape[0], transformer.table.shape[1])  # of the rows of the codes drawn
        self._cached: list[list[Tensor]] = [[] for _ in transformer.layers]  # by layer and code [R, 2, heads, d]

    def __call__(self, drawn: Tensor | None) -> Tensor:
        """See DepthStep."""
        transformer, level = self._transformer, len(self._cached[0])
        if drawn is None:
            x = transformer.hidden_in(self._hidden)
        else:
            self._sum = self._sum + transformer.table[drawn]
            x = transformer.codes_in(self._sum)
        x = x + transformer.positions[level]
        for layer, cached in zip(transformer.layers, self._cached, strict=True):
            x = layer.output(self._attend(layer.qkv(layer.attention_norm(x)), cached), x)
            x = layer.down(F.gelu(layer.up(layer.mlp_norm(x))), x)
        features: Tensor = transformer.norm(x)
        return features

    def _attend(self, qkv: Tensor, cached: list[Tensor]) -> Tensor:
        """Attention [R, M] of a code to itself and those before it."""
        heads = qkv.view(qkv.shape[0], 3, self._transformer.heads, -1)
        query = heads[:, :1]
        cached.append(heads[:, 1:])
        keys, values = torch.stack(cached, 1).float().unbind(2)  # [R, codes, heads, d] each
        # Products and sums by hand: a batched product is not batch-invariant on a GPU.
        scores = (query.float() * keys).sum(-1, keepdim=True) * query.shape[-1] ** -0.5
        attended: Tensor = (scores.softmax(1) * values).sum(1)
        return attended.flatten(1).to(qkv)


def _linear(modules: nn.Module, name: str) -> nn.Linear:
    layer = modules.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer
