"""Two releases on one store: a server and a worker of each, one bucket, one Redis; either follows the other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from codebook.store import CodebookStore
from core.settings import Settings
from tests.support.servers.host import HostServer
from tests.support.servers.house import WORKER, House, RedisProcess, redis_process
from tests.support.servers.s3 import S3, use
from tests.support.serving import SECOND_JUDGE, pixels, publish, wait_for
from tests.support.supervised import ROOT

PREVIOUS = "4b720aa"  # the last commit before a store had a format; the tag of the release before, once there is one
PUBLISH = (
    "import os, sys; from codebook.store import CodebookStore; from core.settings import Settings;"
    "from tests.support.serving import publish;"
    "print(publish(CodebookStore.of(Settings.from_environ(os.environ)), int(sys.argv[1]), output=True).version)"
)


@pytest.fixture(scope="module")
def previous(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the release before, with the metadata that an installation of it has."""
    git = ["git", "-C", str(ROOT), "archive", PREVIOUS]
    done = subprocess.run(git, capture_output=True)
    if done.returncode:
        pytest.skip(f"needs commit {PREVIOUS}: a clone with its history (git fetch --unshallow)")
    folder = tmp_path_factory.mktemp("previous")
    subprocess.run(["tar", "-x"], cwd=folder, input=done.stdout, check=True)
    metadata = [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "egg_info"]
    subprocess.run(metadata, cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def environ(s3: S3, redis: RedisProcess, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the processes of both releases share."""
    use(monkeypatch, s3.url)
    return {"SAFECB_STORE": s3.bucket(), "SAFECB_REDIS_URL": redis.url}


@pytest.fixture
def releases(previous: Path, environ: dict[str, str], model: Path, tmp_path: Path) -> Iterator[list[HostServer]]:
    """A server of the release before, and one of this; the first one makes the store."""
    same = {**environ, "SAFECB_MODEL": str(model), "SAFECB_SECOND_JUDGE": SECOND_JUDGE}
    servers = list[HostServer]()
    try:
        for name, code in (("before", previous), ("after", ROOT)):
            servers.append(HostServer(tmp_path / name, same, code))
            wait_for(f"the server of {code} is ready", servers[-1].is_ready)
        yield servers
    finally:
        for server in servers:
            server.close()


def draw(server: HostServer, **body: object) -> tuple[str, bytes]:
    """The version and the pixels of an image."""
    request = {"prompt": "a red apple", "seed": 7, **body}
    answer = server.http.post("/generate", json=request, headers={"Accept": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.headers["X-Codebook-Version"], pixels(answer.content)


def at(servers: list[HostServer], epoch: int) -> bool:
    return all(server.epoch() == epoch for server in servers)


def test_either_release_moves_both_and_both_draw_the_same(
    releases: list[HostServer], previous: Path, environ: dict[str, str], tmp_path: Path
) -> None:
    before, after = releases
    own = {**environ, "SAFECB_HOME": str(tmp_path / "publisher")}
    command = [sys.executable, "-c", PUBLISH, "1"]
    done = subprocess.run(
        command, cwd=previous, env={**os.environ, "PYTHONPATH": str(previous), **own}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "v1", done.stderr
    assert publish(CodebookStore.of(Settings.from_environ(own)), 2).version == "v2"
    images = dict[str, tuple[str, bytes]]()
    for epoch, (mover, version) in enumerate(((before, "v1"), (after, "v2"), (before, "v1"), (after, "v0")), start=1):
        mover.http.post(f"/codebooks/{version}/activate").raise_for_status()
        wait_for(f"both are at {version}", partial(at, releases, epoch))
        drawn = [draw(server) for server in releases]
        assert drawn[0] == drawn[1] and drawn[0][0] == version
        assert images.setdefault(version, drawn[0]) == drawn[0]
    assert len({image for _, image in images.values()}) == 3
    assert [server.http.get("/health/ready").json().get("refused") for server in releases] == [None, None]
    audits = [server.http.get("/codebooks/audit").json() for server in releases]
    moves = [[(move["epoch"], move["version"]) for move in audit] for audit in audits]
    assert moves[0] == moves[1] and len(moves[0]) == 5
    for drawer, other in (releases, reversed(releases)):  # each flags what the other drew
        answer = drawer.http.post("/generate", json={"prompt": f"a dog {drawer.http.base_url}", "seed": 1})
        image = answer.json()["images"][0]["id"]
        assert other.http.post("/flags", json={"image_id": image}).status_code == 201
    assert [len(server.http.get("/flags").json()) for server in releases] == [2, 2]
    after.http.post("/codebooks/v2/revoke").raise_for_status()
    pinned = {"prompt": "a red apple", "codebook": "v2"}
    wait_for("the release before obeys", lambda: before.http.post("/generate", json=pinned).status_code == 422)


def test_a_worker_of_either_release_does_the_job_of_the_other(
    previous: Path, environ: dict[str, str], redis: RedisProcess, tmp_path: Path
) -> None:
    rest = {name: value for name, value in environ.items() if name != "SAFECB_REDIS_URL"}
    house = House(tmp_path / "house", redis, **rest)
    house.allow(1)
    old = {**os.environ, **house.environ, "PYTHONPATH": str(previous), "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen([sys.executable, "-c", WORKER], cwd=previous, env=old)
    try:
        first = house.wait_ended(house.job())
    finally:
        worker.kill()
        worker.wait()
    try:
        house.worker()
        second = house.wait_ended(house.job())
    finally:
        house.close()
    assert [(record.status, record.error) for record in (first, second)] == [("finished", None)] * 2
    assert [house.published(record.id) for record in (first, second)] == [[1], [1]]
    assert house.store.active().version == "v2"
