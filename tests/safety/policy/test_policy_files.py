"""Policies from files: columns, kinds, splits, refusals by line and column, the adult-only rule, names and folders."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import BadInput, NotFound
from safety.policy import policy_store
from safety.policy.adult_only import AdultOnly, mentions_minor, refuse_minors
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.files.file_policy import FilePolicy
from safety.policy.files.write_out import write_out
from safety.policy.groups import BENIGN, Group, GroupKind
from safety.policy.open_policy import OpenPolicy
from safety.policy.policy import Policy
from safety.policy.policy_store import (
    GROUP,
    find_policy,
    installed_policies,
    list_policies,
    save_benign,
    save_policy,
    usual_policy,
)
from safety.policy.prompts import PAIR, SPLITS, TEST, VALIDATION, Prompt

HEADER = "prompt,category,kind,split,concept,safe,said,shows,seed,guidance\r\n"
RED = Group(GroupKind.CATEGORY, "red things")
ROWS = (
    "a red kite,red things,,pair,kite,a blue kite,red kite,a kite,7,1\n"
    "a red cup,Red Things,harmful,validation,cup,,,,,\n"
    '"a cup, and a spoon",,benign,pair,spoon,,,a spoon,,2.5\n'
    "a pink kite,red things,look-alike,test,kite,,,,,\n"
    "two pink kites,,look-alike:pairs,test,,,,,,\n"
    "a rde kite,red things,attack:misspelt,test,kite,a blue kite,rde kite,,,\n"
    "ein roter Drachen,red things,language:de,validation,kite,,,,,\n"
)


def policy(text: str, suffix: str = ".csv", adult_only: AdultOnly | None = None) -> FilePolicy:
    return FilePolicy.parse("mine", suffix, text.encode(), adult_only=adult_only)


def every(source: Policy, group: Group, split: str) -> Sequence[Prompt]:
    return source.write(group, split, 10_000, random.Random(0))


def contents(source: Policy, count: int, seed: int = 0) -> dict[tuple[str, str], set[Prompt]]:
    return {
        (str(group), split): set(source.write(group, split, count, random.Random(f"{seed}/{group}/{split}")))
        for group in source.groups()
        for split in SPLITS
    }


def test_rows_fall_into_groups_and_splits() -> None:
    read = policy(HEADER + ROWS)
    assert [str(group) for group in read.groups()] == [
        "red things",
        "benign",
        "look_alike:red things",
        "look_alike:pairs",
        "attack:misspelt",
        "language:de",
    ]
    assert read.categories == ("red things",) and read.concepts("red things") == ("kite", "cup")
    assert every(read, RED, PAIR) == (
        Prompt("a red kite", "red things", "kite", "a blue kite", "red kite", "a kite", 7, 1.0),
    )
    assert every(read, RED, VALIDATION) == (Prompt("a red cup", "red things", "cup", None),)
    text = "a cup, and a spoon"
    assert every(read, BENIGN, PAIR) == (Prompt(text, "none", "spoon", text, "", "a spoon", None, 2.5),)
    assert every(read, Group(GroupKind.LOOK_ALIKE, "pairs"), TEST)[0].category == "none"
    assert every(read, Group(GroupKind.LANGUAGE, "de"), VALIDATION)[0].category == "red things"
    assert not every(read, BENIGN, TEST) and not every(read, Group(GroupKind.LANGUAGE, "fr"), PAIR)


def test_the_example_of_the_docs_is_a_policy() -> None:
    page = (Path(__file__).parents[3] / "docs/how-to/write-a-policy.md").read_text("utf-8")
    read = policy(page.split("```csv\n")[1].split("```")[0])
    assert {group.kind for group in read.groups()} == set(GroupKind) and read.terms() == ("red kite",)
    assert sum(sum(by.values()) for by in read.counts().values()) == 10


def test_json_lines_give_the_same_policy() -> None:
    columns = HEADER.strip().split(",")
    rows = [
        ("a red kite", ["red things"], None, "pair", "kite", "a blue kite", "red kite", "a kite", 7, 1),
        ("a red cup", "red things", "harmful", "validation", "cup", None, None, None, None, None),
        ("a cup, and a spoon", None, "benign", "pair", "spoon", None, None, "a spoon", None, 2.5),
    ]
    text = "".join(json.dumps(dict(zip(columns, row, strict=True)) | {"note": [1, {}]}) + "\n" for row in rows)
    as_csv = policy(HEADER + "".join(ROWS.splitlines(keepends=True)[:3]))
    assert policy(text, ".jsonl").version == as_csv.version
    assert contents(policy(text, ".jsonl"), 9) == contents(as_csv, 9)


def test_i2p_s_and_copro_s_columns_are_read() -> None:
    i2p = policy('prompt,categories,sd_seed,sd_guidance_scale,hard\n"a kite","hate, Shocking",9,0,1\n,hate,1,0,0\n')
    assert i2p.categories == ("hate", "shocking")
    both = [prompts for split in SPLITS for group in i2p.groups() for prompts in every(i2p, group, split)]
    assert [(prompt.text, prompt.category, prompt.seed, prompt.guidance) for prompt in both] == [
        ("a kite", "hate", 9, None),
        ("a kite", "shocking", 9, None),
    ]
    assert policy("id,prompt,category,concept\n1,a kite,Violence,kites\n").concepts("violence") == ("kites",)


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("a kite,,,,,,,,,", "line 2: category: '' is not allowed"),
        ("a kite,red,odd,,,,,,,", "line 2: kind: 'odd'"),
        ("a kite,red,attack,,,,,,,", "line 2: kind: 'attack'"),
        ("a kite,red,harmful:x,,,,,,,", "line 2: kind"),
        ("a kite,red,benign,,,,,,,", "line 2: category: 'red'"),
        ("a kite,,attack:x,,,,,,,", "line 2: category: ''"),
        ('a kite,"red, none",,,,,,,,', "line 2: category"),
        ("a kite,re:d,,,,,,,,", "line 2: category: 're:d'"),
        ("a kite,red,,train,,,,,,", "line 2: split: 'train'"),
        ("a kite,red,,,,,cup,,,", "line 2: said"),
        ("a kite,red,,,,,,,-1,", "line 2: seed: '-1'"),
        ("a kite,red,,,,,,,,0", "line 2: guidance: '0' .*switches guidance off"),
        ("a kite,red,,,,,,,,off", "line 2: guidance: 'off'"),
        ("a kite,red,,,,,,,", "line 2: '9 fields'"),
        (f"{'a' * 4001},red,,,,,,,,", "line 2: prompt: '4001 characters'"),
        ("a\0kite,red,,,,,,,,", "line 2: prompt"),
        ('"a kite,red,,,,,,,,', "line 2"),
        ("a kite,red,,pair,,,,,,\nA kite!,red,,test,,,,,,", "line 3: split: 'test' .* mine.csv, line 2"),
        ("a kite,red,,pair,,,,,,\nA kite!,,benign,,,,,,,", "line 3: kind: 'benign' .* line 2"),
        ("a kite,,benign,,,,,,,", "at least one row of the kind 'harmful'"),
    ],
)
def test_a_row_is_refused_by_line_and_column(rows: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        policy(f"{HEADER}{rows}\n")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"prompt": "a kite", "category": 5}', "line 1: category: 5"),
        ('{"prompt": "a kite", "category": "red", "seed": true}', "line 1: seed: True"),
        ('{"prompt": "a kite", "category": "red", "seed": 1.5}', "line 1: seed: '1.5'"),
        ('{"prompt": "a kite", "category": "red", "guidance": NaN}', "line 1: .*NaN"),
        ('{"prompt": "a kite", "Prompt": "a cup", "category": "red"}', "line 1: prompt: 'stands twice'"),
        ('{"prompt": "a \\ud800 kite", "category": "red"}', "line 1: prompt"),
        ('{"category": "red"}', "line 1: .*'prompt'"),
        ('["a kite"]', "line 1: 'another value'"),
        ("[" * 100_000, "line 1"),
        ('{"prompt": "a kite"', "line 1"),
    ],
)
def test_a_json_line_is_refused_by_line_and_column(line: str, named: str) -> None:
    with pytest.raises(BadInput, match=named):
        policy(line, ".jsonl")


def test_without_a_split_concepts_stay_together() -> None:
    rows = [f"kite {i} of kind {i % 50},red,concept {i % 50}" for i in range(1000)]
    read = policy("prompt,category,concept\n" + "\n".join(rows))
    group = Group(GroupKind.CATEGORY, "red")
    concepts = [{prompt.concept for prompt in every(read, group, split)} for split in SPLITS]
    assert sum(map(len, concepts)) == 50 == len(set[str]().union(*concepts))
    texts = policy("prompt,category\n" + "\n".join(f"kite {i},red" for i in range(2000)))
    sizes = list(texts.counts()[group].values())
    assert [round(size / 2000, 1) for size in sizes] == [0.6, 0.2, 0.2]
    again = policy("prompt,category\n" + "\n".join(f"kite {i},red" for i in reversed(range(2000))))
    assert contents(texts, 2000) == contents(again, 2000)


def test_writing_goes_through_concepts_in_turn() -> None:
    rows = [f"kite {i},red,{'rare' if i % 100 == 0 else 'usual'},pair" for i in range(1000)]
    read = policy("prompt,category,concept,split\n" + "\n".join(rows))
    group = Group(GroupKind.CATEGORY, "red")
    some = read.write(group, PAIR, 16, random.Random(1))
    assert [prompt.concept for prompt in some].count("rare") == 8
    assert some == read.write(group, PAIR, 16, random.Random(1)) != read.write(group, PAIR, 16, random.Random(2))
    assert len(every(read, group, PAIR)) == 1000


def test_terms_are_what_no_rewrite_holds() -> None:
    read = policy(
        "prompt,category,concept,safe,said\n"
        "a red kite,red,red kite,a blue kite,\n"
        "a red cup,red,cups,a cup,red cup\n"
        "a kite,red,kite,a cup,\n"
    )
    assert read.terms() == ("red kite", "red cup")


def test_benign_prompts_may_stand_beside(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(HEADER + ROWS)
    alone = FilePolicy.read(tmp_path / "mine.csv")
    (tmp_path / "mine.benign.txt").write_text("a lamp\n\na table, set\n")
    both = FilePolicy.read(tmp_path / "mine.csv")
    assert {prompt.text for split in SPLITS for prompt in every(both, BENIGN, split)} == {
        "a cup, and a spoon",
        "a lamp",
        "a table, set",
    }
    assert alone.version != both.version
    (tmp_path / "other.csv").write_text("prompt,split\na chair,test\n")
    other = FilePolicy.read(tmp_path / "mine.csv", tmp_path / "other.csv")
    assert [prompt.text for prompt in every(other, BENIGN, TEST)] == ["a chair"]
    (tmp_path / "other.csv").write_text("prompt,category,kind\na chair,red,harmful\n")
    with pytest.raises(BadInput, match=r"other.csv, line 2: kind: 'harmful'"):
        FilePolicy.read(tmp_path / "mine.csv", tmp_path / "other.csv")


KITES = AdultOnly(frozenset({"kites"}), ("swimm",))


@pytest.mark.parametrize(
    "row",
    [
        "a child with a kite,kites,,",
        'a child with a kite,"toys, kites",,',
        "a child with a kite,kites,look-alike,",
        "a child with a kite,kites,attack:misspelt,",
        "a c-h-i-l-d with a kite,Kites,,",
        "an adult with a kite,kites,,a child with a kite",
        "a child who is swimming,toys,,",
        "a boy who is swimming,,benign,",
        "a man of twelve years,kites,,",
    ],
)
def test_adult_only_rows_mention_no_minor(row: str) -> None:
    columns = "prompt,categories,kind,safe\n"
    fine = "an adult with a kite,kites,,\na child with a cup,toys,,\na child with a spoon,,benign,\n"
    assert len(policy(columns + fine, adult_only=KITES).groups()) == 3
    with pytest.raises(BadInput, match=r"line 5: prompt.*lines 5, 6") as error:
        policy(f"{columns}{fine}{row}\n{row.replace(' a ', ' the ', 1)}\n", adult_only=KITES)
    assert not any(word in str(error.value) for word in ("child", "kite", "boy", "c-h-i", "twelve"))


class Mine(OpenPolicy):
    name = "mine"


def broken() -> OpenPolicy:
    raise RuntimeError("no weights")


def test_policies_of_packages_stand_behind_the_own_ones_and_break_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = {point.name: point for point in entry_points(group=GROUP)}
    others = {"a-broken": broken, "mine": Mine, "other-name": Mine, "Bad Name": Mine, "open": broken}
    points: list[Any] = [
        *known.values(),
        *(SimpleNamespace(name=n, load=lambda f=f: f, dist=None) for n, f in others.items()),
    ]
    points.append(points[-1])  # twice

    def found(group: str, name: str = "") -> list[Any]:
        return [point for point in points if name in ("", point.name)]

    monkeypatch.setattr(policy_store, "entry_points", found)
    caches = (policy_store.installed_policies, policy_store.own_policies, policy_store._installed)
    for cache in caches:
        cache.cache_clear()
    try:
        assert installed_policies() == ("emoji", "open", "a-broken", "mine", "other-name")
        faults = {summary.name: summary.fault for summary in list_policies(tmp_path)}
        assert [name for name, fault in faults.items() if fault] == ["a-broken", "other-name"]
        assert "no weights" in faults["a-broken"] and "'mine'" in faults["other-name"]
        assert isinstance(find_policy("mine", tmp_path), Mine)
        assert usual_policy(Mine().categories) == "open"
        with pytest.raises(BadInput, match="whose package works"):
            find_policy("a-broken", tmp_path)
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


def test_no_policy_s_prompt_in_such_a_row_mentions_a_minor() -> None:
    fine = [Prompt("an adult with a kite", "kites", "", None), Prompt("a child with a cup", "toys", "", None)]
    refuse_minors("mine", fine, KITES)
    for bad in (Prompt("a child with a kite", "kites", "", None), replace(fine[0], safe="a child who is swimming")):
        with pytest.raises(BadInput, match="mine, which has 1 prompts") as error:
            refuse_minors("mine", [*fine, bad], KITES)
        assert "child" not in str(error.value)


@pytest.mark.parametrize("category", ["nudity", "Sexual", "sexual content", "explicit nudity", "NSFW", "porn"])
def test_the_usual_adult_only_categories(category: str) -> None:
    assert AdultOnly().refuses([category], ["a child with a kite"])
    assert not AdultOnly().refuses([category], ["an adult with a kite"])
    assert not AdultOnly().refuses(["violence"], ["a child with a kite"])


@pytest.mark.parametrize(
    ("text", "minor"),
    [
        ("a girl, a kite", True),
        ("1girl, kite", True),
        ("a \u0441hild with a kite", True),
        ("a ch1ld with a kite", True),
        ("a ch ild with a kite", True),
        ("a b-o-y with a kite", True),
        ("a 17-year-old", True),
        ("someone aged 9", True),
        ("15yo", True),
        ("teenagers at a lake", True),
        ("ein Mädchen mit Drachen", True),
        ("ребёнок и воздушный змей", True),
        ("una niña", True),
        ("女の子、少女", True),
        ("🧒 🪁", True),
        ("a woman, aged 45, with a kite", False),
        ("a 30-year-old man", False),
        ("a kind person with kidney beans", False),
        ("a boyfriend in the 1970s", False),
        ("two adults, 8k", False),
    ],
)
def test_minors_are_recognised(text: str, minor: bool) -> None:
    assert mentions_minor(text) is minor


@pytest.mark.parametrize("source", [EmojiPolicy(), OpenPolicy()], ids=lambda source: source.name)
def test_a_policy_written_out_is_read_back(source: Policy, tmp_path: Path) -> None:
    counts = {(kind, split): 30 for kind in GroupKind for split in SPLITS}
    rows = write_out(source, tmp_path / "copy.csv", counts, 5)
    read = FilePolicy.read(tmp_path / "copy.csv")
    assert read.categories == source.categories and set(read.groups()) == set(source.groups())
    expected = contents(source, 30, 5)
    assert {place: set(prompts) for place, prompts in contents(read, 1000).items()} == expected
    assert sum(map(len, expected.values())) == rows
    assert all(set(read.concepts(name)) == set(source.concepts(name)) for name in source.categories)
    if isinstance(source, EmojiPolicy):
        assert set(read.terms()) == set(source.terms())
    write_out(source, tmp_path / "again.csv", counts, 5)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "copy.csv").read_bytes()


def test_policies_are_saved_found_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    assert [summary.name for summary in list_policies(folder)] == ["emoji", "open"]
    saved = save_policy("my-own", (HEADER + ROWS).encode(), folder)
    assert find_policy("my-own", folder).version == saved.version
    assert (find_policy("emoji", folder).name, find_policy("open", folder).name) == ("emoji", "open")
    save_policy("my-own", b'{"prompt": "a red kite", "category": "red"}\n', folder)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "my-own.jsonl"]
    with pytest.raises(BadInput, match="line 1"):
        save_policy("my-own", b'{"prompt": 1}\n', folder)
    assert find_policy("my-own", folder).categories == ("red",)
    (folder / "broken.csv").write_text("text\na kite\n")
    (folder / "my-own.benign.txt").write_text("a lamp\n")
    *_, broken, mine = list_policies(folder)
    assert broken.name == "broken" and "prompt" in broken.fault and not broken.categories
    assert mine.prompts == {"red": 1, "benign": 1} and not mine.fault


@pytest.mark.parametrize("name", ["", "My", "a/b", "../x", "a.csv", "x" * 65, "emoji", "open"])
def test_a_policy_s_name_is_checked(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="policy"):
        save_policy(name, (HEADER + ROWS).encode(), tmp_path)
    with pytest.raises(NotFound, match="emoji, open"):
        find_policy("nobody-s", tmp_path)


def test_five_thousand_rows_are_read_in_a_second(tmp_path: Path) -> None:
    words = [
        "kite",
        "hill",
        "meadow",
        "lamp",
        "river",
        "stone",
        "paper",
        "cloud",
        "garden",
        "window",
        "teapot",
        "bridge",
    ]
    rng = random.Random(1)
    rows = [f'"{" ".join(rng.choices(words, k=12))}, {i}",red {i % 5},{rng.choice(words)},a cup\n' for i in range(5000)]
    (tmp_path / "large.csv").write_text("prompt,category,concept,safe\n" + "".join(rows))
    start = time.process_time()
    read = FilePolicy.read(tmp_path / "large.csv")
    seconds = time.process_time() - start
    print(f"5,000 rows: {seconds:.2f} s of CPU")
    assert sum(sum(by.values()) for by in read.counts().values()) == 5000 and seconds < 5


def at_first_look_for(name: str, move: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have `move` done once the file of this name has been looked for and is not there."""
    usual = Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:  # noqa: ANN401
        try:
            return usual(path, **options)
        except FileNotFoundError:
            if path.name == name:
                monkeypatch.setattr(Path, "stat", usual)
                move()
            raise

    monkeypatch.setattr(Path, "stat", stat)


def test_a_file_is_found_that_takes_the_place_of_the_other_format_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy("kites", b'{"prompt": "a red kite", "category": "red kites"}\n', tmp_path)
    csv = b"prompt,category\na blue kite,blue kites\n"
    at_first_look_for("kites.csv", lambda: save_policy("kites", csv, tmp_path), monkeypatch)
    assert find_policy("kites", tmp_path).categories == ("blue kites",)


def test_benign_prompts_are_found_that_take_the_place_of_the_other_format_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_policy("kites", b"prompt,category\na blue kite,blue kites\n", tmp_path)
    save_benign("kites", ".benign.txt", b"a cat\n", tmp_path)
    right = FilePolicy.read(tmp_path / "kites.csv").version
    csv = b"prompt\na cat\n"
    at_first_look_for("kites.benign.csv", lambda: save_benign("kites", ".benign.csv", csv, tmp_path), monkeypatch)
    assert FilePolicy.read(tmp_path / "kites.csv").version == right
