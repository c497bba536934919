"""Shared fixtures, and the markers of tests by what they need.

Sets TRITON_INTERPRET before anything imports Triton: without a GPU its kernels are interpreted.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.support.servers.s3 import S3, Line
    from tests.support.serving import Server
    from tests.support.supervised import Supervised

NICE = 15
RERUNS = 1  # of a test marked `slow`: where a machine stands still for a while, one wait of 3,000 tests runs out

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# A job runs at niceness 19: beside tests at 0, which keep every core busy, it would get next to nothing.
os.nice(max(0, NICE - os.nice(0)))


SLOW = {  # whole files below tests/: real processes, runs of the loop, interpreted kernels; other tests are marked
    *(f"app/test_{name}.py" for name in ("bad_numbers", "contract", "generate", "images")),
    "app/background/test_judging.py",
    *(f"app/test_{name}.py" for name in ("canary_guard", "live_traffic", "queue")),
    "app/console/test_console.py",
    *(f"app/codebooks/test_{name}.py" for name in ("codebooks", "modes", "shares", "trials")),
    *(f"app/metrics/test_{name}.py" for name in ("metrics", "tracing")),
    *(f"app/http/test_{name}.py" for name in ("connections", "idempotency", "middlewares", "problems", "root_path")),
    *(f"app/access/test_{name}.py" for name in ("key_ring", "keys", "rates")),
    *(f"app/openai/test_{name}.py" for name in ("client", "conformance")),
    *(f"cli/test_{name}.py" for name in ("check", "commands", "demo", "draw", "full_disk", "verify")),
    *(f"cli/test_{name}.py" for name in ("redis_server", "serve", "server", "stops")),
    *(f"app/test_{name}.py" for name in ("flags", "improve", "jobs", "policies")),
    *(f"codebook/test_{name}.py" for name in ("damage", "restore")),
    *(f"safety/judges/test_{name}.py" for name in ("matchers", "named_judges")),
    *(f"safety/policy/test_{name}.py" for name in ("long_files", "plan", "policies")),
    *("app/test_two_machines.py", "codebook/test_bucket_store.py", "worker/test_bucket_worker.py"),
    *("core/bucket/test_bucket.py", "core/bucket/test_shared_folder.py"),
    *("records/test_bucket_flags.py", "records/test_bucket_jobs.py"),
    *(f"docs/test_{name}.py" for name in ("add_a_family", "commands")),
    *(f"engine/families/test_{name}.py" for name in ("anole", "backbones", "contract", "emu3", "liquid", "served")),
    *(f"engine/weights/test_{name}.py" for name in ("files", "names")),
    "engine/test_engine.py",
    "engine/test_linear.py",
    "safety/test_router.py",
    "test_old_home.py",
    "core/test_storage.py",
    *(f"engine/test_{name}.py" for name in ("batch", "embedded", "kernels", "modes", "random_model", "scheduler")),
    *(f"safety/test_{name}.py" for name in ("ablation", "budget", "evaluation", "iteration", "loop", "open_run")),
    *(
        f"worker/test_{name}.py"
        for name in ("family_jobs", "job_plan", "pair_examiner", "shadow_job", "shared_tasks", "worker")
    ),
    "test_benchmarks.py",
    "test_recipes.py",
}
# Files of a minute and more, the longest first: what begins last would keep one worker busy while the others idle.
LONGEST = (
    "worker/test_family_jobs.py",
    *(f"safety/test_{name}.py" for name in ("open_run", "mined_rounds")),
    "worker/test_shared_tasks.py",
    *(f"safety/test_{name}.py" for name in ("evaluation", "loop")),
    *("cli/test_serve.py", "worker/test_worker.py", "worker/test_bucket_worker.py", "app/codebooks/test_trials.py"),
    *("cli/test_full_disk.py", "docs/test_commands.py", "app/test_contract.py", "test_recipes.py"),
    *("cli/test_stops.py", "cli/test_server.py", "codebook/test_store.py", "codebook/test_damage.py"),
)
REDIS_FILES = {"app/test_queue.py", "cli/test_redis_server.py"}
REDIS_FIXTURES = {"address", "house", "redis", "runs"}
GPU_FILES = {"engine/test_gpu.py"}
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model, which the tests of a file share."""
    from tests.support.serving import tiny_model  # here, since it brings torch and the app along

    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Server]:
    """A server of the test's own on the tiny model."""
    from tests.support.serving import serving, settings_in

    with serving(settings_in(tmp_path, model)) as server:
        yield server


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `make test-scale` choose the S3 server."""
    names = ("moto", "ministack", "ceph")
    parser.addoption("--s3", choices=names, default="moto", help="the S3 server of the tests marked `bucket`")


@pytest.fixture(scope="module")
def s3(pytestconfig: pytest.Config) -> Iterator[S3]:
    """An S3 server, which the tests of a file share."""
    from tests.support.servers.other_s3 import SERVERS

    with SERVERS[pytestconfig.getoption("--s3")]() as server:
        yield server


@pytest.fixture
def line(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The line of this process to the S3 server."""
    from tests.support.servers.s3 import Line, use

    line = Line(s3)
    use(monkeypatch, line.url)
    yield line
    line.close()


@pytest.fixture
def runs() -> Iterator[list[Supervised]]:
    """The supervisors of a test: each is ended after it."""
    runs: list[Supervised] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.end(signal.SIGTERM)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by what they need, and add the lines of field reports of `fault` marks to the JUnit report.

    Long files come first, then the slow ones.
    """
    names = {item: item.path.relative_to(TESTS).as_posix() for item in items}
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: (rank.get(names[item], len(rank)), names[item] not in SLOW))
    for item in items:
        name = names[item]
        needs = {
            "slow": name in SLOW,
            "redis": name in REDIS_FILES or not REDIS_FIXTURES.isdisjoint(getattr(item, "fixturenames", ())),
            "gpu": name in GPU_FILES,
            "bucket": "s3" in getattr(item, "fixturenames", ()),
            "scale": name.startswith("scale/"),
        }
        for marker, is_needed in needs.items():
            if is_needed:
                item.add_marker(marker)
        if needs["slow"] or item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.flaky(reruns=RERUNS))
        item.user_properties += [("fault", line) for mark in item.iter_markers("fault") for line in mark.args]
