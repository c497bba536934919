"""Package borders: imports go downhill, and only where the design says; packages ship their types."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "core": set[str](),
    "records": {"core"},
    "codebook": {"core"},
    "engine": {"core", "codebook"},
    "safety": {"core", "codebook", "engine"},
    "worker": {"core", "records", "codebook", "engine", "safety"},
    "app": {"core", "records", "codebook", "engine"},
    "cli": {"core", "records", "codebook", "engine", "safety", "worker", "app"},
    "recipes": {"core", "codebook", "engine", "safety"},
}
# Parts of other packages, text only, that a package may import all the same.
EXCEPTIONS = {"app": ("safety.policy", "safety.judges.grammar")}
HOUSE = {*ALLOWED, "tests", "benchmarks"}
# Floors within a package: the part on the left imports none of those on the right.
FLOORS = {
    "engine/runner": ["engine.scheduler", "engine.families", "engine.registry"],
    "engine/scheduler": ["engine.families", "engine.registry"],
    "engine/families": ["engine.scheduler", "engine.registry"],
    "safety/policy": ["safety.collect", "safety.edit", "safety.gates", "safety.evaluate", "safety.runtime"],
    "safety/judges": ["safety.collect", "safety.edit", "safety.gates", "safety.evaluate", "safety.runtime"],
    "safety/metrics": ["safety.collect", "safety.edit", "safety.gates", "safety.evaluate"],
    "safety/gates": ["safety.collect", "safety.edit", "safety.evaluate", "safety.loop"],
    "safety/collect": ["safety.gates", "safety.evaluate", "safety.loop"],
    "safety/edit": ["safety.evaluate", "safety.loop"],
    "safety/runtime": ["safety.edit", "safety.evaluate", "safety.loop"],
    "app/access": ["app.http", "app.routes", "app.server", "app.factory"],
    "app/http": ["app.routes", "app.server", "app.factory"],
    "app/background": ["app.routes", "app.server", "app.factory"],
    "app/openai": ["app.server", "app.factory"],
}


def imports(source: str, package: str) -> Iterator[str]:
    """Yield the top-level name of each import, at whatever depth of the code, relative ones as `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").partition(".")[0]


def modules(source: str) -> Iterator[str]:
    """Yield the full name of each imported module, and of each name imported from one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_excepted(package: str, module: str) -> bool:
    """Whether a package may import a module by EXCEPTIONS."""
    return any(f"{module}.".startswith(f"{part}.") for part in EXCEPTIONS.get(package, ()))


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_downhill(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    foreign = HOUSE - ALLOWED[package] - {package}
    wrong = set()
    for path in files:
        source = path.read_text(encoding="utf-8")
        excused = {name.partition(".")[0] for name in modules(source) if is_excepted(package, name)}
        barred = {name for name in modules(source) if not is_excepted(package, name)}
        names = set(imports(source, package)) - excused | {name.partition(".")[0] for name in barred}
        wrong |= {(str(path.relative_to(ROOT)), name) for name in names & foreign}
    assert not wrong


@pytest.mark.parametrize("folder", FLOORS)
def test_folders_import_only_floors_below(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    pairs = {(str(path.relative_to(ROOT)), name) for path in files for name in modules(path.read_text("utf-8"))}
    assert not {(path, name) for path, name in pairs for floor in FLOORS[folder] if f"{name}.".startswith(f"{floor}.")}


FAMILIES = ROOT / "engine" / "families"
# Of a model's parts: whoever asks for them knows a family. Judges, which load classes of their own, are not served.
CLASSES = ("transformers", "torch.nn", "engine.families", "engine.unified")


def family_marks(source: str, words: Iterable[str]) -> Iterator[str]:
    """Yield the code in which a family is known: a name or text with one of the words, an isinstance of CLASSES.

    Docstrings and comments may name families.
    """
    tree, origins = ast.parse(source), dict[str, str]()
    nodes = list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            origins |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        held = [getattr(node, field, None) for field in ("id", "attr", "name", "asname", "arg", "module")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            held.append(node.value)
        for text in held:
            if isinstance(text, str) and any(word in text.lower().replace("-", "_") for word in words):
                yield text
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            names = {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
            if any(f"{origins.get(name, '')}.".startswith(f"{place}.") for name in names for place in CLASSES):
                yield ast.unparse(node)


def family_words() -> list[str]:
    words = [path.name for path in FAMILIES.iterdir() if (path / "__init__.py").exists()]
    assert {"janus", "emu3", "vila_u"} <= set(words)
    return [*words, "chameleon"]


def test_a_family_is_known_in_its_folder_alone() -> None:
    """Recipes train Janus checkpoints themselves, and the benchmarks' baseline is transformers' own code for Janus."""
    paths = [path for package in {*ALLOWED, "benchmarks"} - {"recipes"} for path in (ROOT / package).rglob("*.py")]
    known = {
        str(path.relative_to(ROOT)): marks
        for path in paths
        if FAMILIES not in path.parents and (marks := list(family_marks(path.read_text("utf-8"), family_words())))
    }
    judges = [path for path in known if path.startswith("safety/judges/")]
    assert not [mark for path in judges for mark in known.pop(path) if not mark.startswith("isinstance(")]
    assert set(known) == {"benchmarks/baseline.py"}, known


@pytest.mark.parametrize(
    "source",
    [
        "from transformers import LlamaModel\ndef f(m):\n    return isinstance(m, LlamaModel | None)",
        "from torch import nn\nisinstance(m, (int, nn.Linear))",
        "from engine.unified.served_model import ServedModel as S\nisinstance(m, S)",
        'FAMILY = "vila-u-7b"',
        "import engine.families.anole.loading",
        "def load_janus(): ...",
    ],
)
def test_a_planted_family_is_seen(source: str) -> None:
    assert list(family_marks(source, family_words()))


def test_what_only_speaks_of_a_family_is_none() -> None:
    source = '"""Janus draws."""\nclass Error(Exception):\n    """As Emu3."""\nisinstance(1, Error)  # Anole'
    assert list(family_marks(source, family_words())) == []


@pytest.mark.parametrize("folder", ["engine/runner", "engine/scheduler"])
def test_runner_and_scheduler_stand_without_transformers(folder: str) -> None:
    names = {name for path in (ROOT / folder).rglob("*.py") for name in imports(path.read_text("utf-8"), folder)}
    assert "torch" in names and "transformers" not in names


CORE = sorted(f"core.{path.stem}" for path in (ROOT / "core").glob("*.py") if path.stem != "__init__")
COMMANDS = [f"cli.{name}" for name in ("check", "draw", "evaluate", "verify.command")]


@pytest.mark.parametrize(
    ("names", "heavy"),
    [
        (CORE, {"torch"}),
        (["cli.main", "cli.commands.app"], {"torch", "fastapi", "redis"}),
        (["worker.main", "worker.rq_worker"], {"torch", "fastapi"}),
        (["worker.jobs", *COMMANDS], {"transformers", "matplotlib", "fastapi"}),
    ],
    ids=["core", "command line", "worker", "jobs"],
)
def test_a_process_starts_without_what_it_may_not_need(names: list[str], heavy: set[str]) -> None:
    script = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not heavy & set(done.stdout.split())


def test_the_image_holds_every_package() -> None:
    lines = (ROOT / "Dockerfile").read_text("utf-8").splitlines()
    assert {f"COPY {package} {package}" for package in ALLOWED} <= set(lines)


def test_every_shipped_package_has_types() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    assert setuptools["package-data"]["*"] == ["py.typed"]
    assert {pattern.rstrip("*") for pattern in setuptools["packages"]["find"]["include"]} == set(ALLOWED)
    assert {package for package in ALLOWED if not (ROOT / package / "py.typed").is_file()} == set()


def test_the_walk_sees_hidden_imports() -> None:
    source = "def f():\n    import worker.jobs as w\n    from safety import loop\n    from . import x\n"
    assert list(imports(source, "app")) == ["worker", "safety", "app"]


def test_an_exception_excuses_its_own_modules_alone() -> None:
    assert is_excepted("app", "safety.policy.policy_store.find_policy") and is_excepted("app", "safety.judges.grammar")
    assert not any(is_excepted("app", name) for name in ("safety", "safety.judges", "safety.loop", "safety.policy2"))
    assert not is_excepted("records", "safety.policy")


def loaded(*names: str) -> set[str]:
    """The modules that a process has loaded after importing these, dynamic imports too."""
    script = f"import sys, {', '.join(names)}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_app_loads_neither_worker_nor_safety_but_policies_and_names_of_judges() -> None:
    server = loaded("app.factory", "cli.main", "app.server")
    text = loaded("safety.policy.policy_store", "safety.policy.plan", "safety.judges.grammar")
    apart = {name for name in server if name.partition(".")[0] in ("worker", "safety", "recipes")}
    assert apart == {name for name in text if name.partition(".")[0] == "safety"}
    barred = ("safety.runtime", "safety.collect", "safety.edit", "safety.policy.emoji.classifier")
    assert not {name for name in apart if name.startswith(barred)}
    assert {name for name in apart if name.startswith("safety.judges.")} == {"safety.judges.grammar"}
    heavy = ("transformers", "huggingface_hub", "matplotlib", "PIL", "torchvision", "onnxruntime")
    assert not {name for name in text if name.partition(".")[0] in heavy}
