"""Builds the app: routes, errors, and a lifespan that opens the service and follows the store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from threading import Event, Thread

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from app import problems, routes_codebooks, routes_flags, routes_generate, routes_health, routes_jobs, routes_traffic
from app.limits import BodyLimit
from app.service import Load, Service
from app.upkeep import keep_up
from app.watcher import follow
from codebook.settings import Settings
from engine.loading import load_model


def create_app(settings: Settings, load: Load = load_model) -> FastAPI:
    """Return the app of one server. `app.state.service` opens in the background once the app starts.

    Before that, /health/ready answers 503 and every call that needs the model answers 503 with Retry-After.
    """
    app = FastAPI(title="Safe-CB", version="1", lifespan=_lifespan)
    app.add_middleware(BodyLimit)
    app.state.service = Service(settings, load)
    problems.install(app)
    for routes in (routes_generate, routes_jobs, routes_codebooks, routes_flags, routes_traffic, routes_health):
        app.include_router(routes.router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    ended = Event()
    threads = [Thread(target=work, args=(service, ended), name=work.__name__) for work in (_watch, keep_up)]
    for thread in threads:
        thread.start()
    yield
    ended.set()
    for thread in threads:
        await run_in_threadpool(thread.join)
    await run_in_threadpool(service.close)


def _watch(service: Service, ended: Event) -> None:
    service.open()
    if service.failure is None:
        follow(service.live, service.settings.redis_url, ended)
