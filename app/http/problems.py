"""RFC 9457 problem documents: one table from the error tree to HTTP.

Knows status codes and safe representations of values. Knows nothing of any one route.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from reprlib import Repr
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from core.errors import (
    BadCodebook,
    BadInput,
    BadModel,
    BadNumber,
    Busy,
    Conflict,
    NoAccess,
    NoRoom,
    NoStorage,
    NotFound,
    Refused,
    SafeCBError,
    Unavailable,
    UnknownModel,
)

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
REFUSED = "content_policy_violation"  # code of a prompt that a version refuses: OpenAI's
NOT_ALLOWED = "not_allowed"  # code of a value that the service refuses; those of the schema are pydantic's

_TABLE: Mapping[type[SafeCBError], tuple[HTTPStatus, str]] = {
    BadInput: (HTTPStatus.UNPROCESSABLE_ENTITY, "bad-input"),
    Refused: (HTTPStatus.UNPROCESSABLE_ENTITY, "content-policy-violation"),
    UnknownModel: (HTTPStatus.NOT_FOUND, "model-not-found"),
    NotFound: (HTTPStatus.NOT_FOUND, "not-found"),
    Conflict: (HTTPStatus.CONFLICT, "conflict"),
    BadCodebook: (HTTPStatus.CONFLICT, "bad-codebook"),
    BadModel: (HTTPStatus.SERVICE_UNAVAILABLE, "bad-model"),
    BadNumber: (HTTPStatus.INTERNAL_SERVER_ERROR, "bad-number"),
    Busy: (HTTPStatus.TOO_MANY_REQUESTS, "busy"),
    NoRoom: (HTTPStatus.INSUFFICIENT_STORAGE, "no-room"),
    NoAccess: (HTTPStatus.SERVICE_UNAVAILABLE, "no-access"),
    Unavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"),
    SafeCBError: (HTTPStatus.INTERNAL_SERVER_ERROR, "internal"),
}
# In OpenAPI, of every operation: what any error is.
RESPONSES: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "An error: a problem document (RFC 9457)",
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
}
_TEXT = {"type": "string"}
SCHEMA: dict[str, Any] = {  # of a problem document
    "title": "Problem",
    "type": "object",
    "description": "A problem document; further members depend on its type.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {**_TEXT, "description": "urn:safecb:problem: and a short name."},
        "title": {**_TEXT, "description": "Phrase of the status."},
        "status": {"type": "integer", "description": "Status of the response."},
        "detail": {**_TEXT, "description": "What is wrong, for people."},
        "field": {**_TEXT, "description": "Field at fault, if one is."},
        "value": {**_TEXT, "description": "Its value, shortened."},
        "allowed": {**_TEXT, "description": "Values that are allowed."},
        "code": {**_TEXT, "description": "Short name of the fault."},
        "errors": {
            "type": "array",
            "description": "All faults of a request, each with field, value, allowed and code.",
            "items": {"type": "object", "additionalProperties": _TEXT},
        },
    },
}
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def install(app: FastAPI) -> None:
    """Install handlers that turn every error of `app` into a problem document, and describe it in OpenAPI."""
    app.add_exception_handler(SafeCBError, _on_own_error)
    app.add_exception_handler(RequestValidationError, _on_invalid_request)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_bug)
    document = app.openapi

    def with_problems() -> dict[str, Any]:
        described = document()
        described["components"]["schemas"]["Problem"] = SCHEMA
        return described

    app.openapi = with_problems  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def problem(
    status: HTTPStatus, slug: str, detail: str, headers: Mapping[str, str] | None = None, **more: object
) -> Response:
    """Return one problem document; `more` are its extension members, JSON.

    Its bytes are ASCII, so that it can quote the caller's input, lone surrogates included.
    """
    body = {"type": f"urn:safecb:problem:{slug}", "title": status.phrase, "status": status, "detail": detail, **more}
    return Response(json.dumps(body, allow_nan=False), status, headers, MEDIA_TYPE)


def of(error: SafeCBError, detail: str | None = None, headers: Mapping[str, str] | None = None) -> Response:
    """Return the problem document of an error of the tree; `detail` replaces its own text, `headers` are more."""
    status, slug = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    detail = detail or str(error)
    match error:
        case BadInput():
            return _bad_input([_complaint(error.field, error.value, error.allowed, NOT_ALLOWED)])
        case Refused():
            return problem(status, slug, detail, field="prompt", code=REFUSED, version=error.version)
        case UnknownModel():
            return problem(status, slug, detail, field="model")
        case BadCodebook():
            return problem(status, slug, detail, version=error.version, check=error.check)
        case Unavailable():
            return problem(status, slug, detail, {"Retry-After": str(error.retry_after)})
        case _:
            return problem(status, slug, detail, headers)


def of_http(error: HTTPException) -> Response:
    """Return the problem document of an error that a route or a middleware raised with its status."""
    status = HTTPStatus(error.status_code)
    if status == HTTPStatus.NO_CONTENT:
        return Response(status_code=status)
    slug = status.phrase.lower().replace(" ", "-")
    # FastAPI's only 400: a body that its JSON parser refuses, too deep or with numbers of thousands of digits.
    more = {"field": "body"} if status == HTTPStatus.BAD_REQUEST else {}
    return problem(status, slug, error.detail, error.headers, **more)


def of_bug() -> Response:
    """Return the problem document of an unexpected error: what it was is in the log alone."""
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "the server failed; its log says how")


async def _on_own_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, SafeCBError)
    if not isinstance(error, NoStorage):
        return of(error)
    log.warning("%s %s: %s", request.method, request.url.path, error.about(error.path))
    return of(error, error.about(request.app.state.service.settings.place(error.path)))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    wrong_type = not _is_json(request) and any(e["loc"] == ("body",) for e in error.errors())
    if wrong_type and request.headers.get("content-length") != "0":
        return problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not-json", "send a body of content-type application/json")
    if any(e["type"] == "json_invalid" for e in error.errors()):
        return problem(HTTPStatus.BAD_REQUEST, "not-json", "the body is not JSON", field="body")
    return _bad_input([_complaint(_path(e["loc"]), e.get("input"), _allowed(e), e["type"]) for e in error.errors()])


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and (methods := _methods(request)):
        error.headers = {"Allow": ", ".join(sorted(methods))}  # Starlette's has one route's alone
    return of_http(error)


async def _on_bug(request: Request, error: Exception) -> Response:
    return of_bug()


def _methods(request: Request) -> set[str]:
    """The methods of all documented routes of a path; HEAD stands beside GET."""
    paths: dict[str, dict[str, Any]] = request.app.openapi()["paths"]
    own = request.url.path
    matching = [own] if own in paths else [path for path in paths if compile_path(path)[0].match(own)]
    methods = {method.upper() for path in matching for method in paths[path]}
    return methods | ({"HEAD"} if "GET" in methods else set())


def _bad_input(complaints: Sequence[dict[str, str]]) -> Response:
    status, slug = _TABLE[BadInput]
    detail = "; ".join(f"{c['field']}: {c['value']} is not allowed; expected {c['allowed']}" for c in complaints[:5])
    return problem(status, slug, detail, None, **complaints[0], errors=complaints[:20])


def _complaint(field: str, value: object, allowed: str, code: str) -> dict[str, str]:
    return {"field": field, "value": _SHORT.repr(value), "allowed": allowed, "code": code}


def _allowed(error: Mapping[str, Any]) -> str:
    """Return the allowed values, in the words of the schema."""
    if error["type"] == "extra_forbidden":
        return "no field of this name"
    if error["type"] == "missing":
        return "a value"
    message: str = error["msg"]
    return message.removeprefix("Value error, ").removeprefix("Input should be ")


def _path(location: Sequence[str | int]) -> str:
    """Return the name of a field for the caller: ("body", "prompts", 3) is "prompts.3"."""
    return ".".join(str(part) for part in location[1:]) or "body"


def _is_json(request: Request) -> bool:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind.startswith("application/") and (kind.endswith("/json") or kind.endswith("+json"))
