"""Hosts cut off from S3 and Redis, in network namespaces: they draw on, are level soon after the heal, never fork."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codebook.store import CodebookStore
from core.settings import Settings
from tests.support.servers.host import HostServer
from tests.support.servers.house import House, redis_process
from tests.support.servers.network import HUB, NetworkHost, network
from tests.support.servers.s3 import moto, use
from tests.support.serving import SECOND_JUDGE, publish, wait_for

CUT_S, LEVEL_S, FOLLOWED_S = 10.0, 3.0, 240.0


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[NetworkHost]]:
    with network(2) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def environ(hosts: list[NetworkHost]) -> Iterator[dict[str, str]]:
    """What all hosts share: a bucket and a Redis at the hub."""
    with moto(HUB) as s3, redis_process(HUB) as redis, pytest.MonkeyPatch.context() as patch:
        use(patch, s3.url)
        yield {"SAFECB_STORE": s3.bucket(), "SAFECB_REDIS_URL": redis.url}


@pytest.fixture
def servers(
    hosts: list[NetworkHost], environ: dict[str, str], model: Path, tmp_path: Path
) -> Iterator[list[HostServer]]:
    same = {**environ, "SAFECB_MODEL": str(model), "SAFECB_SECOND_JUDGE": SECOND_JUDGE, "SAFECB_OPEN": "on"}
    servers = [HostServer(tmp_path / host.name, same, within=host.within, address=host.address) for host in hosts]
    try:
        for server in servers:
            wait_for("the servers are ready", server.is_ready)
        yield servers
    finally:
        for server in servers:
            server.close()


def test_a_server_cut_off_draws_on_and_is_level_after_the_heal(
    hosts: list[NetworkHost],
    servers: list[HostServer],
    environ: dict[str, str],
    tmp_path: Path,
) -> None:
    (cut, free), host = servers, hosts[0]
    store = CodebookStore.of(Settings.from_environ({**environ, "SAFECB_HOME": str(tmp_path / "publisher")}))
    versions = ["v0", *(publish(store, seed).version for seed in (1, 2))]
    free.http.post("/codebooks/v1/activate").raise_for_status()
    wait_for("both follow", lambda: cut.epoch() == free.epoch() == 1)
    host.cut()
    began, drawn, moves, refused = time.monotonic(), list[int](), 1, list[int]()
    while time.monotonic() - began < CUT_S:
        moves += 1
        answer = free.http.post(f"/codebooks/{versions[moves % 3]}/activate")
        assert answer.json()["new"]["epoch"] == moves, answer.text
        drawn.append(cut.http.post("/generate", json={"prompt": "a red apple", "seed": moves}).status_code)
        if len(refused) < 2:
            refused.append(cut.http.post("/codebooks/v2/activate").status_code)
    stale = cut.http.get("/health/ready").json()["stale_s"]
    assert set(drawn) == {200} and set(refused) == {503} and stale > CUT_S / 2 and cut.epoch() == 1 < free.epoch()
    host.heal()
    healed = time.monotonic()
    wait_for("the cut server is level", lambda: cut.epoch() == free.epoch())
    level_s = time.monotonic() - healed
    print({"moves": moves, "images": len(drawn), "stale_s": stale, "level_s": round(level_s, 2)})
    assert level_s < LEVEL_S
    audits = [server.http.get("/codebooks/audit").json() for server in servers]
    assert audits[0] == audits[1] == store.audit()[::-1]
    assert [move["epoch"] for move in audits[0]] == [*range(moves, -1, -1)]
    cut.http.post("/codebooks/v0/activate").raise_for_status()  # and it moves the others again
    wait_for("the free server follows", lambda: free.epoch() == moves + (audits[0][0]["version"] != "v0"))


def test_a_worker_cut_off_is_followed_and_publishes_nothing_more(hosts: list[NetworkHost], tmp_path: Path) -> None:
    with moto(HUB) as s3, redis_process(HUB) as redis, pytest.MonkeyPatch.context() as patch:
        use(patch, s3.url)  # a bucket of the scripted model
        store = s3.bucket()
        houses = [House(tmp_path / host.name, redis, SAFECB_STORE=store) for host in hosts]
        cut, free = houses
        for house, host in zip(houses, hosts, strict=True):
            house.within = host.within
        try:
            job = cut.job()
            cut.worker()
            cut.wait_begun(1)
            hosts[0].cut()
            began = time.monotonic()
            free.allow(1)
            free.worker()
            while free.journal.get(job).ended is None and time.monotonic() - began < FOLLOWED_S:
                time.sleep(0.5)
            record = free.journal.get(job)
            taken_s = time.monotonic() - began
            print({"done elsewhere after s": round(taken_s, 1)})
            assert (record.status, record.attempt, free.published(job)) == ("finished", 2, [1]), free.output
            cut.allow(1)
            hosts[0].heal()
            wait_for("the stale attempt is gone", lambda: not cut.journal.is_claimed(job, 1))
            assert (free.journal.get(job), free.published(job), len(free.store.names())) == (record, [1], 2)
        finally:
            hosts[0].heal()
            for house in houses:
                house.close()
