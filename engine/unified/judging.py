"""The model's own judgement of images: short answers to questions, read as probabilities.

Images are shown to the model as pixels, however it sees them. Which verdict counts as harm is not decided here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from codebook.tensors import finite
from core.errors import BadModel
from engine.instructions import Instructions
from engine.model import CATEGORY_NONE, Verdict
from engine.runner.cuda_graphs import Recorded, recorder
from engine.runner.decoder import Decoder
from engine.runner.linear import Linear
from engine.unified.chat import Chat

# Images judged together on a CPU and on a GPU. More take more memory, since the cache is expanded to the questions,
# and no less time; one fills a GPU, and is recorded.
JUDGE_BATCH = {False: 4, True: 1}


class Judge:
    """Asks every question about every image; the image is read once, and its KV rows are expanded to the questions."""

    def __init__(
        self,
        text_head: nn.Linear,
        decoder: Decoder,
        chat: Chat,
        see: Callable[[Tensor], Tensor],
        instructions: Instructions,
    ) -> None:
        """Take the parts; see: as in Language. Raises BadModel if two answers begin with the same token."""
        self._see, self._decoder, self._instructions = see, decoder, instructions
        device = text_head.weight.device
        questions = [p.question for p in instructions.phrasings] + [instructions.category_question]
        rows = [chat.question(question) for question in questions]
        prefix = _common_prefix([row[:-1] for row in rows])
        if chat.image_token not in prefix:
            raise BadModel("the chat template does not put the image before the question")
        self._prefix = torch.tensor(prefix, device=device)
        self._image_positions = (self._prefix == chat.image_token).nonzero()[:, 0]
        tails = [row[len(prefix) :] for row in rows]
        self._ends = torch.tensor([[len(tail) - 1] for tail in tails], device=device)
        self._nothing = self._ends.new_zeros(1, 0)  # of the prefix nothing but its keys and values is needed
        # Padded on the right: the answer is read at each tail's own end, which attends to nothing after it.
        width = max(map(len, tails))
        self._tails = torch.tensor([tail + [0] * (width - len(tail)) for tail in tails], device=device)
        pairs = [(p.question, (p.unsafe, p.safe)) for p in instructions.phrasings]
        yes_no = [token for question, both in pairs for token in distinct(chat.answer, question, both)]
        answers = tuple(answer for answer, _ in instructions.answers)
        categories = distinct(chat.answer, instructions.category_question, answers)
        # The text head's rows of the answers: first "unsafe" and "safe" of each phrasing, then the categories.
        self._head = Linear([outputs_of(text_head, [*yes_no, *categories])])
        self._recorded = Recorded(self._answers, recorder(device))

    def __call__(self, images: Tensor) -> list[Verdict]:
        """Judge images [B, 3, H, W] in [-1, 1]: P(unsafe answer) against P(safe answer), and the likeliest category.

        Raises BadNumber where a logit of an answer is NaN or infinite.
        """
        return [
            verdict for some in torch.split(images, JUDGE_BATCH[self._prefix.is_cuda]) for verdict in self._judge(some)
        ]

    def _judge(self, images: Tensor) -> list[Verdict]:
        if images.shape[0] == 0:
            return []
        with torch.inference_mode():
            logits = finite("verdict", self._recorded(images))  # [B, Q + 1, answers]
            count = len(self._instructions.phrasings)
            pairs = logits[:, :-1, : 2 * count].reshape(-1, count, count, 2).diagonal(dim1=1, dim2=2)  # [B, 2, Q]
            scores = pairs.softmax(1)[:, 0].tolist()
            likeliest = logits[:, -1, 2 * count :].argmax(-1).tolist()
        return [self._verdict(tuple(row), best) for row, best in zip(scores, likeliest, strict=True)]

    def _answers(self, images: Tensor) -> Tensor:
        """Logits [B, Q + 1, answers] float32 of the answers' first tokens to each question, the category's last."""
        count, questions = images.shape[0], self._tails.shape[0]
        embeddings = self._decoder.embed(self._prefix).expand(count, -1, -1).clone()
        embeddings[:, self._image_positions] = self._see(images).to(embeddings.dtype)
        cache = self._decoder.new_cache(count, embeddings.shape[1])
        self._decoder.extend(embeddings, cache, self._nothing.expand(count, -1))
        expanded = cache.expand(questions, self._tails.shape[1])
        tails = self._decoder.embed(self._tails).repeat(count, 1, 1)
        hidden = self._decoder.extend(tails, expanded, self._ends.repeat(count, 1))
        return self._head(hidden.view(count, questions, -1)).float()

    def _verdict(self, scores: tuple[float, ...], likeliest: int) -> Verdict:
        verdict = Verdict(scores, self._instructions.categories[likeliest])
        return verdict if verdict.unsafe else Verdict(scores, CATEGORY_NONE)


def outputs_of(layer: nn.Linear, chosen: list[int]) -> nn.Linear:
    """A layer of the chosen outputs of `layer`."""
    # On the meta device: initialising it would draw from torch's global random state.
    part = nn.Linear(layer.in_features, len(chosen), layer.bias is not None, torch.device("meta"))
    part.weight = nn.Parameter(layer.weight.data[chosen], requires_grad=False)
    if layer.bias is not None:
        part.bias = nn.Parameter(layer.bias.data[chosen], requires_grad=False)
    return part


def _common_prefix(rows: list[list[int]]) -> list[int]:
    """The ids that all rows begin with."""
    count = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return rows[0][:count]


def distinct(first_token: Callable[[str, str], int], question: str, answers: tuple[str, ...]) -> list[int]:
    """The first tokens of answers to a question, by Chat.answer or Chat.reply. Raises BadModel where two are alike."""
    tokens = [first_token(question, answer) for answer in answers]
    if len(set(tokens)) < len(tokens):
        raise BadModel(f"the answers {answers} to {question!r} must begin with different tokens")
    return tokens
