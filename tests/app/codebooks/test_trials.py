"""Trials of versions through running servers and a worker process: compared, turned down, rolled out in steps."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.background import housekeeping
from app.background.trial_keeper import KEEPER, STEPS
from cli.main import main
from codebook.trials import steps
from codebook.trials.duel import Evidence
from codebook.trials.rule import Trial
from core.wire import RedisNames
from records.journal import SHADOW
from tests.support.servers.house import House, RedisProcess, redis_process
from tests.support.serving import Server, serving, settings_in, wait_for
from tests.support.trials.live_result import live_result


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisProcess]:
    with redis_process() as process:
        yield process


@pytest.fixture
def house(model: Path, tmp_path: Path, redis: RedisProcess) -> Iterator[House]:
    house = House(tmp_path, redis, SAFECB_MODEL=str(model), SAFECB_DEVICE="cpu")
    yield house
    house.close()
    house.redis.flushall()


@pytest.fixture
def server(model: Path, tmp_path: Path, house: House, redis: RedisProcess) -> Iterator[Server]:
    with serving(settings_in(tmp_path, model, SAFECB_REDIS_URL=redis.url)) as server:
        yield server


@pytest.fixture
def second(server: Server, model: Path, tmp_path: Path, redis: RedisProcess) -> Iterator[Server]:
    """Another server on the store of the first, with a home of its own."""
    store = str(server.service.settings.store)
    with serving(settings_in(tmp_path / "second", model, SAFECB_STORE=store, SAFECB_REDIS_URL=redis.url)) as other:
        yield other


def begin(server: Server, version: str, **body: object) -> str:
    answer = server.post(f"/codebooks/{version}/shadow", {"share": 1.0, "margin": 0.3, **body})
    assert answer.status_code == 202, answer.text
    job: str = answer.json()["job"]
    return job


def draw_until_decided(servers: list[Server], word: str) -> dict[str, object]:
    """Draw prompts that the worker's examiner knows, until the rule has decided."""
    state: dict[str, object] = {}
    for i in range(400):
        servers[i % len(servers)].draw(prompt=f"a {word} kite {i}")
        state = servers[0].http.get("/codebooks/shadow").json()
        if state["decision"]:
            break
    wait_for("it is decided", lambda: servers[0].http.get("/codebooks/shadow").json()["decision"])
    return servers[0].http.get("/codebooks/shadow").json()  # type: ignore[no-any-return]


def audit(server: Server) -> dict[str, object]:
    """The newest move."""
    move: dict[str, object] = server.http.get("/codebooks/audit").json()[0]
    return move


def test_a_worse_version_retreats_and_an_equal_one_enters_the_first_step(
    server: Server, second: Server, house: House
) -> None:
    version = server.publish(1)
    house.worker()
    job = begin(server, version)
    epoch = server.http.get("/codebooks/active").json()["epoch"]
    wait_for("the other server follows", lambda: second.service.live.active.epoch == epoch)
    assert server.post(f"/codebooks/{version}/shadow", {}).status_code == 409
    state = draw_until_decided([server, second], "worse")
    assert (state["decision"], state["version"], state["job"]) == ("retreat", version, job)
    move = audit(server)
    assert (move["move"], move["moved_by"], move["shadow"], move["traffic"]) == ("shadow", f"job {job}", {}, {})
    assert Trial.read(move["evidence"]).decision == "retreat"  # type: ignore[arg-type]
    assert f"{version} is worse than v0" in str(move["reason"])

    begin(server, version)
    state = draw_until_decided([server, second], "fine")
    assert state["decision"] == "promote"
    move = audit(server)
    assert (move["move"], move["canary"], move["traffic"]) == ("canary", version, {"v0": 0.99, version: 0.01})
    assert Trial.read(move["evidence"]).decision == "promote"  # type: ignore[arg-type]
    wait_for("all follow", lambda: second.service.live.active.canary == server.service.live.active.canary == version)
    shares = server.http.get("/codebooks/traffic").json()
    assert (shares["canary"], shares["next_step_at"]) == (version, 100)


def test_a_comparison_is_shown_and_ended_by_a_person(server: Server, house: House) -> None:
    version = server.publish(1)
    assert server.http.get("/codebooks/shadow").status_code == 404
    job = begin(server, version)
    state = server.http.get("/codebooks/shadow").json()
    assert (state["status"], state["decision"], state["pairs"], state["most"]) == ("queued", "", 0, 3000)
    house.worker()
    wait_for("it compares", lambda: house.journal.get(job).progress["phase"] == "compare")
    server.draw(prompt="a better kite")
    wait_for("a pair counts", lambda: server.http.get("/codebooks/shadow").json()["pairs"] == 1)
    state = server.http.get("/codebooks/shadow").json()
    assert state["measures"]["second"]["better"] == 1
    assert state["curve"]["pairs"] == [0, 1] and state["curve"]["within_self"][1] > 1
    text = server.http.get("/metrics").text
    assert f'safecb_shadow_pairs{{codebook="{version}"}} 1.0' in text
    assert 'safecb_shadow_evidence{kind="within",measure="degenerate"}' in text
    assert server.http.delete("/codebooks/shadow").json()["new"]["shadow"] == {}
    wait_for("the job ends", lambda: house.journal.get(job).ended)
    assert server.http.delete("/codebooks/shadow").status_code == 200


def test_comparisons_that_cannot_begin_are_refused(server: Server, model: Path, tmp_path: Path) -> None:
    version = server.publish(1)
    for path, body, status in (
        ("v0", {}, 409),
        ("v9", {}, 404),
        (version, {"share": 0}, 422),
        (version, {"margin": 1.0}, 422),
        (version, {"pairs": 0}, 422),
        (version, {"expected_epoch": 7}, 409),
    ):
        assert server.post(f"/codebooks/{path}/shadow", body).status_code == status, (path, body)
    server.post(f"/codebooks/{version}/revoke", None)
    assert server.post(f"/codebooks/{version}/shadow", {}).status_code == 409
    assert server.post(f"/codebooks/{version}/canary", {}).status_code == 409
    assert server.service.journal.running(SHADOW) is None
    server.post(f"/codebooks/{version}/restore", None)
    changes = {"SAFECB_STORE": str(server.service.settings.store)}
    with serving(settings_in(tmp_path / "other", model, **changes)) as lone:
        assert "Redis" in lone.post(f"/codebooks/{version}/shadow", {}).json()["detail"]
    changes |= {"SAFECB_KEEP_IMAGES": "0", "SAFECB_REDIS_URL": server.service.settings.redis_url or ""}
    with serving(settings_in(tmp_path / "forgetful", model, **changes)) as forgetful:
        assert "SAFECB_KEEP_IMAGES" in forgetful.post(f"/codebooks/{version}/shadow", {}).json()["detail"]


def test_a_cancelled_job_ends_its_comparison(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    version = server.publish(1)
    job = begin(server, version)
    server.service.trials.act()
    assert server.service.live.active.shadow
    assert server.http.delete(f"/jobs/{job}").json()["status"] == "cancelled"
    server.service.trials.act()
    assert server.service.live.active.shadow == {}
    assert (audit(server)["moved_by"], audit(server)["reason"]) == (KEEPER, "the job is cancelled")


def test_images_of_the_active_version_alone_are_lent_once(server: Server, house: House) -> None:
    version = server.publish(1)
    job = begin(server, version)
    for body in ({"prompt": "one", "n": 2}, {"prompt": "one"}, {"prompt": "two"}, {"prompt": "3", "codebook": version}):
        server.draw(**body)
    lent = RedisNames.of(server.service.settings).lent
    wait_for("two images are lent", lambda: house.redis.llen(f"{lent}:{job}") == 2)


def note(server: Server, version: str, count: int, unsafe: bool = False) -> None:
    """Let the guard see images as if callers who named no version had got them."""
    for i in range(count):
        server.service.guard.note([live_result(server, version, f"{version} {unsafe} {i}", unsafe)])


def test_a_canary_goes_step_by_step_to_all(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STEPS", ((0.01, 2), (0.1, 3), (0.5, 4)))
    version = server.publish(1)
    assert server.post(f"/codebooks/{version}/canary", {}).json()["new"]["canary"] == version
    server.service.trials.act()
    shares = []
    for images in (1, 2, 5, 9):
        note(server, version, images)
        server.service.trials.act()
        server.service.trials.act()
        record = server.service.live.active
        shares.append(record.traffic.get(version, float(record.version == version)))
    assert shares == [0.01, 0.1, 0.5, 1.0]
    move = audit(server)
    assert (move["moved_by"], move["version"], move["move"], move["canary"]) == (STEPS, version, "activate", "")
    evidence = Evidence.read(move["evidence"])  # type: ignore[arg-type]
    assert (evidence.images, evidence.is_worse) == (9, False) and f"{version} at 50%" in str(move["reason"])
    assert server.post("/codebooks/rollback", {}).json()["new"]["version"] == "v0"


def test_the_guard_ends_a_canary_and_a_person_too(server: Server) -> None:
    version = server.publish(1)
    server.post(f"/codebooks/{version}/canary", {})
    for _ in range(2):
        for i in range(60):
            note(server, "v0", i + 1)
            note(server, version, i + 1, unsafe=True)
    server.service.guard.act()
    server.service.trials.act()
    record = server.service.live.active
    assert (record.version, record.traffic, record.canary, record.moved_by) == ("v0", {}, "", "canary guard")
    server.post(f"/codebooks/{version}/canary", {})
    assert server.http.delete("/codebooks/traffic").json()["new"]["canary"] == ""


def test_steps_are_taken_by_housekeeping(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "EVERY_S", 0.2)
    monkeypatch.setattr(steps, "STEPS", ((0.01, 2), (0.5, 10**6)))
    with serving(settings_in(tmp_path, model)) as server:
        version = server.publish(1)
        server.post(f"/codebooks/{version}/canary", {})
        note(server, version, 3)
        wait_for("the next step", lambda: server.service.live.active.traffic.get(version) == 0.5)


def test_the_command_line_compares_and_rolls_out(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    version, there = server.publish(1), ["--server", server.url]
    assert main(["codebooks", "shadow", *there]) == 1
    assert main(["codebooks", "shadow", version, "--share", "0.25", "--no-steps", *there]) == 0
    output = capsys.readouterr().out
    assert f"{version}: queued, 0 of at most 3000 pairs" in output and "e worse (300)" in output
    request = server.service.journal.list()[0].request
    assert (request["share"], request["steps"], request["margin"]) == (0.25, False, 0.01)
    assert main(["codebooks", "shadow", "--end", *there]) == 0
    assert f"{version}: cancelled" in capsys.readouterr().out
    assert main(["codebooks", "canary", version, *there]) == 0
    assert f"{version} draws 1% of the traffic; v0 is active" in capsys.readouterr().out
