"""The borders of the house: imports go downhill, and only where the design says."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE = {"app", "worker", "safety", "engine", "codebook", "recipes", "tests", "benchmarks"}
ALLOWED = {
    "codebook": set[str](),
    "engine": {"codebook"},
    "safety": {"codebook", "engine"},
    "worker": {"codebook", "engine", "safety"},
    "app": {"codebook", "engine"},
    "recipes": {"codebook", "engine", "safety"},
}


def imports(source: str, package: str) -> Iterator[str]:
    """Yield the top-level name of each import, at whatever depth of the code, relative ones as `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_downhill(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imports(path.read_text(encoding="utf-8"), package)
        if name in HOUSE - ALLOWED[package] - {package}
    }
    assert not wrong


def test_the_walk_sees_hidden_imports() -> None:
    source = "def f():\n    import worker.jobs as w\n    from safety import loop\n    from . import x\n"
    assert list(imports(source, "app")) == ["worker", "safety", "app"]


def test_the_app_loads_neither_worker_nor_safety() -> None:
    """Dynamic imports too: what a server process has loaded after building an app."""
    script = (
        "import sys, app.factory, app.main, app.server\n"
        "print(sorted({m.partition('.')[0] for m in sys.modules} & {'worker', 'safety', 'recipes'}))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
