"""A real server in a thread, with the tiny model, on a free port; and what the tests ask of it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import uvicorn
from PIL import Image

from app.factory import create_app
from app.http.connections import configured
from app.server import address, bound
from app.service import Load, Service
from codebook.router import Router
from codebook.store import CodebookStore, Manifest
from codebook.value import Codebook, HeadEdit
from core.settings import Settings
from engine.registry import open_model
from records.journal import Journal
from tests.support.tiny import FEATURE_DIM, build_tiny

POLICY_HEADER = "prompt,category,kind,split,concept,safe\n"
SECOND_JUDGE = "hf:owner/harm#harm"  # a repository, which by its name may know every category
# Far beyond what anything here takes, for a busy machine; `make test-scale` waits longer, for one that is full.
PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "120"))


def wait_for(what: str, true: Callable[[], object], every_s: float = 0.02) -> None:
    """Wait until `true()`; fail the test where that takes for ever. every_s: between looks, which cost CPU time too."""
    end = time.monotonic() + PATIENCE_S
    while not true():
        if time.monotonic() > end:
            pytest.fail(f"waited in vain until {what}")
        time.sleep(every_s)


class Server:
    """One running server: its service, its address and a client of it."""

    def __init__(self, service: Service, url: str, http: httpx2.Client, connections: Collection[Any]) -> None:
        self.service, self.url, self.http, self.connections = service, url, http, connections

    def post(self, path: str, body: object, **headers: str) -> httpx2.Response:
        return self.http.post(path, json=body, headers=headers)

    def draw(self, **body: object) -> httpx2.Response:
        """POST /generate for "a red apple" with seed 7; `body` says otherwise."""
        return self.post("/generate", {"prompt": "a red apple", "seed": 7, **body})

    def png(self, **body: object) -> bytes:
        answer = self.http.post(
            "/generate", json={"prompt": "a red apple", "seed": 7, **body}, headers={"Accept": "image/png"}
        )
        assert answer.status_code == 200, answer.text
        return answer.content

    def publish(self, seed: int, *, output: bool = False) -> str:
        """Publish a version whose pixel table, or output table, is visibly another one."""
        return publish(self.service.store, seed, output=output).version


def settings_in(home: Path, model: Path, **changes: str) -> Settings:
    """The settings of a server on a free port; the tiny model has no second judge beside it, and nobody loads this."""
    usual = {"SAFECB_PORT": "0", "SAFECB_CORES": "1", "SAFECB_SECOND_JUDGE": SECOND_JUDGE}
    return Settings.from_environ({"SAFECB_HOME": str(home), "SAFECB_MODEL": str(model)} | usual | changes)


@contextmanager
def serving(settings: Settings, load: Load = open_model, *, ready: bool = True) -> Iterator[Server]:
    """Run a server until the block ends; with `ready`, wait until it can draw."""
    app = create_app(settings, load)
    listener = bound(settings)
    runner = uvicorn.Server(configured(app, settings.trusted_proxies))
    thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
    thread.start()
    service: Service = app.state.service
    try:
        wait_for("the server listens", lambda: runner.started)
        with httpx2.Client(base_url=address(listener), timeout=PATIENCE_S) as http:
            if ready:
                wait_for("the server is ready", lambda: service.failure or http.get("/health/ready").status_code == 200)
                assert service.failure is None, service.failure
            yield Server(service, address(listener), http, runner.server_state.connections)
    finally:
        runner.should_exit = True
        thread.join()


@contextmanager
def played_worker(server: Server, *, publishes: bool) -> Iterator[None]:
    """Do one improve job of the server, as a worker elsewhere would."""
    journal, store = Journal(server.service.settings.home / "jobs"), CodebookStore(server.service.settings.store)

    def work() -> None:
        wait_for("a job waits", journal.running)
        record = journal.running()
        assert record is not None
        fence = journal.begin_attempt(record.id)
        version = publish(store, 1).version if publishes else None
        journal.update(record.id, attempt=fence, rounds=[{"round": 1, "reason": "accepted", "version": version}])
        journal.update(record.id, attempt=fence, status="finished", result={"version": version})

    thread = threading.Thread(target=work)
    thread.start()
    yield
    thread.join()


def publish(store: CodebookStore, seed: int, *, output: bool = False) -> Manifest:
    base = store.load("v0")
    noise = torch.Generator().manual_seed(seed)
    if output:
        draft = replace(base, version="draft", output=_edit(noise))
    else:
        draft = replace(base, version="draft", pixel=torch.randn(base.pixel.shape, generator=noise))
    return store.publish(
        draft,
        parent="v0",
        job=f"test-{seed}",
        round=1,
        figures={"harmful": {"hr": {"value": 0.25, "n": 40, "low": 0.142, "high": 0.402}}},
        gates={"validity": {"name": "validity", "passed": True, "figures": {"rise": 0.01}, "threshold": "<b>few</b>"}},
        report={"note": "<script>alert(1)</script>"},
        images={"before_after.png": tiny_png()},
        fence=1,
    )


def publish_routed(store: CodebookStore) -> str:
    """Publish an edit of the output table whose router fires for every prompt, and removes every second feature."""
    facts = store.report("v0")
    width = facts["feature_dim"]
    basis = torch.eye(width)[None, :, ::2].contiguous()
    router = Router(torch.zeros(1, facts["hidden_dim"]), torch.tensor([99.0]), torch.tensor([0]))
    nothing = torch.zeros(1, width, 1)
    edit = HeadEdit(basis, torch.zeros(width), nothing, nothing.mT.contiguous(), router)
    draft = replace(store.load("v0"), version="draft", output=edit)
    facts = {"figures": {}, "gates": {}, "report": {}}
    return store.publish(draft, parent="v0", job="routed", round=1, fence=1, **facts).version


def _edit(noise: torch.Generator) -> HeadEdit:
    basis = torch.linalg.qr(torch.randn(FEATURE_DIM, 12, generator=noise)).Q
    down, up = torch.randn(FEATURE_DIM, 2, generator=noise), torch.randn(2, FEATURE_DIM, generator=noise)
    return HeadEdit(basis[None], torch.zeros(FEATURE_DIM), down[None], up[None])


def kites(pairs: int = 10, validation: int = 5, benign: int = 20, benign_validation: int = 5) -> bytes:
    """A policy as a CSV file: red kites as the harm, so many prompts of either kind."""
    rows = []
    for split, harmful, harmless in (("pair", pairs, benign), ("validation", validation, benign_validation)):
        rows += [
            f"a red kite over {split} hill {i},red kites,,{split},red kite,a blue kite over {split} hill {i}\n"
            for i in range(harmful)
        ]
        rows += [f"a teapot on {split} table {i},,benign,{split},,\n" for i in range(harmless)]
    return (POLICY_HEADER + "".join(rows)).encode()


def tiny_png() -> bytes:
    file = BytesIO()
    Image.new("RGB", (2, 2), "red").save(file, "PNG")
    return file.getvalue()


def pixels(png: bytes) -> bytes:
    with Image.open(BytesIO(png)) as image:
        return image.tobytes()


def texts(png: bytes) -> dict[str, str]:
    with Image.open(BytesIO(png)) as image:
        image.load()
        return dict(image.text)  # type: ignore[attr-defined]


def base_of(server: Server) -> Codebook:
    return server.service.store.load("v0")


def tiny_model(folder: Path) -> Path:
    """Build the tiny checkpoint, once a folder."""
    torch.set_num_threads(1)
    return folder if (folder / "config.json").exists() else build_tiny(folder)


def raw(url: str) -> socket.socket:
    """A connection to the server at `url`, on which a test writes its own bytes."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side ends the connection."""
    return b"".join(iter(lambda: connection.recv(65536), b""))
