"""The house: sizes of folders, files and functions, words, import cycles, and the links of the documentation."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.test_imports import ALLOWED, modules

ROOT = Path(__file__).parent.parent
SHIPPED = [*ALLOWED, "benchmarks"]
KERNELS = ROOT / "engine" / "runner" / "kernels"  # a kernel is one function of Triton
MOST_FILES, MOST_LINES, MOST_BODY, MOST_WIDTH = 14, 300, 45, 120
QUESTION = re.compile(r"(What|How|Whether|Where|When|Who)\b")
BARE = {"asked", "wanted", "kept", "found"}
MOST_BARE = 20
LINK = re.compile(r"\]\(([^)\s]+)\)")


def sources(*packages: str) -> Iterator[tuple[Path, str]]:
    """Yield each Python file of the packages and its text."""
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, path.read_text("utf-8")


def pages() -> list[Path]:
    """Every Markdown page of the project."""
    return [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "checkpoints").rglob("*.md")]


def test_folders_show_few_files() -> None:
    folders = Counter(path.parent for path, _ in sources(*SHIPPED, "tests"))
    assert not {str(folder): count for folder, count in folders.items() if count > MOST_FILES}


def test_files_are_short() -> None:
    long = {str(path): len(text.splitlines()) for path, text in sources(*SHIPPED)}
    assert not {path: lines for path, lines in long.items() if lines > MOST_LINES}


def test_functions_fit_a_screen() -> None:
    long = [
        (str(path), node.name)
        for path, text in sources(*SHIPPED)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MOST_BODY
        and path.parent != KERNELS
    ]
    assert not long


def test_modules_lead_with_a_noun() -> None:
    docstrings = {str(path): ast.get_docstring(ast.parse(text)) or "" for path, text in sources(*SHIPPED, "tests")}
    assert not [path for path, docstring in docstrings.items() if QUESTION.match(docstring)]


def test_words() -> None:
    banned = re.compile(r"\b_?tol" + r"d\b")
    texts = [*sources(*SHIPPED, "tests"), *((page, page.read_text("utf-8")) for page in pages())]
    assert not {str(path): hits for path, text in texts if (hits := banned.findall(text))}


def test_variables_are_nouns() -> None:
    bare = Counter[str]()
    for path, text in sources(*SHIPPED, "tests"):
        for node in ast.walk(ast.parse(text)):
            name = node.id if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) else None
            name = node.arg if isinstance(node, ast.arg) else name
            bare[str(path)] += name in BARE
    assert bare.total() < MOST_BARE, +bare


def test_no_import_cycles() -> None:
    """Cycles of modules at import time; imports within functions and for types alone do not count."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): text for path, text in sources(*SHIPPED)}
    graph = {}
    for name, text in names.items():
        tree = ast.parse(text)
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        graph[name] = {module for module in modules(ast.unparse(top)) if module in names} - {name}
    list(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_narrow_and_their_links_lead_somewhere(page: Path) -> None:
    text = page.read_text("utf-8")
    assert not [line for line in text.splitlines() if len(line) > MOST_WIDTH]
    for link in LINK.findall(text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}, link


def test_glossary_names_what_is_in_the_code() -> None:
    rows = re.findall(r"^\|.*\| `([\w./]+)`[^|]*\|$", (ROOT / "docs/reference/glossary.md").read_text(), re.MULTILINE)
    assert len(rows) >= 20
    code = "\n".join(text for _, text in sources(*SHIPPED))
    paths = {path.name for path, _ in sources(*SHIPPED)}
    for name in rows:
        last = name.rpartition(".")[2]
        assert (ROOT / name).exists() or name in paths or re.search(rf"\b{last}\b", code), name
