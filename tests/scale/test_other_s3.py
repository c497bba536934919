"""A server that ignores the condition of a create: refused by name, at the start of a store and by the doctor."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.bucket.bucket import Bucket
from core.bucket.race import check_races
from core.errors import BadSetting
from tests.support.servers.other_s3 import rclone
from tests.support.servers.s3 import S3, use


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with rclone() as server:
        yield server


def test_rclone_is_refused_by_name(server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, server.url)
    bucket = Bucket(server.bucket())
    bucket.write("writable", b"{}")
    assert bucket.read("writable") == b"{}"  # a server that works otherwise
    with pytest.raises(BadSetting, match=r"SAFECB_STORE.*If-None-Match.*here \d of 9 did") as refused:
        check_races(bucket)
    assert bucket.url in str(refused.value)
