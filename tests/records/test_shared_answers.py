"""Answers of several machines on a real Redis: one claim, one answer for all, and what is done without Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from core.errors import BadInput, Conflict
from records import shared_answers as module
from records.answers import Answer, Answers
from records.shared_answers import SharedAnswers
from tests.support.redis_home import own_redis
from tests.support.serving import wait_for

ANSWER = Answer(200, [("content-type", "image/png"), ("x-seed", "7")], b"\x89PNG\xff")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with own_redis() as address:
        yield address


@pytest.fixture
def machines(address: str, tmp_path: Path) -> Iterator[list[SharedAnswers]]:
    with Redis.from_url(address) as redis:
        redis.flushall()
    yield [SharedAnswers(Answers(tmp_path / name), address, "answers-1a") for name in ("one.db", "two.db", "three.db")]


def test_the_first_answer_is_that_of_all(machines: list[SharedAnswers]) -> None:
    one, two, _ = machines
    assert one.begin("k", "r") is None
    for machine in machines:
        with pytest.raises(Conflict):
            machine.begin("k", "r")
    one.keep("k", ANSWER)
    assert one.begin("k", "r") == two.begin("k", "r") == ANSWER
    with pytest.raises(BadInput):
        two.begin("k", "other")
    assert two.begin("other", "r") is None  # and what was refused has left nothing behind
    two.drop("other")
    assert one.begin("other", "r") is None


def test_a_claim_is_renewed_and_that_of_a_dead_machine_expires(machines: list[SharedAnswers], address: str) -> None:
    (one, two, three), redis = machines, Redis.from_url(address)
    assert one.begin("k", "r") is None
    redis.expire("answers-1a:k", 1000)
    two.renew("k")  # not its own
    assert redis.ttl("answers-1a:k") > 900
    one.renew("k")
    assert 0 < redis.ttl("answers-1a:k") <= module.CLAIM_S
    redis.pexpire("answers-1a:k", 1)
    wait_for("it has expired", lambda: not redis.exists("answers-1a:k"))
    assert two.begin("k", "r") is None
    one.keep("k", ANSWER)  # it was not dead: its answer is not that of the others
    one.drop("k")
    with pytest.raises(Conflict):
        three.begin("k", "r")
    redis.close()


def test_redis_keeps_the_newest_answers(
    machines: list[SharedAnswers], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, _ = machines
    monkeypatch.setattr(module, "SHARED_BYTES", 1000)
    for key in "abcdef":
        assert one.begin(key, "r") is None
        one.keep(key, Answer(200, [], b"x" * 150))
    with Redis.from_url(address) as redis:
        kept = {name.decode() for name in redis.keys("answers-1a:?")}
        assert kept == {"answers-1a:e", "answers-1a:f", "answers-1a:d"}
        assert redis.zcard("answers-1a:ages") == 3 and 0 < redis.ttl("answers-1a:ages") <= module.SHARED_S
    assert two.begin("a", "r") is None and one.begin("a", "r") is not None  # in its own file


def test_without_redis_a_request_is_done_once_a_machine(tmp_path: Path) -> None:
    away = SharedAnswers(Answers(tmp_path / "answers.db"), "redis://127.0.0.1:1/0", "answers-1a")
    assert away.begin("k", "r") is None
    away.renew("k")
    away.keep("k", ANSWER)
    assert away.begin("k", "r") == ANSWER
