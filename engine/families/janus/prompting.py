"""Prompt formatting: texts to token ids through the chat template of a model's own processor.

Strings in, lists of ids out; no tensors. Any thread may call: a lock guards the tokenizer, which is not thread-safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from transformers import JanusProcessor

from core.errors import BadInput, BadModel


class JanusChat:
    """The format of one processor's chat template. See Chat for its methods."""

    def __init__(self, processor: JanusProcessor, limit: int) -> None:
        """Wrap a processor; `limit` is the longest templated prompt, in tokens."""
        self._processor, self._tokenizer, self._limit = processor, processor.tokenizer, limit
        self._lock = Lock()
        # Only tokens with angle brackets: some vocabularies also list plain letters as added tokens.
        self._control_tokens = [t for t in self._tokenizer.get_added_vocab() if t.startswith("<") and t.endswith(">")]
        boi = self._tokenizer.convert_tokens_to_ids(processor.image_start_token)
        self._begin_tokens = {boi, self._tokenizer.bos_token_id}
        self._pad: int = self._tokenizer.pad_token_id
        self.image_token: int = self._tokenizer.convert_tokens_to_ids(processor.image_token)
        self.end: int = self._tokenizer.eos_token_id
        images = processor.image_processor
        self.image_statistics = (list(images.image_mean), list(images.image_std))  # of pixels in [0, 1]

    def tokenize(self, prompt: str) -> list[int]:
        """Ids that ask for an image; the next token is the first of the image. An empty prompt is unconditional.

        Raises BadInput naming `prompt` if it is too long or holds one of the model's control tokens.
        """
        self.refuse_marks("prompt", prompt)
        ids = self._user(prompt, after=self._processor.image_start_token)
        if len(ids) > self._limit:
            allowed = f"at most {self._limit} tokens, chat format included; this is {len(ids)}"
            raise BadInput("prompt", prompt if len(prompt) < 80 else prompt[:77] + "...", allowed)
        return ids if prompt else self.unconditional(ids)

    def unconditional(self, ids: Sequence[int]) -> list[int]:
        """The unconditional branch of `ids`: all but the begin tokens is padding, attended to as in training."""
        return [i if i in self._begin_tokens else self._pad for i in ids]

    def refuse_marks(self, field: str, text: str) -> None:
        """Raise BadInput naming `field` if `text` holds one of the model's control tokens."""
        for token in self._control_tokens:
            if token in text:
                raise BadInput(field, text, f"text without the model's control token {token}")

    def asking(self, question: str, text: str) -> list[int]:
        """Ids that ask about, or for, a `text` that follows the question; the next token is the answer's first.

        Raises as `tokenize` for the text.
        """
        self.tokenize(text)
        return self._user(question + text)

    def plain(self, prompt: str) -> list[int]:
        """Ids of the prompt's own text, as the template writes it: some change white space or case."""
        frame, whole = self._render([_user("")], ask=True), self._render([_user(prompt)], ask=True)
        start = next((i for i, (one, other) in enumerate(zip(frame, whole, strict=False)) if one != other), len(frame))
        text = whole[start : len(whole) - len(frame) + start] if whole.endswith(frame[start:]) else prompt
        with self._lock:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def question(self, question: str) -> list[int]:
        """Ids that show an image (as placeholders) and ask about it; the next token is the answer's first."""
        return self._encode(self._render(_about(question), ask=True))

    def answer(self, question: str, answer: str) -> int:
        """The first token of `answer` after `question`. Raises BadModel if the template does not separate them."""
        return self._first_token(_about(question), answer)

    def reply(self, question: str, answer: str) -> int:
        """The first token of `answer` after a question without an image. Raises BadModel as `answer`."""
        return self._first_token([_user(question)], answer)

    def text(self, ids: list[int]) -> str:
        """The text of `ids`, without control tokens and outer white space."""
        with self._lock:
            decoded: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return decoded.strip()

    def _first_token(self, messages: list[dict[str, Any]], answer: str) -> int:
        prefix = self._encode(self._render(messages, ask=True))
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        ids = self._encode(self._render([*messages, reply], ask=False))
        if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
            raise BadModel(f"the chat template does not put the answer {answer!r} right after its question")
        return ids[len(prefix)]

    def _user(self, text: str, after: str = "") -> list[int]:
        return self._encode(self._render([_user(text)], ask=True) + after)

    def _render(self, messages: list[dict[str, Any]], ask: bool) -> str:
        text: str = self._processor.apply_chat_template(messages, add_generation_prompt=ask, tokenize=False)
        return text

    def _encode(self, text: str) -> list[int]:
        p = self._processor
        block = p.image_start_token + p.image_token * p.num_image_tokens + p.image_end_token
        with self._lock:
            ids: list[int] = self._tokenizer(text.replace(p.image_token, block)).input_ids
        return ids


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text}]}


def _about(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
