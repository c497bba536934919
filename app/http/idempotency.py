"""Idempotency-Key on POSTs: the same request sent again gets the first answer, and is not done twice.

Knows ASGI messages and kept answers. Knows nothing of any one route. The header is that of the IETF's draft
draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import sqlite3

from fastapi import HTTPException
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.access.keys import known_caller
from app.http import problems
from app.service import Service
from core.errors import BadInput, Conflict, SafeCBError, Unavailable
from records.answers import FIELD, Answer, AnswerLog

log = logging.getLogger(__name__)

HEADER = FIELD.lower().encode()
REPLAYED = (b"idempotent-replayed", b"true")
RETRY = {"Retry-After": "1"}
RENEW_S = 10.0
_KEY = re.compile(rb"[!-~]{1,255}")
_PARTS = (b"accept", b"content-type")  # headers that the answer depends on
_PASSING = (401, 403, 408, 409, 429)  # another attempt may end otherwise, as after a 5xx


class Idempotency:
    """Middleware: a POST with an Idempotency-Key is answered once; a stream or a temporary error frees the key."""

    def __init__(self, app: ASGIApp, answers: AnswerLog, service: Service) -> None:
        self._app, self._answers, self._service = app, answers, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it as before."""
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or scope["method"] != "POST" or HEADER not in headers:
            await self._app(scope, receive, send)
            return
        if (caller := known_caller(self._service, scope)) is None:
            await self._app(scope, receive, send)  # refused there
            return
        try:
            if not _KEY.fullmatch(headers[HEADER]):
                raise BadInput(FIELD, headers[HEADER].decode("latin-1"), "1 to 255 visible characters of ASCII")
            body = await _read(receive)
            if body is None:
                return
            key = _hash(scope, [caller], headers[HEADER])
            request = _hash(scope, [headers.get(name, b"").decode("latin-1") for name in _PARTS], body)
            answer = await run_in_threadpool(self._answers.begin, key, request)
        except Conflict as error:
            await problems.of(error, headers=RETRY)(scope, receive, send)
        except sqlite3.Error as error:
            log.warning("the answers cannot be read: %s", error)
            await problems.of(Unavailable("the answers by Idempotency-Key are busy"))(scope, receive, send)
        except SafeCBError as error:
            await problems.of(error)(scope, receive, send)
        except HTTPException as error:
            await problems.of_http(error)(scope, receive, send)
        else:
            if answer is None:
                await self._answered_once(key, body, (scope, receive, send))
            else:
                await _send(answer, send)

    async def _answered_once(self, key: str, body: bytes, call: tuple[Scope, Receive, Send]) -> None:
        """Pass a new request on, and keep its answer or free its key before its caller has it all."""
        scope, receive, send = call
        is_read = is_settled = False
        head: Message | None = None
        content = b""

        async def replayed() -> Message:
            nonlocal is_read
            if is_read:  # the next message is the disconnect
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def recorded(message: Message) -> None:
            nonlocal head, content, is_settled
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if message["type"] == "http.response.start" and _is_kept(message):
                head = message
            elif head is None:
                if is_last:  # whoever has all of it may use the key again
                    await run_in_threadpool(self._drop, key)
                    is_settled = True
                await send(message)
            else:
                content += message.get("body", b"")
                if is_last:
                    names = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head["headers"]]
                    is_settled = await self._keep(key, Answer(head["status"], names, content))
                    await send(head)
                    await send({"type": "http.response.body", "body": content})

        renewal = asyncio.create_task(self._renewed(key))
        try:
            await self._app(scope, replayed, recorded)
        finally:
            renewal.cancel()
            if not is_settled:
                await run_in_threadpool(self._drop, key)

    async def _renewed(self, key: str) -> None:
        while True:
            await asyncio.sleep(RENEW_S)
            await run_in_threadpool(self._answers.renew, key)

    async def _keep(self, key: str, answer: Answer) -> bool:
        try:
            await run_in_threadpool(self._answers.keep, key, answer)
        except (SafeCBError, sqlite3.Error) as error:
            log.warning("an answer is not kept under its %s: %s", FIELD, error)
            return False
        return True

    def _drop(self, key: str) -> None:
        try:
            self._answers.drop(key)
        except (SafeCBError, sqlite3.Error) as error:
            log.warning("an %s is not freed until the server starts again: %s", FIELD, error)


def _is_kept(head: Message) -> bool:
    streams = any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in head["headers"])
    return head["status"] < 500 and head["status"] not in _PASSING and not streams


def _hash(scope: Scope, more: list[str], content: bytes) -> str:
    parts = [scope["path"], scope["query_string"].decode("latin-1"), *more]
    return hashlib.sha256(json.dumps(parts).encode() + content).hexdigest()


async def _read(receive: Receive) -> bytes | None:
    """The whole body; None if the caller hangs up before."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


async def _send(answer: Answer, send: Send) -> None:
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status, "headers": [*headers, REPLAYED]})
    await send({"type": "http.response.body", "body": answer.body})
