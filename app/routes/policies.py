"""/policies: the prompts that improve jobs may be run with; operators upload and delete files.

Knows files and their names. Knows nothing of jobs.
"""

from __future__ import annotations

from contextlib import suppress

from fastapi import APIRouter, Depends, HTTPException, Request, Response
from starlette.concurrency import run_in_threadpool

from app.access.key_ring import Scope
from app.access.keys import ServiceOf, check_caller, needs
from app.schemas import PolicyResponse
from app.service import Service
from core.errors import SafeCBError
from safety.policy.policy_store import (
    PolicySummary,
    delete_policy,
    installed_policies,
    list_policies,
    policy_names,
    save_benign,
    save_policy,
    summarise,
    usual_policy,
)

router = APIRouter(prefix="/policies", tags=["policies"], dependencies=[Depends(check_caller)])

CSV, JSON_LINES, TEXT = "text/csv", "application/jsonl", "text/plain"
BENIGN = {CSV: ".benign.csv", TEXT: ".benign.txt"}
RAW = {"schema": {"type": "string", "format": "binary"}}


@router.get("", summary="List policies")
def policies(service: ServiceOf) -> list[PolicyResponse]:
    """List all policies: the installed ones, then files by name. A file that cannot be used has a fault."""
    return [_to_response(summary, service) for summary in list_policies(service.policies.read())]


@router.get("/{name}", summary="Get a policy")
def policy(name: str, service: ServiceOf) -> PolicyResponse:
    """Get a policy."""
    return _to_response(summarise(name, service.policies.read()), service)


@router.put(
    "/{name}",
    summary="Upload a policy",
    dependencies=needs(Scope.ADMIN),
    openapi_extra={"requestBody": {"required": True, "content": {CSV: RAW, JSON_LINES: RAW}}},
    responses={201: {"model": PolicyResponse, "description": "A new policy"}},
)
async def put(name: str, request: Request, service: ServiceOf, response: Response) -> PolicyResponse:
    """Make the body, a CSV or JSON lines file, the policy of this name; 201 if it is new.

    The file is read first: 422 names the line and the column of a fault, and nothing is stored.
    """
    _media_type(request, CSV, JSON_LINES)
    data = await request.body()
    summary, is_new = await run_in_threadpool(_saved, name, data, service)
    response.status_code = 201 if is_new else 200
    return _to_response(summary, service)


@router.put(
    "/{name}/benign",
    summary="Upload benign prompts",
    dependencies=needs(Scope.ADMIN),
    openapi_extra={"requestBody": {"required": True, "content": {TEXT: RAW, CSV: RAW}}},
)
async def put_benign(name: str, request: Request, service: ServiceOf) -> PolicyResponse:
    """Make the body, one prompt a line or a CSV file, the benign prompts beside an uploaded policy."""
    suffix = BENIGN[_media_type(request, TEXT, CSV)]
    data = await request.body()
    return _to_response(await run_in_threadpool(_with_benign, name, suffix, data, service), service)


@router.delete("/{name}", summary="Delete a policy", status_code=204, dependencies=needs(Scope.ADMIN))
def delete(name: str, service: ServiceOf) -> None:
    """Delete an uploaded policy with its benign prompts. 409 for an installed one.

    A job that runs has its prompts; one that waits with this policy will fail.
    """
    with service.policies.changing() as folder:
        delete_policy(name, folder)


def _saved(name: str, data: bytes, service: Service) -> tuple[PolicySummary, bool]:
    """Save a policy; return it, and whether it is new."""
    with service.policies.changing() as folder:
        is_new = name not in policy_names(folder)
        save_policy(name, data, folder)
        return summarise(name, folder), is_new


def _with_benign(name: str, suffix: str, data: bytes, service: Service) -> PolicySummary:
    """Save the benign prompts of a policy; return it."""
    with service.policies.changing() as folder:
        save_benign(name, suffix, data, folder)
        return summarise(name, folder)


def _media_type(request: Request, *allowed: str) -> str:
    """The body's media type, one of `allowed`; raises 415 for another."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in allowed:
        raise HTTPException(415, f"send a body of content-type {' or '.join(allowed)}")
    return kind


def _to_response(summary: PolicySummary, service: Service) -> PolicyResponse:
    usual = ""
    with suppress(SafeCBError):  # there is no model now
        usual = usual_policy(service.engine.facts.categories)
    return PolicyResponse(
        name=summary.name,
        version=summary.version,
        categories=list(summary.categories),
        prompts=None if summary.prompts is None else dict(summary.prompts),
        ships=summary.name in installed_policies(),
        usual=summary.name == usual,
        fault=summary.fault or None,
        links={"self": f"/policies/{summary.name}"},
    )
