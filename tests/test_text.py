"""Texts as they are: keys in every script, and prompts that no interface may lose, cut or mix up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codebook.flags import Flags
from codebook.text import normalise, text_key
from tests.serving import Server, serving, settings_in, tiny_model
from tests.test_app_flags import kept
from tests.test_app_problems import assert_problem


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    keys = {"SAFECB_API_KEYS": "one,two"}
    with serving(settings_in(tmp_path_factory.mktemp("home"), model, **keys)) as server:
        yield server


APART = [
    ("🍎", "🔪"),
    ("👨‍👩‍👧", "👨‍👩‍👦"),
    ("👍🏻", "👍🏿"),
    ("🇩🇪", "🇫🇷"),
    ("कमल", "कोमल"),  # vowel signs alone
    ("คน", "ค้น"),
    ("שָׁלוֹם", "שלום"),
    ("?", "!"),
    ("+", "-"),
    ("año", "ano"),
]
ALIKE = [
    ("A  red apple!", "a red apple"),
    ("ﬁsh", "fish"),
    ("\uff21\uff30\uff30\uff2c\uff25", "apple"),  # fullwidth letters
    ("cafe\u0301", "CAFÉ"),
    ("❤\ufe0f", "❤"),
    ("a\u2028cat", "a cat"),
    ("STRASSE", "straße"),
    ("ﷺ", "صلى الله عليه وسلم"),
]


@pytest.mark.fault("F05")
@pytest.mark.parametrize(("one", "other"), APART)
def test_texts_that_read_otherwise_have_other_keys(one: str, other: str) -> None:
    assert text_key(one) != text_key(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_texts_that_read_the_same_have_one_key(one: str, other: str) -> None:
    assert text_key(one) == text_key(other)


@given(st.text())
def test_normalising_again_changes_nothing(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
    assert text_key(f"  {text}\u00a0") == text_key(text) or not normalise(text)


@pytest.mark.fault("F05")
@pytest.mark.parametrize(("mine", "theirs"), [("🍎", "🔪"), ("कमल", "कोमल"), ("a fox", "a fox")])
def test_a_flag_of_another_caller_is_neither_shown_nor_in_the_way(server: Server, mine: str, theirs: str) -> None:
    flags = []
    for key, prompt in (("one", mine), ("two", theirs)):
        caller = {"Authorization": f"Bearer {key}"}
        image = server.post("/generate", {"prompt": prompt, "seed": 3}, **caller).json()["images"][0]
        flag = server.post("/flags", {"image_id": image["id"], "note": key}, **caller).json()
        assert (flag["prompt"], flag["image_id"], flag["note"]) == (prompt, image["id"], key)
        flags.append(flag["id"])
    assert flags[0] != flags[1]


@pytest.mark.fault("F05")
def test_a_job_learns_from_a_prompt_once_whoever_flagged_it(tmp_path: Path) -> None:
    flags = Flags(tmp_path / "flags.db", hours=1)
    for caller in ("one", "two"):
        for prompt in ("🔪", "a pistol", "A pistol!"):
            flags.add(kept(prompt), "weapons", "", caller, review=False)
    assert [flag.prompt for flag in flags.take("job")] == ["🔪", "a pistol"] == [f.prompt for f in flags.take("job")]
    assert flags.list("accepted") == [] == flags.take("another job")


@pytest.mark.fault("F41")
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/generate", {"prompt": "a\0cat"}, "prompt"),
        ("/improve", {"prompts": ["a cat", "a\0cat"]}, "prompts.1"),
        ("/codebooks/compare", {"prompt": "a\0cat", "versions": ["v0", "v0"]}, "prompt"),
        ("/flags", {"image_id": "x", "note": "a\0cat"}, "note"),
        ("/flags", {"image_id": "x", "category": "a\0cat"}, "category"),
    ],
)
def test_the_character_nul_is_refused_by_field(server: Server, path: str, body: object, field: str) -> None:
    answer = server.post(path, body, Authorization="Bearer one")
    assert assert_problem(answer, 422)["field"] == field


@pytest.mark.fault("F24")
@pytest.mark.parametrize("bad", ["a cat <begin_of_image>", "cat " * 900])
def test_improve_names_the_prompt_that_the_model_cannot_read(server: Server, bad: str) -> None:
    prompts = [f"cat {i}" for i in range(1000)]
    prompts[731] = bad
    answer = server.post("/improve", {"prompts": prompts}, Authorization="Bearer one")
    assert assert_problem(answer, 422)["field"] == "prompts.731"
    assert server.http.get("/jobs", headers={"Authorization": "Bearer one"}).json() == []
