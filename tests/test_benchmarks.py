"""The benchmarks' own claims: a wrong image would be found, a failed call counts, the page can be drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from xml.etree import ElementTree

import httpx2
import psutil
import pytest
import torch

from benchmarks import baseline, chaos, geometries, lookahead, neighbours, results, serving, steps, swap
from benchmarks.answers import Tally, kind_of
from benchmarks.jobs import beside
from benchmarks.load import Load, calls, closed_loop, poisson
from benchmarks.scale import page as scale
from benchmarks.scale.audit import Call, compare
from benchmarks.scale.fleet.fleet import KEY
from benchmarks.scale.fleet.line import NEVER, Line
from benchmarks.scale.images import Drawn
from benchmarks.scale.moves import Followers
from benchmarks.short_job import ROUNDS
from codebook.store import CodebookStore
from engine.families.anole import random_model as anole
from engine.families.emu3 import loading as emu3
from engine.families.liquid import random_model as liquid
from engine.families.vila_u import random_model as vila_u
from engine.model import ImageRequest
from engine.png import encode_png, to_bytes
from engine.registry import EMBEDDED, PREFIX, load_model
from records.journal import Journal
from tests.support.families import tiny_anole, tiny_emu3, tiny_liquid, tiny_vila_u
from tests.support.families.small_janus import shrink
from tests.support.serving import Server, settings_in, tiny_model
from tests.support.serving import serving as server_of


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home, model = tmp_path_factory.mktemp("home"), tiny_model(tmp_path_factory.mktemp("model"))
    with server_of(settings_in(home, model)) as server:
        yield server


def test_loads_count_every_image_once_and_compare_them(server: Server) -> None:
    loads = {clients: closed_loop(server.url, clients, calls(12)) for clients in (1, 5)}
    assert [len(load.seconds) for load in loads.values()] == [12, 12]
    assert serving.differing(loads) == 0
    prompt, seed, png = loads[5].pngs[0]
    loads[5].pngs[0] = (prompt, seed, png + b"x")
    assert serving.differing(loads) == 1
    report = poisson(server.url, 40.0, calls(8)).figures()
    assert report["images"] == 8 and report["failed"] == 0 and report["p50_ms"] <= report["p99_ms"]


def test_a_failed_call_counts(server: Server) -> None:
    assert closed_loop(server.url, 2, [("<begin_of_image>", 1), ("a cat", 1), ("a cat", 2)]).failed == 1


def test_a_refused_call_is_made_again() -> None:
    answers = [429, 429, 200]

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(answers.pop(0))
            self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(b"\x89PNG")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as refusing:
        Thread(target=refusing.serve_forever, daemon=True).start()
        load = closed_loop(f"http://127.0.0.1:{refusing.server_port}", 1, calls(1))
        refusing.shutdown()
    assert (len(load.seconds), load.refused, load.failed, answers) == (1, 2, 0, [])


def test_a_rate_is_that_of_the_time_asked_for() -> None:
    ends = [50.0, *(60.0 + n / 10 for n in range(1, 200)), *range(90, 99)]
    assert Load(ends=ends).rate(12.0, 22.0) == pytest.approx(10.0, rel=0.02)


def test_an_image_of_another_version_is_found() -> None:
    torch.set_num_threads(1)
    model = load_model(str(EMBEDDED), "cpu", "float32")
    base = model.base_codebook()
    tokens = model.draw([ImageRequest("a cat", model.facts.sampling(1), base)])

    def png(drawn_with: int, named: str) -> bytes:
        image = to_bytes(model.decode(tokens, swap.signed(base, drawn_with).pixel))[0]
        return encode_png(image, {"codebook": named})

    right, mixed = [("a cat", 1, png(2, "v3"))], [("a cat", 1, png(2, "v4"))]
    assert swap.wrong(Load(pngs=right), base, partial(swap.table_of, base)) == 0
    assert swap.wrong(Load(pngs=right + mixed), base, partial(swap.table_of, base)) == 1


def test_flips_are_measured_on_a_real_store(tmp_path: Path) -> None:
    base = load_model(str(tiny_model(tmp_path / "model")), "cpu", "float32").base_codebook()
    store = CodebookStore(tmp_path / "store")
    store.initialise(base, {})
    for number in range(2):
        store.publish(
            swap.signed(base, number),
            parent="v0",
            job=f"swap-{number}",
            round=1,
            figures={},
            gates={},
            report={},
            fence=1,
        )
    assert len(swap.flips(tmp_path / "store", 6)) == 4


def test_another_model_gets_pages_of_its_own() -> None:
    assert serving.Subject().page == "serving"
    assert serving.Subject("random:janus-pro-1b", "cuda").page == "serving-janus-pro-1b"
    assert serving.Subject("deepseek-community/Janus-Pro-7B", "cuda").page == "serving-Janus-Pro-7B"


def test_the_baseline_and_the_steps_take_any_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch, "small")
    monkeypatch.setitem(steps.WIDTHS, "cpu", (1, 2))
    folder = str(tiny_model(tmp_path))
    for name in (folder, f"{PREFIX}small"):
        assert steps.work_of(name).weights > steps.work_of(name).kv_numbers > 0
    for name in (folder, f"{PREFIX}small"):
        drawn = baseline.Generator(name, torch.device("cpu"), 2, compiled=False).draw("a cat")
        assert drawn.startswith(b"\x89PNG")
    costs = steps.step_costs(folder, "cpu")
    assert [cost["images"] for cost in costs] == list(steps.WIDTHS["cpu"])
    assert all(0.0 < cost["floor_ms"] < cost["step_ms"] for cost in costs)


def test_each_family_s_geometry_is_drawn_beside_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    monkeypatch.setitem(anole.GEOMETRIES, "anole-7b", (tiny_anole.TEXT, tiny_anole.VQ))
    monkeypatch.setitem(emu3.GEOMETRIES, "emu3", (tiny_emu3.TEXT, tiny_emu3.VQ))
    monkeypatch.setattr(emu3, "IMAGE_SIZE", 2 * tiny_emu3.SIDE)
    monkeypatch.setattr(geometries, "machine", lambda device, dtype: (1e11, 1e12))
    gemma = {**tiny_liquid.TEXT, "hidden_act": "gelu_pytorch_tanh"}
    monkeypatch.setitem(liquid.GEOMETRIES, "liquid-7b", (gemma, tiny_anole.VQ))
    sizes = vila_u.Geometry(tiny_vila_u.TEXT, tiny_vila_u.SIGLIP, tiny_vila_u.TOWER)
    monkeypatch.setitem(vila_u.GEOMETRIES, "vila-u-7b", sizes)
    names = ["random:anole-7b", "random:emu3", "random:liquid-7b", "random:vila-u-7b"]
    geometries.main(["--device", "cpu", "--models", ",".join(names)])
    report = json.loads((tmp_path / "geometries-cpu.json").read_text())
    assert [row["model"] for row in report["paper"]] == [row["model"] for row in report["measured"]] == names
    assert [row["steps"] for row in report["paper"]] == [16, 19, 16, 16]
    assert all(row["image s"] > row["floor s"] > 0 and row["codes"] > 1 for row in report["measured"])
    monkeypatch.setattr(geometries, "MOST_S", -1.0)
    assert geometries.run("cpu", names[:1])["left_out"] == names[:1]


def test_a_step_s_work_is_that_of_its_weights() -> None:
    """Of Janus-Pro-7B: 30 layers of 4 H^2 + 3 H I, a head of H M + M K, and keys and values of 30 layers."""
    work = steps.work_of("random:janus-pro-7b")
    layers = 30 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert work.weights == pytest.approx(layers + 4096**2 + 4096 * 16384, rel=1e-3)
    assert work.kv_numbers == 2 * 30 * 4096
    assert geometries.floor_s(work, 576, 4.8e12) == pytest.approx(1.52, abs=0.01)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_results_are_written_as_json_a_page_and_a_picture(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = serving.Subject("embedded", device)
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    load = Load(seconds=[0.1, 0.2, 0.4], took_s=1.0).figures()
    report = {
        name: {
            "closed": dict.fromkeys(subject.loads.closed[name], load),
            "poisson": {} if name == "a" else dict.fromkeys(subject.loads.shares, load),
            "memory_mb": 100.0,
            "device_memory_mb": 0.0,
            "differing_images": 0,
        }
        for name in ("a", "b", "c")
    }
    costs = [{"images": 1, "step_ms": 2.0, "image_ms": 128.0, "floor_ms": 1.0, "share_of_floor": 0.5}]
    page = serving.page(report, costs, results.circumstances(), "serving")
    results.write("serving", report, page, serving.picture(report, costs))
    assert {path.name for path in tmp_path.iterdir()} == {"serving.json", "serving.md", "serving.png"}
    assert ("| throughput of c over a, 8 callers | 1 |" in page) == (device == "cpu")
    assert "| throughput of c over b, 32 callers | 1 |" in page
    assert ("| latency of b over c, Poisson at 95%, p50 | 1 |" in page) == (device == "cpu")


def test_a_version_is_resident_from_the_first_time_on(tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    lines = [("10:00:01,250", 1), ("10:00:01,350", 2), ("10:09:00,000", 1)]
    log.write_text(
        "".join(
            f"2026-11-26 {when} app.background.store_watcher codebook v{n} is active, epoch {n}\n" for when, n in lines
        ),
        encoding="utf-8",
    )
    times = swap.resident_times(log)
    assert times.keys() == {"v1", "v2"}
    assert times["v2"] - times["v1"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("status", "form", "text", "kind"),
    [
        (200, "image/png", "\x89PNG", "200 image/png"),  # cut short
        (200, "text/event-stream", 'event: image\ndata: {"index": 0}\n\n', "200 image"),
        (200, "text/event-stream", 'event: image\ndata: {"index": 0}', "200 text/event-stream"),  # cut short
        (200, "text/event-stream", 'event: image\ndata: {"score": NaN, }\n\n', "200 text/event-stream"),
        (200, "text/event-stream", 'event: error\ndata: {"detail": "ends"}\n\n', "503 problem"),
        (503, "application/problem+json", '{"type": "", "title": "", "status": 503, "detail": ""}', "503 problem"),
        (503, "application/problem+json", '{"type": ""}', "503 incomplete problem"),
        (500, "text/plain", "Internal Server Error", "500 text/plain"),
    ],
)
def test_an_answer_is_known_by_what_it_is(status: int, form: str, text: str, kind: str) -> None:
    headers = {"content-type": f"{form}; charset=utf-8", "retry-after": "1"}
    assert kind_of(httpx2.Response(status, headers=headers, text=text)) == kind


def test_what_is_lost_or_damaged_is_counted(tmp_path: Path) -> None:
    store, journal = CodebookStore(tmp_path / "store"), Journal(tmp_path / "jobs")
    base = load_model("embedded", "cpu", "float32").base_codebook()
    store.initialise(base, {})
    job = journal.create("improve", {}).id
    journal.begin_attempt(job)
    rounds = []
    for number in range(1, ROUNDS + 1):
        draft = replace(base, pixel=base.pixel.roll(number, 0))
        manifest = store.publish(draft, parent="v0", job=job, round=number, figures={}, gates={}, report={}, fence=1)
        rounds.append({"round": number, "version": manifest.version})
    journal.update(job, status="finished", rounds=rounds)

    def counted(accepted: list[str]) -> dict[str, int]:
        report = chaos.outcome(tmp_path, accepted, Tally())
        return {name: count for name, count in report.items() if count and name.split()[-1] in ("lost", "damaged")}

    assert counted([job]) == {}
    assert counted([job, "0" * 24]) == {"jobs lost": 1}
    (tmp_path / "store" / "versions" / "v2" / "codebook.safetensors").write_bytes(b"")
    assert counted([job]) == {"versions damaged": 1}
    (tmp_path / "store" / "versions" / "v2").rename(tmp_path / "v2")
    assert counted([job]) == {"versions lost": 1}


def test_outcomes_are_counted_by_line() -> None:
    cases = [
        ('<property name="fault" value="F01"/><property name="fault" value="F02"/>', ""),
        ('<property name="fault" value="F01"/>', "<failure/>"),
        ('<property name="fault" value="F02"/>', "<skipped/>"),
        ('<property name="other" value="F03"/>', ""),
    ]
    report = "".join(f'<testcase time="0.5"><properties>{notes}</properties>{end}</testcase>' for notes, end in cases)
    rows = chaos.by_line(ElementTree.fromstring(f"<testsuite>{report}</testsuite>"))
    assert rows == [
        {"line": "F01", "tests": 2, "passed": 1, "failed": 1, "skipped": 0, "s": 1.0},
        {"line": "F02", "tests": 2, "passed": 1, "failed": 0, "skipped": 1, "s": 1.0},
    ]


def moved(epoch: int, by: str = KEY) -> dict[str, Any]:
    """A record of the audit."""
    return {"epoch": epoch, "version": f"v{epoch}", "previous": f"v{epoch - 1}", "moved_by": by, "move": "activate"}


def acknowledged(record: dict[str, Any]) -> Call:
    return Call(0, 0.0, 0.0, 200, record, record["epoch"], "")


def test_forks_gaps_and_lost_moves_are_counted() -> None:
    records = [moved(0, "initialise"), *map(moved, (1, 2, 3))]
    calls = [acknowledged(record) for record in records[1:]]
    refused = Call(0, 0.0, 0.0, 409, None, 0, "nothing to roll back to: no version was active before v0")

    def counted(audit: list[dict[str, Any]], calls: list[Call]) -> dict[str, int]:
        return {name: count for name, count in compare(audit, calls).items() if count and name != "moves"}

    assert counted(records, [*calls, refused]) == {}
    assert counted(records, [*calls, Call(0, 0.0, 0.0, 503, None, 0, "away")]) == {"failed calls": 1}
    assert counted(records, [*calls, acknowledged({**moved(3), "version": "v9"})]) == {"forks": 1, "lost": 1}
    assert counted(records[:-1], calls) == {"lost": 1}
    assert counted(records, calls[:-1]) == {"not acknowledged": 1}
    gap = {"forks": 1, "gaps in the epochs": 1}
    assert counted([*records[:2], records[3]], [calls[0], calls[2]]) == gap


def test_the_last_server_that_follows_counts(tmp_path: Path) -> None:
    logs = [tmp_path / f"server-{n}.log" for n in range(2)]
    for log in logs:
        log.write_text("2026-11-29 10:00:00,000 app.background.store_watcher codebook v9 is active, epoch 9\n")
    followers = Followers(logs)
    line = "2026-11-30 10:00:0{},500 app.background.store_watcher codebook v2 is active, epoch 2\n"
    logs[0].write_text(logs[0].read_text() + line.format(1))
    assert not followers.are_at(2)
    logs[1].write_text(logs[1].read_text() + line.format(3) + "2026-11-30 10:00:04")  # a line on its way
    assert followers.are_at(1) and followers.are_at(2) and not followers.are_at(3)
    answered = datetime.fromisoformat("2026-11-30T10:00:03").timestamp()
    made = replace(acknowledged(moved(1)), done=answered)
    assert followers.lags([made]) == pytest.approx([0.5])
    followers.note(1, answered + 0.2, 1)
    assert followers.lags([made]) == pytest.approx([0.2])


def test_an_image_of_another_version_than_the_header_names_is_found() -> None:
    pair = ("a cat", 1)
    drawn = Drawn({("v1", pair): b"one", ("v2", pair): b"two"})
    for status, version, png in ((200, "v1", b"one"), (200, "v2", b"one"), (200, "v3", b"one"), (503, "", b"away")):
        drawn.take(httpx2.Response(status, headers={"X-Codebook-Version": version}, content=png), pair)
    assert (drawn.count, drawn.mixed, drawn.failed) == (4, 2, 1)


def test_a_line_can_be_cut_and_loses_answers_of_creates_alone() -> None:
    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            puts.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    puts: list[str] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        line = Line(server.server_port)
        line.faulty = 1.0
        assert httpx2.put(f"{line.url}/write", content=b"1").status_code == 200
        line.fault_kinds = (NEVER,)
        with pytest.raises(httpx2.TimeoutException):
            httpx2.put(f"{line.url}/create", content=b"1", headers={"If-None-Match": "*"}, timeout=0.5)
        assert (puts, line.faults, line.creates) == (["/write", "/create"], {NEVER: 1}, 1)
        line.cut = True
        with pytest.raises(httpx2.TransportError):
            httpx2.put(f"{line.url}/write", content=b"1")
        line.close()
        server.shutdown()


def test_the_page_of_the_machines_names_what_is_missed() -> None:
    phases = {
        "answers": dict.fromkeys(
            ("applied twice", "forks", "lost", "gaps in the epochs", "rounds not published once"), 0
        )
        | {"faults": {NEVER: 3}, "seconds of a call": {"p50": 0.25}}
    }
    assert scale.missed(phases) == []
    phases["answers"]["applied twice"] = 2
    assert scale.missed(phases) == ["answers: moves applied twice: 2"]
    page = scale.page(results.circumstances(), phases)
    assert "| answers | moves applied twice | 0 | 2 | NO |" in page and f"| faults | {NEVER} 3 |" in page


def test_a_server_is_measured_beside_neighbours(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SECONDS", 0.3)
    monkeypatch.setattr(neighbours, "SETTLED_S", 0.1)
    with neighbours.neighbours(2):
        beside = [p for p in psutil.Process().children() if neighbours.LOOP in p.cmdline()]
        assert len(beside) == 2
    assert not any(process.is_running() for process in beside)
    rows = neighbours.figures([neighbours.stretch(server.url, 2, count) for count in (0, 1)])
    assert [row["neighbours"] for row in rows] == [0, 1] and all(row["failed"] == 0 for row in rows)
    assert rows[0]["images/s, of those alone"] == 1.0 < 10 * rows[1]["images/s, of those alone"]
    assert "| 2 | 1 |" in "".join(neighbours.page(results.circumstances() | {"cores": 2, "rows": rows}))


def test_a_job_and_callers_are_measured_alone_and_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []

    class Jobs(BaseHTTPRequestHandler):
        """Images, and jobs that end at every fifth look."""

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(json.dumps(job(None)).encode() if self.path == "/improve" else b"\x89PNG")

        def do_GET(self) -> None:
            looks.append(self.path)
            self._answer(json.dumps(job(None if len(looks) % 5 else "2026-11-30T10:01:30Z")).encode())

        def _answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    def job(ended: str | None) -> dict[str, Any]:
        known = {"created": "2026-11-30T10:00:00Z", "links": {"self": "/jobs/1"}, "plan": {"images_done": 9}}
        return {**known, "ended": ended, "status": ended and "finished", "result": {"reason": "accepted"}}

    monkeypatch.setattr(beside, "POLL_S", 0.01)
    monkeypatch.setattr(beside, "ALONE_S", 0.5)
    with ThreadingHTTPServer(("127.0.0.1", 0), Jobs) as jobs:
        Thread(target=jobs.serve_forever, daemon=True).start()
        with httpx2.Client(base_url=f"http://127.0.0.1:{jobs.server_port}") as http:
            parts = {name: beside.kept(tmp_path, name, http) for name in beside.PARTS}
            again = {name: beside.kept(tmp_path, name, http) for name in beside.PARTS}
        jobs.shutdown()
    assert again == parts and looks == ["/jobs/1"] * 10
    assert parts["together"]["calls"] > 0 and parts["together"]["s"] == 90.0
    parts["together"] |= {"s": 270.0, "p50_ms": 300.0}
    parts["callers before"]["p50_ms"] = parts["callers after"]["p50_ms"] = 200.0
    page = "\n".join(beside.page(parts))
    assert "| job | 3 | 3 |" in page and "| call, p50 | 1.5 | 1.5 |" in page


def test_lookahead_is_measured_beside_one_token_a_step(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(str(tiny_model(tmp_path_factory.mktemp("model"))), "cpu", "float32")
    monkeypatch.setattr(lookahead, "WINDOWS", {1: (1, 4)})
    monkeypatch.setattr(lookahead, "CALLERS", {2: 4})
    monkeypatch.setattr(lookahead, "ROUNDS", 1)
    costs, loops, equal = lookahead.step_costs(model), list(lookahead.loops(model)), lookahead.differing(model, 4)
    assert costs[0]["time / window 1"] == 1.0 and costs[0]["steps"] == model.facts.tokens >= costs[1]["steps"]
    assert loops[0]["latency, ratio"] > 0 and not any(equal.values())
    around = results.circumstances()
    everything = {"circumstances": around, "requests": 4, "steps": costs, "callers": loops, "differing": equal}
    assert any("| 1 | 4 |" in line for line in lookahead.page(everything))
