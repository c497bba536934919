"""Names of judges: their grammar. Knows no weights.

    self, referee, opennsfw, nudenet, ...       an entry point of the group `safecb.judges`
    beside                                      the classifier `second_judge` beside the weights
    hf:FOLDER#LABEL[+LABEL...][?covers=A+B]     an image classifier of transformers
    zeroshot:FOLDER?texts=FILE                  CLIP or SigLIP with a file of texts
    guard:FOLDER[?policies=P+Q | ?ask=FILE]     ShieldGemma 2, or a chat model with a question (also &covers=A+B)
    any(NAME,NAME,...)                          harmful where any of them finds harm

FOLDER is a folder or a repository of the model hub. Any name may end in @THRESHOLD, a number from 0 to 1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from importlib.metadata import entry_points

from core.errors import BadInput

GROUP = "safecb.judges"  # of entry points
HF, ZEROSHOT, GUARD, ANY, BESIDE = "hf", "zeroshot", "guard", "any", "beside"
OPTIONS = {HF: ("covers",), ZEROSHOT: ("texts",), GUARD: ("policies", "ask", "covers")}
SHAPES = "beside, hf:FOLDER#LABEL, zeroshot:FOLDER?texts=FILE, guard:FOLDER, any(NAME,NAME)"
_THRESHOLD = re.compile(r"@([^@/\\#?()&]*)$")
_NUMBER = re.compile(r"\d+(\.\d*)?|\.\d+")


@dataclass(frozen=True)
class JudgeName:
    """A name taken apart; `kind` is HF, ZEROSHOT, GUARD, ANY, BESIDE or the name of an entry point."""

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
    registered = sorted(point.name for point in entry_points(group=GROUP))
    if body != BESIDE and body not in registered:
        raise BadInput("judge", body, f"one of {', '.join(registered)}, {SHAPES}")
    return JudgeName(body, body, threshold)


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
    if kind == ZEROSHOT and "texts" not in options:
        raise BadInput("judge", name, "?texts=FILE, a JSON file of harmful and harmless texts")
    if {"policies", "ask"} <= set(options):
        raise BadInput("judge", name, "policies (ShieldGemma 2) or ask (any other guard), not both")
    for key in {"covers", "policies"} & set(options):
        if not all(items(options[key])):
            raise BadInput("judge", options[key], f"names joined with + after {key}=, none of them empty")
    return JudgeName(kind, body, threshold, source, label, options)


def items(text: str) -> list[str]:
    """The items of a list with + between; commas do as well, where they do not part names of judges."""
    return [item.strip() for item in re.split(r"[+,]", text)]
