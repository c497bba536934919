"""Niceness of a worker and of a job's session: the share beside a drawing thread, and beside other sessions."""

from __future__ import annotations

import subprocess
import sys

import pytest

from core.settings import SHARES
from core.wire import NICE
from worker.niceness import AUTOGROUP, STEP, niceness, session_niceness


@pytest.mark.parametrize("share", [0.12, 0.2, 0.25, 0.33, 0.5, 0.75, 0.9])
def test_the_weights_give_the_share(share: float) -> None:
    job, drawing = STEP ** -niceness(share), STEP**-NICE
    assert job / (job + drawing) == pytest.approx(share, abs=0.03)


def test_the_limits_of_the_setting_are_those_of_nice() -> None:
    assert [niceness(share) for share in SHARES] == [19, 0]
    assert (niceness(0.25), niceness(0.5)) == (15, NICE)


@pytest.mark.parametrize("share", [0.12, 0.2, 0.25, 0.33, 0.5])
def test_the_weights_of_sessions_give_the_share(share: float) -> None:
    job = STEP ** -session_niceness(share)
    assert job / (job + 1) == pytest.approx(share, abs=0.03)


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="needs a kernel with autogroups")
@pytest.mark.parametrize(("share", "group"), [(0.25, "True nice 5"), (0.5, "True nice 0"), (0.75, "False")])
def test_a_job_process_takes_a_session_of_its_own_with_its_weight(share: float, group: str) -> None:
    # The file is empty for a session that init started before there were autogroups.
    own = "print(os.getsid(0) == os.getpid(), *AUTOGROUP.read_text().split()[1:])"
    code = f"import os; from worker.niceness import AUTOGROUP, take_session; take_session({share}); {own}"
    # As RQ starts it: the leader of a process group, which the kernel lets into no other session.
    process = [sys.executable, "-c", code]
    assert subprocess.run(process, capture_output=True, text=True, check=True, process_group=0).stdout.startswith(group)
