"""Before anything imports Triton: without a GPU its kernels are interpreted, and that is decided at its import."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.support.supervised import Supervised

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def runs() -> Iterator[list[Supervised]]:
    """The supervisors of a test: each is ended after it."""
    runs: list[Supervised] = []
    yield runs
    for run in runs:
        if run.process.poll() is None:
            run.end(signal.SIGTERM)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write the lines of field reports that a test is marked with into its reports, for who runs tests elsewhere."""
    for item in items:
        item.user_properties += [("fault", line) for mark in item.iter_markers("fault") for line in mark.args]
