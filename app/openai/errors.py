"""OpenAI's error objects in place of problem documents, for every answer under /v1.

Knows the shapes of both. Knows nothing of how an error came about.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.http.problems import MEDIA_TYPE, REFUSED

PREFIX = "/v1/"
UNPROCESSABLE = HTTPStatus.UNPROCESSABLE_ENTITY
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {"unauthorized": "invalid_api_key", "busy": "rate_limit_exceeded"}  # by slug; else the slug itself
_FAULTS = {  # by pydantic's name of the fault; else invalid_value
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "string_too_long": "string_above_max_length",
    "string_too_short": "string_below_min_length",
    "greater_than_equal": "integer_below_min_value",
    "less_than_equal": "integer_above_max_value",
    REFUSED: REFUSED,
}


class OpenAIErrors:
    """Middleware: under PREFIX every problem document becomes an error object, and 422 becomes 400."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and translate its answer if that is a problem document."""
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        head: Message | None = None
        body = b""

        async def translated(message: Message) -> None:
            nonlocal head, body
            if message["type"] == "http.response.start" and _is_problem(message):
                head = message
            elif head is None:
                await send(message)
            else:
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    await _send_error(head, body, send)

        await self._app(scope, receive, translated)


def error_object(problem: dict[str, Any]) -> dict[str, Any]:
    """Return the error object of a problem document: message, type, param and code."""
    status = problem["status"]
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    slug = problem["type"].rpartition(":")[2]
    code = _CODES.get(slug, slug.replace("-", "_"))
    if status == UNPROCESSABLE:
        code = _fault(problem["code"])
    return {"error": {"message": problem["detail"], "type": kind, "param": problem.get("field"), "code": code}}


def _fault(name: str) -> str:
    return _FAULTS.get(name) or ("invalid_type" if name.endswith("_type") else "invalid_value")


def _is_problem(message: Message) -> bool:
    return (b"content-type", MEDIA_TYPE.encode()) in [(name.lower(), value) for name, value in message["headers"]]


async def _send_error(head: Message, body: bytes, send: Send) -> None:
    content = json.dumps(error_object(json.loads(body))).encode()
    replaced = {b"content-type": b"application/json", b"content-length": str(len(content)).encode()}
    headers = [(name, replaced.get(name.lower(), value)) for name, value in head["headers"]]
    status = HTTPStatus.BAD_REQUEST if head["status"] == UNPROCESSABLE else head["status"]
    await send({**head, "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": content})
