"""Texts as they are: keys in every script, and prompts that no interface may lose, cut or mix up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import BadInput
from core.text import normalise, text_key
from engine.registry import load_model
from records.flags import Flags
from safety.policy.prompts import is_readable, mentions
from tests.app.http.test_problems import assert_problem
from tests.app.test_flags import logged_image
from tests.support.serving import Server, serving, settings_in, tiny_model


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
    ("#️⃣", "*️⃣"),
    (
        "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ),
    ("👨‍👩", "👨 👩"),
]
ALIKE = [
    ("A  red apple!", "a red apple"),
    ("ﬁsh", "fish"),
    ("\uff21\uff30\uff30\uff2c\uff25", "apple"),  # fullwidth letters
    ("cafe\u0301", "CAFÉ"),
    ("❤\ufe0f", "❤"),
    ("a\u2028cat", "a cat"),
    ("STRASSE", "straße"),
    ("cat|dog", "cat dog"),
    ("a knife🔪", "a knife 🔪"),
    ("ﷺ", "صلى الله عليه وسلم"),
]


@pytest.mark.fault("F05")
@pytest.mark.parametrize(("one", "other"), APART)
def test_texts_that_read_otherwise_have_other_keys(one: str, other: str) -> None:
    assert text_key(one) != text_key(other)


@pytest.mark.parametrize(("one", "other"), ALIKE)
def test_texts_that_read_the_same_have_one_key(one: str, other: str) -> None:
    assert text_key(one) == text_key(other)


def test_a_symbol_hides_no_word_beside_it() -> None:
    assert (
        mentions("a knife🔪 and a cat", "knife") and mentions("a knife+", "knife") and not mentions("knifes", "knife")
    )


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
            flags.add(logged_image(prompt), "weapons", "", caller, review=False)
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


@pytest.mark.fault("F24")
def test_improve_names_a_category_that_comes_twice(server: Server) -> None:
    body = {"categories": ["weapons", "weapons"]}
    assert assert_problem(server.post("/improve", body, Authorization="Bearer one"), 422)["field"] == "categories.1"


@pytest.mark.fault("F24")
def test_a_prompt_that_can_be_drawn_can_be_rewritten() -> None:
    model = load_model("embedded", "cpu", "float32")
    count = next(n for n in range(1, 400) if not is_readable(model, "apple " * (n + 1)))
    assert len(model.rewrite(["apple " * count])) == 1
    with pytest.raises(BadInput):
        model.rewrite(["apple " * (count + 1)])
