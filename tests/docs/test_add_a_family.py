"""The page on adding a family, run: its package is made of its code, installed, verified, served and swapped."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from cli.main import main
from engine.family import families, installed
from engine.registry import load_model
from tests.support.serving import serving, settings_in
from tests.support.supervised import ROOT

PAGE = (ROOT / "docs" / "how-to" / "add-a-family.md").read_text("utf-8")
EXAMPLE = ROOT / "examples" / "tiles"
MOST_LINES = 60  # of the family
MOST_OF_A_FOLDER = 150  # lines, of one with random weights in its published geometry


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The package of the page, installed as pip installs one: its entry points in the folder of its metadata."""
    *family, make, publish = blocks("py")
    (toml,) = blocks("toml")
    files = {"pyproject.toml": toml, "tiles.py": "\n\n".join(family), "make_checkpoint.py": make, "publish.py": publish}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    project = tomllib.loads(toml)["project"]
    ((group, points),) = project["entry-points"].items()
    metadata = tmp_path / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 1\n")
    lines = [f"[{group}]", *(f"{name} = {module}" for name, module in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    installed.cache_clear()
    yield tmp_path
    installed.cache_clear()


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page in this process; a server runs already."""
    words = shlex.split(command)
    if words[0] == "python":
        monkeypatch.setattr("sys.argv", words[1:])
        runpy.run_path(words[1], run_name="__main__")
    elif words[0] == "safecb":
        assert main(words[1:]) == 0, command
    else:
        raise AssertionError(f"a command that this test does not know: {command}")


def test_the_page_makes_a_family_that_draws_judges_decodes_and_swaps(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    verify, serve, swap = (block.splitlines() for block in blocks("text"))
    for command in verify:
        run(command, monkeypatch)
    assert "tiles" in {family.NAME for family in families()}
    assert "verdict: passed" in capsys.readouterr().out and (package / "verification.html").is_file()
    assert serve == ["export SAFECB_MODEL=checkpoint", "safecb serve"]
    settings = settings_in(package / "home", package / "checkpoint")
    with serving(settings) as server:
        own = {"SAFECB_HOME": str(settings.home), "SAFECB_MODEL": "checkpoint", "SAFECB_SERVER": server.url}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        for command in swap:
            run(command, monkeypatch)
        output = capsys.readouterr().out
    before, after, again = (pixels(package / f"{name}.png") for name in ("before", "after", "again"))
    assert torch.equal(before, again) and not torch.equal(before, after)
    model = load_model("checkpoint", "cpu", "float32")
    base = model.base_codebook()
    codes = model.encode(before[None])
    assert codes is not None
    # One image's codes under either table: what a swap of the pixel table changes is decoding alone.
    for table, drawn in ((base.pixel, before), (base.pixel.flip(0), after)):
        assert float((model.decode(codes, table)[0] - drawn).abs().max()) < 2 / 255
    assert output.count("safe") >= 3


@pytest.mark.parametrize("name", ["anole", "liquid"])
def test_a_family_on_a_backbone_like_llama_s_is_one_short_folder(name: str) -> None:
    files = (ROOT / "engine" / "families" / name).glob("*.py")
    assert sum(len(file.read_text("utf-8").splitlines()) for file in files) <= MOST_OF_A_FOLDER


def pixels(file: Path) -> torch.Tensor:
    """The pixels [3, H, W] of a PNG file, in [-1, 1]."""
    with Image.open(BytesIO(file.read_bytes())) as image:
        values = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return values.view(image.height, image.width, 3).permute(2, 0, 1).float() / 127.5 - 1


def test_the_example_is_the_page_and_short() -> None:
    *family, make, _ = blocks("py")
    code = (EXAMPLE / "tiles.py").read_text("utf-8")
    assert code.split() == " ".join(family).split()
    assert (EXAMPLE / "make_checkpoint.py").read_text("utf-8") == make
    assert [(EXAMPLE / "pyproject.toml").read_text("utf-8")] == blocks("toml")
    assert len(code.splitlines()) < MOST_LINES
