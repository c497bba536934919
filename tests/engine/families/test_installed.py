"""Families of other packages: one that cannot be used stops no model of another, and is named where it is due."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import BadModel
from engine.family import families, installed
from engine.registry import EMBEDDED, check_model, find_family, load_model

POINTS = """[safecb.families]
absent = none_such.family
blind = blind_family
bare = bare_family
"""
BLIND = """NAME, LICENCE, FOLDERS, GEOMETRIES = "blind", "", (), ()
kv_numbers = load = load_random = published = None
def fits(config): return config["eyes"] == 0
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A package whose family is not there, one whose family knows no config, and one that lacks what a family has."""
    (tmp_path / "odd-1.dist-info").mkdir()
    (tmp_path / "odd-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (tmp_path / "odd-1.dist-info" / "entry_points.txt").write_text(POINTS)
    (tmp_path / "blind_family.py").write_text(BLIND)
    (tmp_path / "bare_family.py").write_text('NAME = "bare"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    installed.cache_clear()
    yield
    installed.cache_clear()


def test_a_family_that_cannot_be_used_is_left_out_and_named(
    packages: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert find_family(EMBEDDED).NAME == "janus" and "janus" in check_model("embedded")
    assert {family.NAME for family in families()} == {"anole", "blind", "emu3", "janus", "liquid", "vila_u"}
    for words in ("'absent' of none_such.family cannot be used", "'bare' of bare_family", "'blind' does not know"):
        assert sum(words in message for message in caplog.messages) == (2 if "blind" in words else 1), words
    (tmp_path / "config.json").write_text('{"model_type": "absent"}')
    for ask in (lambda: find_family(tmp_path), lambda: load_model("random:absent-7b", "cpu", "auto")):
        with pytest.raises(BadModel, match=r"'absent' of none_such.family .*No module.*'bare'.*lacks LICENCE, FOLDERS"):
            ask()
