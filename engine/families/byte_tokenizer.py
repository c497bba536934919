"""Byte-level tokenizer of random models: any text has tokens, and control tokens are whole.

Knows tokenizers. Knows nothing of families.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def byte_tokenizer(special: Sequence[str], pad: str) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer, without merges, with these control tokens, `pad` among them."""
    vocabulary = {byte: number for number, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    byte_level = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    byte_level.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_level, pad_token=pad, clean_up_tokenization_spaces=False
    )
