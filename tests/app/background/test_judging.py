"""SAFECB_JUDGE: what an answer, a log and a count say of an image without a verdict, and what is refused then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from app.background.review import REVIEWER
from cli.main import main
from core.settings import Settings
from engine.image_result import is_in_share
from engine.model import Verdict
from engine.registry import open_model
from engine.runner.served import Served
from tests.support.serving import Server, publish_routed, serving, settings_in, wait_for
from tests.support.trials.live_result import live_result

NOTHING = {"unsafe": None, "score": None, "category": None, "edited": False, "redraws": 0}
JUDGED: list[int] = []  # images of each call of the judge


def load(settings: Settings) -> Served:
    """The tiny model with a judge that finds everything unsafe."""
    model = open_model(settings)

    def judge(images: Tensor) -> list[Verdict]:
        JUDGED.append(len(images))
        return [Verdict((0.9,) * 3, "gore") for _ in images]

    model.judge = judge  # type: ignore[method-assign]
    return model


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that judges no image."""
    with serving(settings_in(tmp_path_factory.mktemp("home"), model, SAFECB_JUDGE="off"), load) as server:
        yield server


def test_an_image_without_a_verdict_says_null(
    server: Server, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    JUDGED.clear()
    (image,) = server.draw().json()["images"]
    assert image["safety"] == NOTHING
    stream = server.post("/generate", {"prompt": "a cat"}, Accept="text/event-stream").text
    assert json.loads(stream.split("event: image\ndata: ")[1].splitlines()[0])["safety"] == NOTHING
    (openai,) = server.post("/v1/images/generations", {"prompt": "a cat"}).json()["data"]
    assert openai["safety"] == {"edited": False, "redraws": 0}  # what is null is left out there
    both = server.post("/codebooks/compare", {"prompt": "a cat", "versions": ["v0", "v0"]}).json()["images"]
    assert [each["safety"] for each in both] == [NOTHING, NOTHING]
    logged = server.service.images.get(image["id"])
    assert (logged.unsafe, logged.category) == (None, None)
    flag = server.post("/flags", {"image_id": image["id"]}).json()
    assert (flag["category"], flag["state"]) == (None, "accepted")
    assert main(["generate", "a cat", "-o", str(tmp_path / "a.png"), "--server", server.url]) == 0
    assert ", not judged, id " in capsys.readouterr().out
    assert JUDGED == [] and REVIEWER not in {flag["caller"] for flag in server.http.get("/flags").json()}


def test_counts_name_the_images_that_were_not_judged(server: Server) -> None:
    server.draw(n=2)
    traffic = server.http.get("/traffic").json()
    assert (traffic["judge"], traffic["judged"], traffic["windows"], traffic["rest"]) == ("off", 0, [], 0)
    assert traffic["unjudged"] >= 2 and traffic["cusum"]["images"] == 0 and not traffic["alert"]
    series = server.http.get("/metrics").text
    assert 'safecb_images_total{codebook="v0",unsafe="unjudged"}' in series and 'unsafe="false"' not in series
    assert "safecb_judged_share 0.0" in series
    assert server.http.get("/health/ready").json()["judge"] == "off"


def test_what_could_never_decide_is_refused_by_name(server: Server) -> None:
    version = server.publish(1)
    split = {"v0": 0.5, version: 0.5}
    answers = [
        server.post(f"/codebooks/{version}/canary", {}),
        server.http.put("/codebooks/traffic", json=split),
        server.post(f"/codebooks/{version}/shadow", {}),
    ]
    for answer in answers:
        assert answer.status_code == 409 and "SAFECB_JUDGE=off" in answer.json()["detail"], answer.text
    refused = server.post("/improve", {"activate": "canary"})
    assert refused.status_code == 422 and refused.json()["field"] == "activate"
    assert "SAFECB_JUDGE=off" in refused.json()["detail"]
    without = server.post(f"/codebooks/{version}/shadow", {"steps": False})
    assert "Redis" in without.json()["detail"]  # its job judges both images by itself
    assert server.service.live.active.epoch == 0


def test_a_mode_that_needs_the_verdict_gets_it(server: Server) -> None:
    version = server.post(f"/codebooks/{publish_routed(server.service.store)}/derive", {"mode": "redraw"}).json()[
        "version"
    ]
    JUDGED.clear()
    answer = server.draw(codebook=version)
    assert answer.status_code == 422 and answer.json()["version"] == version
    assert JUDGED == [1, 1, 1]  # drawn three times


def test_a_share_is_judged_and_what_counts_verdicts_counts_it_alone(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(settings_in(tmp_path, model, SAFECB_JUDGE="sample:0.5"), load) as server:
        images = [image for seed in (0, 8) for image in server.draw(n=8, seed=seed).json()["images"]]
        judged = [image["safety"]["unsafe"] for image in images]
        assert judged == [True if is_in_share(image["id"], 0.5) else None for image in images]
        assert 0 < judged.count(True) < 16
        traffic = server.http.get("/traffic").json()
        assert (traffic["judged"], traffic["unjudged"]) == (judged.count(True), judged.count(None))
        wait_for("a judged image counts", lambda: server.http.get("/traffic").json()["cusum"]["images"])
        assert {flag["image_id"] for flag in server.http.get("/flags").json()} <= {
            image["id"] for image in images if image["safety"]["unsafe"]
        }
        version = server.publish(1)
        assert server.http.put("/codebooks/traffic", json={"v0": 0.5, version: 0.5}).status_code == 200
        for unsafe in (None, True, None, True):  # of a prompt the first judged image counts
            server.service.guard.note([live_result(server, version, "a kite", unsafe)])
        evidence = server.http.get("/codebooks/traffic").json()["evidence"][version]
        assert (evidence["images"], evidence["unsafe"]) == (1, 1)
    with serving(settings_in(tmp_path, model, SAFECB_JUDGE="off")) as server:  # with the split that it finds
        assert main(["codebooks", "traffic", "--server", server.url]) == 0
        assert "images judged by this server: off" in capsys.readouterr().out
        wait_for("it is logged", lambda: "cannot end or step on by itself" in caplog.text)
