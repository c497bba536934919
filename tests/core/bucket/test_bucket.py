"""Bucket against a real S3 server: one creator an object, one order of records, whatever the line does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from core.bucket import log
from core.bucket.bucket import Bucket
from core.bucket.log import Log
from core.bucket.race import check_races
from core.errors import BadSetting, NoBucket
from tests.support.servers.s3 import S3, Line


@pytest.fixture
def bucket(s3: S3, line: Line) -> Bucket:
    return Bucket(s3.bucket())


def test_an_object_is_created_once_and_its_creator_knows_itself(bucket: Bucket) -> None:
    assert bucket.read("a/b") is None
    assert bucket.create("a/b", b"one")
    assert bucket.create("a/b", b"one")  # again the same bytes: they are there
    assert not bucket.create("a/b", b"two")
    assert bucket.read("a/b") == b"one"
    assert list(bucket.names("a/")) == ["b"] and bucket.folders("") == ["a"]
    bucket.delete("a/b")
    assert bucket.read("a/b") is None


def test_a_large_object_comes_back(bucket: Bucket) -> None:
    data = bytes(range(256)) * (1 << 15)  # 8 MiB
    assert bucket.create("large", data) and bucket.read("large", is_large=True) == data


def test_a_server_that_ignores_the_condition_is_refused_by_name(bucket: Bucket, line: Line) -> None:
    check_races(bucket)
    line.blind()
    with pytest.raises(BadSetting, match=r"SAFECB_STORE.*If-None-Match.*here \d of 9 did") as refused:
        check_races(bucket)
    assert bucket.url in str(refused.value)


def test_a_missing_bucket_and_a_cut_line_are_named(bucket: Bucket, line: Line) -> None:
    with pytest.raises(NoBucket, match="there is no such bucket") as missing:
        Bucket("s3://no-such-bucket/x").create("a", b"a")
    assert missing.value.state == "missing"
    line.cut = True
    for use_of in (lambda: bucket.read("a"), lambda: bucket.create("a", b"a"), lambda: bucket.names("a/")):
        with pytest.raises(NoBucket, match="does not answer") as away:
            use_of()
        assert away.value.state == "unreachable"


def test_patience_outlasts_a_cut(s3: S3, line: Line) -> None:
    bucket = Bucket(s3.bucket(), patience=30)
    line.cut = True
    with ThreadPoolExecutor() as pool:
        creation = pool.submit(bucket.create, "a", b"a")
        assert not creation.done()
        line.cut = False
        assert creation.result()


def test_many_writers_make_one_order_though_answers_are_lost(s3: S3, line: Line) -> None:
    url, writers, each = s3.bucket(), 4, 25
    line.lost = 0.1

    def write(writer: int) -> list[int]:
        own, numbers = Log(Bucket(url, patience=60), "moves"), []
        for count in range(each):
            while not own.append(number := _next(own), {"writer": writer, "count": count}):
                pass
            numbers.append(number)
        return numbers

    with ThreadPoolExecutor(writers) as pool:
        numbers = list(pool.map(write, range(writers)))
    line.lost = 0.0
    records = Log(Bucket(url), "moves").all()
    assert len(records) == writers * each
    for writer, own in enumerate(numbers):  # each has what it believes to have written, once, in its order
        assert [records[number] for number in own] == [{"writer": writer, "count": count} for count in range(each)]


def test_a_log_follows_a_bucket_that_goes_back(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "VERIFY_EVERY_S", 0.0)
    writer, reader = Log(bucket, "moves"), Log(bucket, "moves")
    for number in range(3):
        assert writer.append(number, {"number": number})
    assert reader.last() == (2, {"number": 2})
    bucket.delete("moves/000000000002")
    assert reader.last() == (1, {"number": 1}) and reader.all(0) == [{"number": 1}]


def test_an_empty_log_has_no_last_record(bucket: Bucket) -> None:
    assert Log(bucket, "moves").last() is None and Log(bucket, "moves").all() == []


def _next(own: Log) -> int:
    last = own.last()
    return 0 if last is None else last[0] + 1
