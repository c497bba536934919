"""Policies by name: those that ship, and the files of an operator's folder.

Knows names and files. Knows nothing of which policy a run takes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.atomic import list_folder, locked, replace_file
from core.errors import BadInput, NotFound
from core.storage import naming
from safety.policy.emoji.emoji_policy import EmojiPolicy
from safety.policy.file_policy import BENIGN_SUFFIXES, SUFFIXES, FilePolicy
from safety.policy.open_policy import OpenPolicy
from safety.policy.policy import Policy

FOLDER = "policies"  # under SAFECB_HOME
SHIPPED: Mapping[str, type[EmojiPolicy] | type[OpenPolicy]] = {
    EmojiPolicy.name: EmojiPolicy,
    OpenPolicy.name: OpenPolicy,
}
NAME = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class PolicySummary:
    """One policy in a list. prompts: by group; None where the policy writes as many as a run takes.

    fault: why the file cannot be used, and then there is nothing else; "" where it can.
    """

    name: str
    version: str = ""
    categories: tuple[str, ...] = ()
    prompts: Mapping[str, int | None] | None = None
    fault: str = ""


def usual_policy(categories: Sequence[str]) -> str:
    """The policy of a run that names none: `emoji` for a model that judges its categories, else `open`."""
    emoji = EmojiPolicy()
    return emoji.name if set(categories) == set(emoji.categories) else OpenPolicy.name


def find_policy(name: str, folder: Path) -> Policy:
    """The policy of this name: one that ships, or a file in `folder`.

    Raises BadInput for a name that none can have, and by line and column for a file that cannot be read; NotFound.
    """
    if name in SHIPPED:
        return SHIPPED[name]()
    path = _file(_checked(name), folder)
    if path is None:
        raise NotFound(f"no policy {name!r}; there are {', '.join([*SHIPPED, *_names(folder)])}")
    return FilePolicy.read(path)


def save_policy(name: str, data: bytes, folder: Path) -> FilePolicy:
    """Make `data`, CSV or JSON lines, the policy of this name, in one step, once it has been read without a fault.

    A file of benign prompts that stands beside the old one stays, and counts. Raises BadInput naming line and column.
    """
    if _checked(name) in SHIPPED:
        raise BadInput("policy", name, f"a name beside {' and '.join(SHIPPED)}, which ship")
    suffix = ".jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else ".csv"
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        benign = next((path for end in BENIGN_SUFFIXES if (path := folder / (name + end)).exists()), None)
        policy = FilePolicy.parse(name, suffix, data, benign)
        replace_file(folder / (name + suffix), data)
        for other in SUFFIXES:
            if other != suffix:
                with naming(folder), suppress(FileNotFoundError):
                    (folder / (name + other)).unlink()
    return policy


def list_policies(folder: Path) -> list[PolicySummary]:
    """All policies: those that ship, then the files by name. A file that cannot be used is listed with its fault."""
    shipped = [make() for make in SHIPPED.values()]
    summaries = [
        PolicySummary(policy.name, policy.version, policy.categories, {str(group): None for group in policy.groups()})
        for policy in shipped
    ]
    return [*summaries, *(_summary(name, folder) for name in _names(folder))]


def _summary(name: str, folder: Path) -> PolicySummary:
    path = _file(name, folder)
    if path is None:
        return PolicySummary(name, fault="its file has gone")
    try:
        policy = FilePolicy.read(path)
    except BadInput as error:
        return PolicySummary(name, fault=str(error))
    counts = {str(group): sum(by_split.values()) for group, by_split in policy.counts().items()}
    return PolicySummary(name, policy.version, policy.categories, counts)


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise BadInput("policy", name, "1 to 64 of the characters a to z, 0 to 9 and -")
    return name


def _names(folder: Path) -> list[str]:
    stems = {name.rpartition(".")[0] for name in list_folder(folder) if name.endswith(SUFFIXES)}
    return sorted(stem for stem in stems if NAME.fullmatch(stem) and stem not in SHIPPED)


def _file(name: str, folder: Path) -> Path | None:
    """The file of a policy; the newer one where a crash has left two."""
    ages: dict[int, Path] = {}
    for suffix in SUFFIXES:
        path = folder / (name + suffix)
        with naming(path), suppress(FileNotFoundError):
            ages[path.stat().st_mtime_ns] = path
    return ages[max(ages)] if ages else None
