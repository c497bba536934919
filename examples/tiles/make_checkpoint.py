"""A tiny random checkpoint of tiles: 4 x 4 codes of K = 64, 32 x 32 pixels. It draws noise."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from engine.families.byte_tokenizer import byte_tokenizer

folder, side, codes, edge = Path(sys.argv[1]), 4, 64, 8
torch.manual_seed(0)
tokenizer = byte_tokenizer(["<pad>", "<s>", "</s>", "<draw>", "<image>", "<end>", "<answer>"], "<pad>")
config = LlamaConfig(
    vocab_size=len(tokenizer) + codes,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    initializer_range=0.15,
)
config.tiles = {"side": side}
LlamaForCausalLM(config).save_pretrained(folder)
tokenizer.save_pretrained(folder)
save_file({"tiles.table": torch.rand(codes, 3 * edge * edge) * 2 - 1}, folder / "tiles.safetensors")
