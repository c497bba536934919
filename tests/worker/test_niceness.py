"""Niceness of a worker: its share beside a drawing thread."""

from __future__ import annotations

import pytest

from core.settings import SHARES
from core.wire import NICE
from worker.niceness import STEP, niceness


@pytest.mark.parametrize("share", [0.12, 0.2, 0.25, 0.33, 0.5, 0.75, 0.9])
def test_the_weights_give_the_share(share: float) -> None:
    job, drawing = STEP ** -niceness(share), STEP**-NICE
    assert job / (job + drawing) == pytest.approx(share, abs=0.03)


def test_the_limits_of_the_setting_are_those_of_nice() -> None:
    assert [niceness(share) for share in SHARES] == [19, 0]
    assert (niceness(0.25), niceness(0.5)) == (15, NICE)
