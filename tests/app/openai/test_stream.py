"""OpenAI's events of an image whose previews are partly skipped, from scripted news."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import cast

import pytest

from app.drawing import News, Preview
from app.openai.answers import Answers
from app.openai.schemas import PartialImageEvent
from app.openai.stream import events

pytestmark = pytest.mark.anyio


class Numbers:
    """Answers that tell partial images apart by their number alone."""

    def partial(self, index: int, png: bytes) -> PartialImageEvent:
        return PartialImageEvent(
            partial_image_index=index, b64_json=png.decode(), created_at=0, output_format="png", size="8x8"
        )


@pytest.mark.parametrize(
    ("most", "done", "sent"),
    [
        (0, (4, 8, 12), ()),
        (1, (4, 8, 12), (8,)),
        (2, (4, 8, 12), (4, 12)),
        (2, (8, 12), (8, 12)),
        (1, (4, 12), (12,)),
        (3, (12,), (12,)),
        (2, (4, 8), (4,)),
    ],
)
async def test_a_later_preview_takes_the_place_of_a_skipped_one(
    most: int, done: tuple[int, ...], sent: tuple[int, ...]
) -> None:
    async def news() -> AsyncGenerator[News]:
        for tokens in done:
            yield Preview(0, tokens, 16, str(tokens).encode())

    text = b"".join([event async for event in events(news(), cast(Answers, Numbers()), most, [])]).decode()
    assert text.count("event:") == len(sent)
    for number, tokens in enumerate(sent):
        assert f'"partial_image_index": {number}, "b64_json": "{tokens}"' in text
