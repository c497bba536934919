"""Metrics: what is counted is what happened, and every query of the alerts and the dashboard finds its series."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.errors import Busy
from core.settings import Settings
from engine.registry import open_model
from engine.runner.served import Served
from tests.support.serving import Server, played_worker, serving, settings_in, wait_for

DEPLOY = Path(__file__).parents[3] / "deploy"
PROMTOOL = shutil.which("promtool")
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(server: Server) -> Series:
    answer = server.http.get("/metrics")
    assert answer.status_code == 200 and answer.headers["Content-Type"].startswith("text/plain")
    families = list(text_string_to_metric_families(answer.text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(series: Series, name: str, **labels: str) -> float:
    """The sum of the series of a name that have these labels."""
    return sum(v for (each, own), v in series.items() if each == name and labels.items() <= dict(own).items())


def test_images_and_responses_are_counted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    version = server.publish(1)
    server.draw(n=3)
    server.draw(codebook=version)
    server.http.get("/no/such/path")
    with monkeypatch.context() as patch:

        def busy(*arguments: object) -> None:
            raise Busy("full")

        patch.setattr(server.service.engine.scheduler, "submit_draw", busy)
        assert server.draw().status_code == 429
    series = scraped(server)
    assert value(series, "safecb_images_total", codebook="v0") == 3
    assert value(series, "safecb_images_total", codebook=version) == 1
    generate = {"method": "POST", "route": "/generate"}
    assert value(series, "safecb_responses_total", **generate, status="200") == 2
    assert value(series, "safecb_responses_total", **generate, status="429") == 1
    assert value(series, "safecb_responses_total", route="unmatched", status="404") == 1
    assert value(series, "safecb_response_seconds_count", route="/generate") == 3
    assert value(series, "safecb_ready") == 1 and value(series, "safecb_step_seconds") > 0
    assert value(series, "safecb_drawing_threads") >= 1
    assert value(series, "safecb_redis_up") == 0  # this server has none


def test_a_stream_is_counted_and_not_timed(server: Server) -> None:
    server.post("/generate", {"prompt": "a"}, Accept="text/event-stream")
    series = scraped(server)
    assert value(series, "safecb_responses_total", route="/generate", status="200") == 1
    assert value(series, "safecb_response_seconds_count", route="/generate") == 0


def test_a_swap_and_a_job_are_seen(server: Server) -> None:
    before = scraped(server)
    version = server.publish(1)
    server.post(f"/codebooks/{version}/activate", {})
    after = scraped(server)
    assert value(after, "safecb_codebook_moves_total") == value(before, "safecb_codebook_moves_total") + 1
    content_hash = server.http.get("/codebooks/active").json()["codebook_hash"]
    assert value(after, "safecb_codebook_info", codebook=version, codebook_hash=content_hash) == 1
    assert value(after, "safecb_codebook_info") == 1 and value(after, "safecb_job") == 0
    server.post("/improve", {"policy": "open"})
    record = server.service.journal.running()
    assert record is not None
    server.service.journal.update(record.id, plan={"images_done": 3, "images_planned": 9})
    queued = scraped(server)
    assert value(queued, "safecb_job", status="queued") == 1
    assert (value(queued, "safecb_job_images_done"), value(queued, "safecb_job_images_planned")) == (3, 9)
    with played_worker(server, publishes=False):
        wait_for("the job has ended", lambda: value(scraped(server), "safecb_job") == 0)


def test_a_server_that_loads_says_so(model: Path, tmp_path: Path) -> None:
    goes_on = threading.Event()

    def slowly(settings: Settings) -> Served:
        goes_on.wait()
        return open_model(settings)

    with serving(settings_in(tmp_path, model), slowly, ready=False) as server:
        series = scraped(server)
        goes_on.set()
        assert value(series, "safecb_ready") == 0 and ("safecb_ready", frozenset()) in series
        assert not any(name == "safecb_step_seconds" for name, _ in series)


def queries() -> dict[str, str]:
    """The queries of the alert rules and the dashboard, by where they stand."""
    panels = json.loads((DEPLOY / "grafana" / "safecb.json").read_text())["panels"]
    exprs = {f"{p['title']} {t['refId']}": t["expr"] for p in panels for t in p["targets"]}
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    return exprs | {part.split("\n", 1)[0].strip(): part for part in alerts.split("- alert:")[1:]}


def test_every_query_finds_its_series_and_labels(server: Server) -> None:
    server.post("/improve", {"policy": "open"})
    server.draw()
    server.service.counts.refused("v0")
    with played_worker(server, publishes=False):
        wait_for("the job has ended", lambda: value(scraped(server), "safecb_job") == 0)
    names = {name for name, _ in scraped(server)} | {"safecb_job_images_done", "safecb_job_images_planned"}
    labels = {name: {key for each, own in scraped(server) if each == name for key, _ in own} for name in names}
    for where, query in queries().items():
        asked = re.findall(r"(safecb_\w+)(?:\{([^}]*)\})?", query)
        assert asked, where
        for name, conditions in asked:
            assert name in names, (where, name)
            wanted = set(re.findall(r"(\w+)[=!]~?\"", conditions)) - {"instance"}
            assert wanted <= labels[name], (where, name)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_promtool_finds_no_fault(server: Server) -> None:
    server.draw()
    text = server.http.get("/metrics").text
    assert PROMTOOL is not None
    checked = subprocess.run([PROMTOOL, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    config = DEPLOY / "prometheus" / "prometheus.yml"
    checked = subprocess.run([PROMTOOL, "check", "config", config], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")
def test_each_alert_is_raised_by_what_it_is_for() -> None:
    assert PROMTOOL is not None
    tests = DEPLOY / "prometheus" / "alerts_test.yml"
    checked = subprocess.run([PROMTOOL, "test", "rules", tests], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    named = set(re.findall(r"alert: (\w+)", (DEPLOY / "prometheus" / "alerts.yml").read_text()))
    assert named == set(re.findall(r"alertname: (\w+)", tests.read_text()))
