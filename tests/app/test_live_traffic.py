"""Gate G11: alerts on live traffic are raised and cleared by two windows in a row, and move nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from app.background import housekeeping as upkeep
from app.background import live_traffic as module
from app.background.live_traffic import WINDOW, AlertState, LiveTraffic, Traffic, judged
from app.background.review import REVIEWER
from codebook.trials.cusum import Cusum
from core.settings import Settings
from engine.model import Verdict
from engine.registry import open_model
from engine.runner.served import Served
from records.image_log import ImageMemory, KeptImage, Verdicts
from tests.support.serving import Server, serving, settings_in, tiny_model, wait_for

CLEAN, BAD, BETWEEN = [False] * WINDOW, [True] * 12 + [False] * (WINDOW - 12), [True] * 8 + [False] * (WINDOW - 8)


def traffic(unsafe: list[bool]) -> Traffic:
    """The report on a version all of whose images are remembered."""
    return judged(AlertState("v1"), Verdicts(0, unsafe))[0]


@pytest.mark.parametrize(
    ("windows", "alert"),
    [
        ([], False),
        ([BAD], False),
        ([BAD, CLEAN, BAD], False),
        ([CLEAN, BAD, BAD], True),
        ([BAD, BAD, CLEAN], True),
        ([BAD, BAD, CLEAN, BETWEEN, CLEAN], True),
        ([BAD, BAD, CLEAN, CLEAN], False),
        ([BETWEEN] * 5, False),
        ([BAD, BAD, *[BETWEEN] * 5], True),
    ],
)
def test_an_alert_takes_two_windows_to_come_and_two_to_go(windows: list[list[bool]], alert: bool) -> None:
    report = traffic([flag for window in windows for flag in window])
    assert (report.alert, len(report.windows), report.rest) == (alert, len(windows), 0)


def test_a_cheat_that_is_caught_by_no_prompt_of_ours_is_caught_live() -> None:
    """A version that passed every gate and draws harm for what users ask in its first hour."""
    assert traffic(CLEAN + CLEAN + BAD + BAD).alert


def test_an_unfinished_window_decides_nothing() -> None:
    assert not traffic(BAD + [True] * (WINDOW - 1)).alert


@pytest.mark.parametrize("ask_every", [1, 30, 500])
def test_windows_stay_where_they_are_when_images_are_forgotten(ask_every: int) -> None:
    """An alert that was raised long ago stands, and none comes of windows that were cut elsewhere."""
    unsafe = [flag for window in (BAD, BAD, *[BETWEEN] * 12, CLEAN, CLEAN, *[BETWEEN] * 12) for flag in window]
    standing, heard = AlertState("v1"), list[bool]()
    for count in range(0, len(unsafe) + 1, ask_every):
        gone = max(0, count - 5 * WINDOW)
        report, standing = judged(standing, Verdicts(gone, unsafe[gone:count]))
        if not heard or heard[-1] != report.alert:
            heard.append(report.alert)
    assert heard == [False, True, False]


def test_a_memory_counts_what_it_forgets_by_version(tmp_path: Path) -> None:
    memory = ImageMemory(tmp_path / "images.db", 5, 1.0)
    assert memory.verdicts("v1") == Verdicts(0, [])
    for number, version in enumerate(["v1", "v2", "v1", "v1", "v2", "v1", "v1", "v2"]):
        tokens = torch.zeros(4, dtype=torch.int64)
        memory.keep([KeptImage(str(number), "a cat", version, 0, number % 2 == 0, "gore", tokens)])
    assert memory.verdicts("v1") == Verdicts(2, [False, False, True])
    assert memory.verdicts("v2") == Verdicts(1, [True, False])


def test_a_memory_counts_no_verdict_that_nobody_gave(tmp_path: Path) -> None:
    memory, tokens = ImageMemory(tmp_path / "images.db", 4, 1.0), torch.zeros(4, dtype=torch.int64)
    for number, unsafe in enumerate([True, None, False, None, None, True]):
        memory.keep([KeptImage(str(number), "a cat", "v1", 0, unsafe, "gore" if unsafe else None, tokens)])
    assert memory.verdicts("v1") == Verdicts(1, [False, True], 2)


def test_an_alert_is_of_one_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    memory = ImageMemory(tmp_path / "images.db", 50, 1.0)
    tokens = torch.zeros(4, dtype=torch.int64)
    memory.keep([KeptImage(str(number), "a cat", "v1", 0, True, "gore", tokens) for number in range(4)])
    active = "v1"
    live = LiveTraffic(memory, lambda: active, Cusum)
    assert live.report().alert
    active = "v0"
    assert not live.report().alert
    active = "v1"
    assert live.report().alert


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WINDOW", 2)
    model = tiny_model(tmp_path_factory.mktemp("model"))
    with serving(settings_in(tmp_path_factory.mktemp("home"), model)) as server:
        yield server


def alarmed(settings: Settings) -> Served:
    """The tiny model with a judge that finds everything unsafe."""
    model = open_model(settings)
    verdict = Verdict((0.9, 0.9, 0.9), "gore")
    model.judge = lambda images: [verdict] * len(images)  # type: ignore[method-assign]
    return model


def test_unsafe_images_outside_every_edit_wait_for_a_person(tmp_path: Path) -> None:
    settings = settings_in(tmp_path / "home", tiny_model(tmp_path / "model"))
    with serving(settings, alarmed) as server:
        version = server.publish(3, output=True)  # without a router, its edit applies to every image
        before = server.service.live.active
        inside = server.draw(prompt="a first prompt", codebook=version).json()["images"][0]
        outside = server.draw(prompt="a second prompt").json()["images"][0]
        wait_for("a flag is queued", lambda: server.http.get("/flags").json())
        flags = server.http.get("/flags").json()
        assert [(flag["image_id"], flag["state"], flag["caller"]) for flag in flags] == [
            (outside["id"], "review", REVIEWER)
        ]
        assert inside["safety"]["unsafe"] and "v0" in flags[0]["note"]
        assert server.service.live.active == before and server.service.journal.list() == []


def test_an_alert_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "WINDOW", 2)
    monkeypatch.setattr(upkeep, "EVERY_S", 0.05)
    settings = settings_in(tmp_path / "home", tiny_model(tmp_path / "model"))
    with serving(settings, alarmed) as server:
        for seed in range(4):
            server.draw(prompt="a prompt", seed=seed)

        def alerts() -> list[str]:
            return [record.getMessage() for record in caplog.records if record.name == upkeep.__name__]

        wait_for("an alert is logged", alerts)
        server.draw(prompt="a prompt", seed=5)
        assert server.http.get("/traffic").json()["alert"]
        raised = "live traffic alert raised: 100.0%, 100.0% unsafe under v0"
        assert alerts() == [raised]
        server.http.post(f"/codebooks/{server.publish(4)}/activate")
        wait_for("it is over", lambda: alerts()[1:])
        assert alerts() == [raised, "live traffic alert over: v0 is no longer active"]


def test_traffic_is_reported_of_the_active_version_only(server: Server) -> None:
    version = server.publish(4)
    server.draw(seed=1, n=5)
    server.draw(seed=1, n=3, codebook=version)
    body = server.http.get("/traffic").json()
    assert (body["version"], len(body["windows"]), body["rest"], body["alert"]) == ("v0", 2, 1, body["alert"])
    server.http.post(f"/codebooks/{version}/activate")
    assert (server.http.get("/traffic").json()["version"], server.http.get("/traffic").json()["rest"]) == (version, 1)
