"""FastAPI application: routes, error handlers, and a lifespan that opens the service and follows the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from threading import Event, Thread
from time import monotonic

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

from app.background.housekeeping import keep_up
from app.background.store_watcher import follow
from app.http import problems
from app.http.body_limit import BodyLimit
from app.http.bugs import Bugs
from app.http.door import Door
from app.http.head import Head
from app.http.idempotency import Idempotency
from app.http.request_id import RequestId
from app.http.root_path import WithoutRoot, WithRoot
from app.metrics.collector import ServiceCollector
from app.metrics.responses import ResponseCounter
from app.metrics.tracing import telemetry
from app.openai import routes as routes_openai
from app.openai.errors import OpenAIErrors
from app.queue import listen
from app.routes import codebooks as routes_codebooks
from app.routes import flags as routes_flags
from app.routes import generate as routes_generate
from app.routes import health as routes_health
from app.routes import images as routes_images
from app.routes import jobs as routes_jobs
from app.routes import judges as routes_judges
from app.routes import metrics as routes_metrics
from app.routes import policies as routes_policies
from app.routes import traffic as routes_traffic
from app.routes import trials as routes_trials
from app.service import Load, Service
from core.errors import BadSetting
from core.settings import Settings
from engine.registry import open_model
from records.shared_answers import open_answers

MAX_IMPROVE = 17 * 2**20  # bytes: 1,000 prompts of 4,000 characters in UTF-8
MAX_POLICY = 8 * 2**20  # bytes of a policy's file
CLOSE_S = 1.0  # for the threads to end in; one that takes longer is abandoned


def create_app(settings: Settings, load: Load = open_model) -> FastAPI:
    """Return the app of one server. `app.state.service` opens in the background once the app starts.

    Until it is open, /health/ready and every call that needs the model return 503, the latter with Retry-After.
    """
    # Its pages at /docs load nothing from another host.
    app = FastAPIOffline(
        redoc_url=None,
        title="Safe-CB",
        version="1",
        lifespan=_lifespan,
        responses=dict(problems.RESPONSES),
        telemetry=telemetry(settings.root_path),
    )
    app.state.service = service = Service(settings, load)
    service.counts.registry.register(ServiceCollector(service))
    app.add_middleware(WithRoot, root=settings.root_path)
    app.add_middleware(Bugs)
    app.add_middleware(Head)
    app.add_middleware(Idempotency, answers=open_answers(settings), service=service)
    app.add_middleware(BodyLimit, service=service, larger={"/policies/": MAX_POLICY, "/improve": MAX_IMPROVE})
    app.add_middleware(Door, service=service)
    app.add_middleware(OpenAIErrors)
    app.add_middleware(ResponseCounter, counts=service.counts)
    app.add_middleware(RequestId)
    app.add_middleware(WithoutRoot, root=settings.root_path)
    app.mount("/console", StaticFiles(packages=[("app.console", "static")]), name="console")
    problems.install(app)
    for routes in (
        routes_generate,
        routes_images,
        routes_openai,
        routes_jobs,
        routes_policies,
        routes_judges,
        routes_trials,  # before a version of any name
        routes_codebooks,
        routes_flags,
        routes_traffic,
        routes_health,
        routes_metrics,
    ):
        app.include_router(routes.router)
    _check_prefix(app, settings.root_path)
    return app


def _check_prefix(app: FastAPI, root: str) -> None:
    """Raise BadSetting for a prefix that a path of the API begins with: whether it was cut off could not be said."""
    if not root:
        return
    begins = sorted({path.split("/")[1] for path in (*app.openapi()["paths"], "/console", "/docs", "/openapi.json")})
    if root.split("/")[1] in begins:
        raise BadSetting("SAFECB_ROOT_PATH", root, f"a prefix whose first part is none of {', '.join(begins)}")


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    ended = Event()
    threads = [_begun(work, service, ended) for work in (_watch, keep_up, _listen)]
    yield
    ended.set()
    await run_in_threadpool(_let_end, [*threads, _begun(service.close)])


def _begun(work: Callable[..., None], *arguments: object) -> Thread:
    thread = Thread(target=work, args=arguments, name=work.__name__, daemon=True)
    thread.start()
    return thread


def _let_end(threads: Sequence[Thread]) -> None:
    """Join threads for up to CLOSE_S: nothing interrupts a model that loads, and the files on disk are consistent."""
    deadline = monotonic() + CLOSE_S
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))


def _watch(service: Service, ended: Event) -> None:
    service.open(ended)
    if service.failure is None:
        follow(service.live, service.settings, ended)


def _listen(service: Service, ended: Event) -> None:
    listen(service.queue, ended)
