"""The journal: whole records, legal moves, one improve job at a time, stale attempts fenced off."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from core.errors import BadInput, Conflict, NotFound, SafeCBError
from records.jobs.job import Status
from records.journal import Journal
from tests.support.racing import race

STATUSES: tuple[Status, ...] = get_args(Status)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "jobs")


def job_in(journal: Journal, status: Status) -> str:
    """Return the id of a new job brought to `status` by legal moves."""
    id = journal.create("evaluate", {}).id
    if status != "queued":
        journal.begin_attempt(id)
    if status not in ("queued", "running"):
        journal.update(id, status=status)
    return id


def test_a_new_job_is_queued_and_reads_back_equal(journal: Journal) -> None:
    record = journal.create("improve", {"prompts": ["a knife"], "seed": 3})
    assert (record.status, record.attempt, record.rounds, record.result) == ("queued", 0, [], None)
    assert (record.started, record.ended, record.error, record.cancel_requested) == (None, None, None, False)
    assert record.progress == {"phase": "queued", "done": 0, "total": 0, "round": 0, "message": ""}
    assert Journal(journal.path(record.id).parent.parent).get(record.id) == record


def test_a_whole_life_is_written_down(journal: Journal) -> None:
    id = journal.create("improve", {}).id
    attempt = journal.begin_attempt(id)
    started = journal.get(id).started
    progress = {"phase": "pairs", "done": 3, "total": 8, "round": 1, "message": "drawing"}
    journal.update(id, attempt=attempt, progress=progress, rounds=[{"round": 1, "accepted": True}])
    journal.update(id, attempt=attempt, status="finished", result={"version": "v1"})
    record = journal.get(id)
    assert (record.status, record.result, record.progress) == ("finished", {"version": "v1"}, progress)
    assert started is not None
    assert record.started == started
    assert record.ended is not None
    assert record.created <= started <= record.ended


def test_jobs_are_listed_newest_first(journal: Journal) -> None:
    assert journal.list() == []
    created = [journal.create("evaluate", {"n": n}) for n in range(5)]
    assert journal.list() == created[::-1]


@pytest.mark.parametrize("id", ["", ".", "..", "../jobs", "0" * 24, "0" * 23 + "/", "x" * 24, ".new", "0" * 24 + "\n"])
def test_an_unknown_id_is_not_found_and_never_a_path(journal: Journal, id: str) -> None:
    journal.create("evaluate", {})
    calls: list[Callable[[], object]] = [
        lambda: journal.get(id),
        lambda: journal.path(id),
        lambda: journal.events(id, 0),
        lambda: journal.append_event(id, {}),
        lambda: journal.begin_attempt(id),
        lambda: journal.update(id, error="x"),
    ]
    for call in calls:
        with pytest.raises(NotFound):
            call()


@pytest.mark.parametrize("start", STATUSES)
@pytest.mark.parametrize("end", STATUSES)
def test_only_legal_moves_of_the_status(journal: Journal, start: Status, end: Status) -> None:
    legal = {
        "queued": {"queued", "running", "failed", "cancelled"},
        "running": {"running", "finished", "failed", "cancelled"},
    }
    id = job_in(journal, start)
    before = journal.get(id)
    if end in legal.get(start, set()):
        assert journal.update(id, status=end).status == end
    else:
        with pytest.raises(Conflict):
            journal.update(id, status=end)
        assert journal.get(id) == before


@pytest.mark.parametrize("status", ["finished", "failed", "cancelled"])
def test_a_job_that_has_ended_never_changes(journal: Journal, status: Status) -> None:
    id = job_in(journal, status)
    before = journal.get(id)
    with pytest.raises(Conflict, match=status):
        journal.update(id, cancel_requested=True)
    with pytest.raises(Conflict, match=status):
        journal.begin_attempt(id)
    assert journal.get(id) == before


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "0" * 24},
        {"attempt_": 1},
        {"started": "now"},
        {"status": "done"},
        {"status": None},
        {"progress": []},
        {"progress": {"done": math.nan}},
        {"rounds": [1]},
        {"rounds": {}},
        {"result": "v1"},
        {"result": {"value": object()}},
        {"error": 3},
        {"cancel_requested": 1},
    ],
)
def test_a_bad_change_is_refused_and_nothing_is_written(journal: Journal, changes: dict[str, Any]) -> None:
    id = job_in(journal, "running")
    before = journal.get(id)
    with pytest.raises(BadInput):
        journal.update(id, **changes)
    assert journal.get(id) == before


@pytest.mark.parametrize("request_", [{"x": math.inf}, {"x": object()}, {"x": {1, 2}}])
def test_a_request_that_is_not_json_makes_no_job(journal: Journal, request_: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        journal.create("improve", request_)
    assert journal.list() == []


def test_a_stale_attempt_cannot_write(journal: Journal) -> None:
    id = journal.create("improve", {}).id
    old, new = journal.begin_attempt(id), journal.begin_attempt(id)
    assert (old, new) == (1, 2)
    with pytest.raises(Conflict, match="stale"):
        journal.update(id, attempt=old, status="finished", result={"version": "v1"})
    assert journal.get(id).status == "running"
    journal.update(id, attempt=new, status="finished", result={"version": "v1"})


def test_anyone_may_ask_for_cancel_without_an_attempt(journal: Journal) -> None:
    id = job_in(journal, "running")
    assert journal.update(id, cancel_requested=True).cancel_requested


@pytest.mark.parametrize("status", ["queued", "running"])
def test_a_second_improve_job_is_refused_by_the_name_of_the_first(journal: Journal, status: Status) -> None:
    first = journal.create("improve", {})
    if status == "running":
        journal.begin_attempt(first.id)
    with pytest.raises(Conflict, match=first.id):
        journal.create("improve", {})
    running = journal.running()
    assert running is not None
    assert running.id == first.id
    journal.create("evaluate", {})  # another kind is not in its way


@pytest.mark.parametrize("status", ["failed", "cancelled"])
def test_the_next_improve_job_may_come_when_the_first_has_ended(journal: Journal, status: Status) -> None:
    first = journal.create("improve", {})
    journal.update(first.id, status=status)
    assert journal.running() is None
    assert journal.create("improve", {}).id != first.id


def test_events_are_numbered_and_read_from_any_point(journal: Journal) -> None:
    id = job_in(journal, "running")
    assert journal.events(id, 0) == []
    assert [journal.append_event(id, {"kind": "note", "text": "a\nb"}) for _ in range(3)] == [1, 2, 3]
    assert [event["id"] for event in journal.events(id, 0)] == [1, 2, 3]
    assert [event["id"] for event in journal.events(id, 2)] == [3]
    assert journal.events(id, 3) == journal.events(id, 99) == []
    assert len(journal.events(id, -5)) == 3
    assert journal.events(id, 0)[0]["text"] == "a\nb"


def test_an_event_torn_by_a_crash_never_counts(journal: Journal) -> None:
    id = job_in(journal, "running")
    journal.append_event(id, {"n": 1})
    with (journal.path(id).parent / "events.jsonl").open("ab") as log:
        log.write(b'{"n": 2, "id": 2, "te')
    assert [event["n"] for event in journal.events(id, 0)] == [1]
    assert journal.append_event(id, {"n": 3}) == 2
    assert [event["n"] for event in journal.events(id, 0)] == [1, 3]


@pytest.mark.parametrize("event", [{"x": math.nan}, {"x": object()}])
def test_an_event_that_is_not_json_is_refused(journal: Journal, event: dict[str, Any]) -> None:
    id = job_in(journal, "running")
    with pytest.raises(BadInput):
        journal.append_event(id, event)
    assert journal.events(id, 0) == []


@pytest.mark.parametrize("damage", ["", "{", "[]", "{}", '{"id": 1}', "null", "\udcff"])
def test_a_damaged_record_is_reported_and_hides_no_other(journal: Journal, damage: str) -> None:
    good, bad = job_in(journal, "running"), job_in(journal, "running")
    (journal.path(bad).parent / "record.json").write_bytes(damage.encode(errors="surrogateescape"))
    with pytest.raises(SafeCBError, match="damaged"):
        journal.get(bad)
    assert [record.id for record in journal.list()] == [good]


def test_what_crashes_leave_behind_is_no_job_and_in_nobodys_way(journal: Journal) -> None:
    job = journal.create("evaluate", {})
    root = journal.path(job.id).parent.parent
    (root / ".new" / "work").mkdir(parents=True)
    (root / ".new" / "record.json").write_text("{half")
    (root / job.id / ".record.json.tmp").write_text("{half")
    assert journal.list() == [job]
    journal.begin_attempt(job.id)
    journal.create("improve", {})
    assert len(journal.list()) == 2
    assert not (root / ".new").exists()


def test_the_work_folder_is_the_jobs_own(journal: Journal) -> None:
    one, other = job_in(journal, "queued"), job_in(journal, "queued")
    (journal.path(one) / "pairs.json").write_text("{}")
    assert list(journal.path(other).iterdir()) == []


def _create(root: Path) -> str:
    return Journal(root).create("improve", {}).id


def _begin(root: Path, id: str) -> list[int]:
    return [Journal(root).begin_attempt(id) for _ in range(20)]


def _append(root: Path, id: str, who: int) -> None:
    for n in range(20):
        Journal(root).append_event(id, {"who": who, "n": n})


def _write_or_read(root: Path, id: str, writer: bool) -> None:
    journal = Journal(root)
    for n in range(100):
        if writer:
            journal.update(id, progress={"n": n, "filler": "x" * 5000 * (n % 7)})
        else:
            assert journal.get(id).kind == "evaluate"


def test_of_many_processes_one_creates_the_improve_job(journal: Journal, tmp_path: Path) -> None:
    results = race(_create, [(tmp_path / "jobs",)] * 4)
    assert sorted(result == "Conflict" for result in results) == [False, True, True, True]
    assert len(journal.list()) == 1


def test_no_two_processes_get_the_same_attempt(journal: Journal, tmp_path: Path) -> None:
    id = journal.create("improve", {}).id
    results = race(_begin, [(tmp_path / "jobs", id)] * 4)
    assert sorted(attempt for result in results for attempt in result) == list(range(1, 81))


def test_events_of_many_processes_all_arrive_in_order(journal: Journal, tmp_path: Path) -> None:
    id = journal.create("improve", {}).id
    race(_append, [(tmp_path / "jobs", id, who) for who in range(3)])
    events = journal.events(id, 0)
    assert [event["id"] for event in events] == list(range(1, 61))
    for who in range(3):
        assert [event["n"] for event in events if event["who"] == who] == list(range(20))


def test_a_reader_never_sees_half_a_record(journal: Journal, tmp_path: Path) -> None:
    id = journal.create("evaluate", {}).id
    race(_write_or_read, [(tmp_path / "jobs", id, writer) for writer in (True, False, False)])


def test_a_record_on_disk_is_json_of_all_its_fields(journal: Journal) -> None:
    record = journal.create("improve", {"text": "größer"})
    raw = json.loads((journal.path(record.id).parent / "record.json").read_bytes())
    assert replace(record, **raw) == record
