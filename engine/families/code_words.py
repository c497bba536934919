"""Greedy images by transformers' own `generate`, for models whose image codes are words of their language model.

Knows `generate` and a chat format. Knows nothing of any one family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers

from engine.families.format_chat import Format, FormatChat
from engine.runner.script import Script
from engine.unified.chat import Chat
from engine.unified.published import Greedy, Published
from engine.unified.served_model import LONGEST_PROMPT


def published_words(
    model: Any,  # noqa: ANN401  (a class of transformers with `generate`)
    tokenizer: Any,  # noqa: ANN401
    format: Format,
    codes: Sequence[int],
    side: int,
    table: torch.Tensor,
    decode: Callable[[torch.Tensor], torch.Tensor] | None,
) -> Published:
    """Make the reference of a model whose code k is the word `codes[k]`; side: codes a side; table, decode: its pixels.

    Raises BadModel.
    """
    script = Script.plain(side * side)
    words = CodeWords(model, FormatChat(tokenizer, format, script.tokens, LONGEST_PROMPT), codes, script)
    source = f"transformers {transformers.__version__}, {type(model).__name__}"
    return Published(source, script.tokens, table.detach().float().cpu(), words.greedy, decode)


class CodeWords:
    """Draws with a language model of transformers whose code k is the word `codes[k]`.

    script: of an image; given: the words of its given tokens.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401  (a class of transformers with `generate`)
        chat: Chat,
        codes: Sequence[int],
        script: Script,
        given: Sequence[int] = (),
    ) -> None:
        self._model, self._chat, self._script, self._given = model, chat, script, given
        self._codes = torch.tensor(list(codes))
        self._sorted = sorted(codes)

    def greedy(self, prompt: str, guidance: float, count: int) -> Greedy:
        """See Published."""
        ids = self._chat.tokenize(prompt)
        drawn = self._script.steps_of(count)

        def allowed(_: int, row: torch.Tensor) -> list[int]:
            given = self._script.given[len(row) - len(ids)]
            return self._sorted if given is None else [self._given[given]]

        device = self._model.device
        other = torch.tensor([self._chat.unconditional(ids)], device=device)
        with torch.no_grad():
            output = self._model.generate(
                input_ids=torch.tensor([ids], device=device),
                max_new_tokens=drawn[-1] + 1,
                do_sample=False,
                eos_token_id=None,
                prefix_allowed_tokens_fn=allowed,
                guidance_scale=guidance,
                negative_prompt_ids=other,
                negative_prompt_attention_mask=torch.ones_like(other),
                output_logits=True,
                return_dict_in_generate=True,
            )
        words = output.sequences[0, len(ids) :].cpu()[drawn]
        tokens = (words[:, None] == self._codes).int().argmax(1)
        logits = torch.stack([output.logits[step][0].float().cpu()[self._codes] for step in drawn])
        return Greedy(tokens, logits)
