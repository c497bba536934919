"""VILA-U by the layers of its published code, over the tensors of its files: a reference, not served.

Its Llama is transformers' own; a cell is read anew for each of its codes, as in RQTransformer.generate. Knows tensors
by their published names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from engine.families.checkpoints import read_tensors
from engine.families.taming import TamingDecoder
from engine.families.vila_u.tower import HEAD, VQ, Tower
from engine.unified.chat import Chat
from engine.unified.published import Greedy, Published


class _Layers:
    """The depth transformer and the projector. Tensors by their names; heads: of the depth transformer's attention."""

    def __init__(self, head: dict[str, Tensor], projector: dict[str, Tensor], table: Tensor, heads: int) -> None:
        self._head, self._projector, self._table, self._heads = head, projector, table, heads
        self._blocks = len({name.split(".")[2] for name in head if name.startswith("head_transformer.blocks.")})

    def logits(self, hidden: Tensor, drawn: list[int]) -> Tensor:
        """Logits [K] float32 of the code after those drawn in a cell, whose hidden state [H] is given."""
        x = self._linear("in_mlp_2", hidden)[None]
        if drawn:
            x = torch.cat([x, self._linear("in_mlp_1", self._table[drawn].cumsum(0).to(x))])
        x = x + self._head["pos_emb_d"][0, : len(x)]
        for number in range(self._blocks):
            x = self._block(f"head_transformer.blocks.{number}", x)
        return self._linear("classifier_mlp.linear", self._normalise("classifier_mlp.layer_norm", x)[-1]).float()

    def read(self, drawn: list[int]) -> Tensor:
        """The embedding [1, 1, H] of a cell of these codes, as the Llama reads it."""
        x, places = self._table[drawn].sum(0).to(self._projector["0.weight"]), sorted(self._places(), key=int)
        for number, place in enumerate(places):
            x = F.linear(x if not number else F.gelu(x), *self._pair(self._projector, place))
        return x[None, None]

    def _places(self) -> set[str]:
        return {name.partition(".")[0] for name in self._projector}

    def _block(self, name: str, x: Tensor) -> Tensor:
        normal = self._normalise(f"{name}.ln1", x)
        parts = (self._linear(f"{name}.attn.{part}", normal) for part in ("query", "key", "value"))
        query, key, value = (part.view(len(x), self._heads, -1).transpose(0, 1) for part in parts)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self._linear(f"{name}.attn.proj", attended.transpose(0, 1).flatten(1))
        inner = F.gelu(self._linear(f"{name}.mlp.0", self._normalise(f"{name}.ln2", x)))
        return x + self._linear(f"{name}.mlp.2", inner)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, *self._pair(self._head, name))

    def _normalise(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *self._pair(self._head, name))

    @staticmethod
    def _pair(tensors: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
        return tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def published_vila_u(llama: LlamaForCausalLM, tower: Tower, files: Path, projector: Path, chat: Chat) -> Published:
    """Make the reference of a Llama and of the folders of its tower and its projector. Raises BadModel.

    tower: the same, loaded, for its sizes.
    """
    llama.train(False)
    weight, depth = llama.lm_head.weight, tower.vq.depth
    # All depths share one table, whose last row is padding.
    table = read_tensors(files, [f"{VQ}quantizer.codebooks."])["0.weight"][:-1].float().to(weight.device)
    head, layers, pixels, before = (
        {name: tensor.to(weight) for name, tensor in read_tensors(folder, [prefix]).items()}
        for folder, prefix in (
            *((files, HEAD), (projector, "layers.")),
            *((files, f"{VQ}decoder."), (files, f"{VQ}post_quant_conv.")),
        )
    )
    cells = _Layers(head, layers, table, tower.heads)

    def greedy(prompt: str, guidance: float, count: int) -> Greedy:
        with torch.no_grad():
            return _greedy(llama, cells, chat, prompt, guidance, -(-count // depth), depth).first(count)

    def decode(tokens: Tensor) -> Tensor:
        with torch.no_grad():
            sums = table[tokens.to(table.device)].view(-1, depth, table.shape[1]).sum(1)
            grid = sums.view(1, tower.side, tower.side, -1).permute(0, 3, 1, 2).contiguous()
            if tower.vq.latent is not None:
                grid = F.interpolate(grid, tower.vq.latent, mode="bilinear")
            latent = F.conv2d(grid.to(weight), before["weight"], before["bias"])
            return TamingDecoder(pixels).decode(latent).float().clamp(-1, 1)

    source = f"the layers of VILA-U's published code, and transformers {transformers.__version__}, LlamaForCausalLM"
    return Published(source, tower.side**2 * depth, table.cpu(), greedy, decode)


def _greedy(
    llama: LlamaForCausalLM, cells: _Layers, chat: Chat, prompt: str, guidance: float, count: int, depth: int
) -> Greedy:
    """The likeliest codes of `count` cells."""
    ids, device = chat.tokenize(prompt), llama.lm_head.weight.device
    rows: list[Any] = [[row, DynamicCache()] for row in (ids, chat.unconditional(ids))]
    inputs = [llama.model.embed_tokens(torch.tensor([row], device=device)) for row, _ in rows]
    tokens: list[int] = []
    logits: list[Tensor] = []
    for _ in range(count):
        hidden = [
            llama.model(inputs_embeds=embeds, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
            for embeds, (_, cache) in zip(inputs, rows, strict=True)
        ]
        drawn: list[int] = []
        for _ in range(depth):
            conditional, other = (cells.logits(state, drawn) for state in hidden)
            logits.append(conditional.cpu())
            drawn.append(int((other + guidance * (conditional - other)).argmax()))
        tokens += drawn
        inputs = [cells.read(drawn)] * 2
    return Greedy(torch.tensor(tokens), torch.stack(logits))
