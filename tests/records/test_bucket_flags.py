"""Flags in a bucket: several machines have one queue, with the limits and the privacy of one machine's."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from core.bucket.bucket import Bucket
from core.errors import Busy, Conflict, NotFound
from records.bucket_flags import BucketFlags
from records.flags import OPEN_A_CALLER, USED_A_CALLER, Flag
from records.image_log import KeptImage
from tests.support.servers.s3 import S3, use

Machine = Callable[[], BucketFlags]
IMAGE = KeptImage("1", "a knife", "v0", 1, True, "weapons", torch.tensor([1, 2]))


@pytest.fixture
def url(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    use(monkeypatch, s3.url)
    return s3.bucket()


@pytest.fixture
def machine(url: str) -> Machine:
    """Makes the flags of another machine on the one bucket."""
    return lambda: BucketFlags(Bucket(url), hours=1)


def add(flags: BucketFlags, prompt: str = "a knife", caller: str = "somebody", *, review: bool = False) -> Flag:
    return flags.add(replace(IMAGE, prompt=prompt), "weapons", "look", caller, review=review)


def test_a_flag_of_one_machine_is_in_the_list_of_the_other(machine: Machine) -> None:
    one, other = machine(), machine()
    flag = add(one)
    (listed,) = other.list("accepted")
    assert vars(listed) == vars(flag) | {"tokens": listed.tokens}
    assert torch.equal(listed.tokens, IMAGE.tokens) and (listed.prompt, listed.note) == ("a knife", "look")
    assert other.get(flag.id).id == flag.id and other.list("review") == []
    with pytest.raises(NotFound, match="there is no flag 'x'"):
        other.get("x")


def test_the_same_flag_of_a_caller_is_one_and_its_flood_is_refused_everywhere(machine: Machine) -> None:
    one, other = machine(), machine()
    assert add(one).id == add(other, "A  KNIFE").id
    for number in range(OPEN_A_CALLER - 1):
        add((one, other)[number % 2], f"knife {number}")
    with pytest.raises(Busy, match="20 flags of yours are open"):
        add(one, "one more")
    assert add(one, "one more", "another").state == "accepted"


def test_simultaneous_flags_are_all_there(machine: Machine) -> None:
    machines = [machine() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        flags = [*pool.map(lambda n: add(machines[n % 4], f"knife {n}", f"caller {n}"), range(12))]
    assert {flag.id for flag in machine().list()} == {flag.id for flag in flags}


def test_a_flag_is_settled_once(machine: Machine) -> None:
    one, other = machine(), machine()
    flag = add(one, review=True)
    assert other.settle(flag.id, "accepted", "gore").category == "gore"
    assert one.settle(flag.id, "rejected").state == "rejected"
    with pytest.raises(Conflict, match="is rejected"):
        other.settle(flag.id, "accepted")


def test_a_job_takes_flags_once_and_fairly(machine: Machine) -> None:
    server, worker = machine(), machine()
    for number in range(USED_A_CALLER + 2):
        add(server, f"knife {number}")
    add(server, "knife 0", "another")
    taken = worker.take("job")
    assert [flag.prompt for flag in taken] == [f"knife {number}" for number in range(USED_A_CALLER)]
    assert [flag.id for flag in machine().take("job")] == [flag.id for flag in taken]
    assert {flag.state for flag in server.list() if flag.prompt == "knife 0"} == {"used"}
    assert len(server.list("accepted")) == 2 and server.get(taken[0].id).job == "job"


def test_settled_flags_and_their_texts_are_deleted(machine: Machine, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = machine(), machine()
    opened, settled = add(one, "an axe"), add(one)
    other.settle(settled.id, "rejected")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert [flag.id for flag in one.list()] == [opened.id]
    with pytest.raises(NotFound):
        one.get(settled.id)
    other.forget()
    bucket = Bucket(url)
    assert list(bucket.names("flag/")) == [f"{opened.id}.json"]
    log = b"".join(bucket.read(f"flags/{name}") or b"" for name in bucket.names("flags/"))
    assert b"knife" not in log and b"look" not in log
