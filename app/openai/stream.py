"""OpenAI's events of one image on its way: partial images, the finished one, or an error.

Knows the news of a drawing. Knows nothing of queues and status codes.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from app.drawing import News, Preview, Silence
from app.http import problems
from app.openai.answers import Answers
from app.openai.errors import error_object
from core.errors import SafeCBError
from engine.image_result import ImageResult

QUARTERS = {0: (), 1: (2,), 2: (1, 3), 3: (1, 2, 3)}  # of the image, from which each partial image is sent


async def events(
    parts: AsyncGenerator[News], answers: Answers, partial_images: int, finished: list[ImageResult]
) -> AsyncIterator[bytes]:
    """Up to `partial_images` partial images, then the finished one, which joins `finished`; or an `error`.

    A busy server skips a preview; the next one takes its place, and the image may be finished before the last.
    """
    sent, quarters = 0, QUARTERS[partial_images]
    async with aclosing(parts):  # a caller that hangs up ends the drawing
        try:
            async for news in parts:
                match news:
                    case Silence():
                        yield KEEPALIVE_COMMENT
                    case Preview(_, done, total, png) if sent < partial_images and 4 * done >= quarters[sent] * total:
                        yield _event(await run_in_threadpool(answers.partial, sent, png))
                        sent += 1
                    case ImageResult():
                        finished.append(news)
                        yield _event(await run_in_threadpool(answers.completed, news))
        except SafeCBError as error:
            problem = json.loads(bytes(problems.of(error).body))
            yield format_sse_event(event="error", data_str=json.dumps(error_object(problem)))


def _event(event: BaseModel) -> bytes:
    content = event.model_dump(exclude_none=True)
    return format_sse_event(event=content["type"], data_str=json.dumps(content, allow_nan=False))
