"""Policies by name: those that packages bring, and the files of an operator's folder.

Knows names and files. Knows nothing of which policy a run takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from core.atomic import list_folder, locked, read_file, replace_file
from core.errors import BadInput, Conflict, NotFound
from core.storage import naming
from safety.policy.files.file_policy import BENIGN_SUFFIXES, SUFFIXES, FilePolicy
from safety.policy.open_policy import OpenPolicy
from safety.policy.policy import Policy

GROUP = "safecb.policies"  # of entry points: a factory of a policy each, by its name
NAME = re.compile(r"[a-z0-9-]{1,64}")
READ = 8  # policies of files that stay in memory: a large file takes seconds to read


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


@lru_cache(maxsize=1)
def installed_policies() -> tuple[str, ...]:
    """The names of the policies that packages bring: Safe-CB's own first, then the others by name."""
    names = {point.name for point in entry_points(group=GROUP) if NAME.fullmatch(point.name)}
    return (*own_policies(), *sorted(names - set(own_policies())))


@lru_cache(maxsize=1)
def own_policies() -> tuple[str, ...]:
    """The names of the policies that come with Safe-CB; no other package can replace one."""
    return tuple(sorted(point.name for point in entry_points(group=GROUP) if _is_own(point)))


@lru_cache
def _installed(name: str) -> Policy:
    """The one policy of this name. Raises BadInput where its package is at fault."""
    points = [point for point in entry_points(group=GROUP, name=name) if name not in own_policies() or _is_own(point)]
    try:
        (point,) = points
        policy: Policy = point.load()()
        if policy.name != name:
            raise ValueError(f"it calls itself {policy.name!r}")
    except Exception as error:  # whatever a package does
        raise BadInput("policy", name, f"a policy whose package works ({type(error).__name__}: {error})") from error
    return policy


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == "safecb"


def usual_policy(categories: Sequence[str]) -> str:
    """The policy of a run that names none: Safe-CB's own of just these categories, else `open`."""
    wanted = set(categories)
    return next((name for name in own_policies() if set(_installed(name).categories) == wanted), OpenPolicy.name)


def find_policy(name: str, folder: Path) -> Policy:
    """The policy of this name: an installed one, or a file in `folder`.

    Raises BadInput for a name that none can have, and by line and column for a file that cannot be read; NotFound.
    """
    if name in installed_policies():
        return _installed(name)
    path = _file(_checked(name), folder)
    if path is None:
        raise NotFound(f"no policy {name!r}; there are {', '.join(policy_names(folder))}")
    try:
        return _read(path, _stamps(path))
    except BadInput:
        if path.exists():
            raise
        return find_policy(name, folder)  # saved anew in the other format, or deleted


def policy_names(folder: Path) -> list[str]:
    """The names of all policies: the installed ones, then the files."""
    return [*installed_policies(), *_names(folder)]


def save_policy(name: str, data: bytes, folder: Path) -> FilePolicy:
    """Make `data`, CSV or JSON lines, the policy of this name, in one step, once it has been read without a fault.

    A file of benign prompts that stands beside the old one stays, and counts. Raises BadInput naming line and column.
    """
    if _checked(name) in installed_policies():
        raise BadInput("policy", name, f"a name beside {' and '.join(installed_policies())}, which are installed")
    suffix = ".jsonl" if data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{" else ".csv"
    with _held(folder):
        benign = next((path for end in BENIGN_SUFFIXES if (path := folder / (name + end)).exists()), None)
        policy = FilePolicy.parse(name, suffix, data, benign)
        replace_file(folder / (name + suffix), data)
        _remove(folder, [name + other for other in SUFFIXES if other != suffix])
    return policy


def save_benign(name: str, suffix: str, data: bytes, folder: Path) -> FilePolicy:
    """Make `data` the file of benign prompts beside a policy; suffix: of BENIGN_SUFFIXES.

    Raises NotFound for a policy that is no file, BadInput naming line and column where the two cannot be one policy.
    """
    with _held(folder):
        path = _existing(name, folder)
        policy = FilePolicy.parse(name, path.suffix, read_file(path), folder / (name + suffix), benign_data=data)
        replace_file(folder / (name + suffix), data)
        _remove(folder, [name + other for other in BENIGN_SUFFIXES if other != suffix])
    return policy


def delete_policy(name: str, folder: Path) -> None:
    """Delete a policy's file, and its benign prompts. Raises Conflict for an installed one, NotFound."""
    if name in installed_policies():
        raise Conflict(f"policy {name!r} is installed with its package and cannot be deleted")
    with _held(folder):
        _existing(name, folder)
        _remove(folder, [name + suffix for suffix in (*SUFFIXES, *BENIGN_SUFFIXES)])


def list_policies(folder: Path) -> list[PolicySummary]:
    """All policies: the installed ones, then the files by name. A file that cannot be used is listed with its fault."""
    summaries = []
    for name in policy_names(folder):
        with suppress(NotFound):  # deleted meanwhile
            summaries.append(summarise(name, folder))
    return summaries


def summarise(name: str, folder: Path) -> PolicySummary:
    """One policy as in the list. Raises NotFound, and BadInput for a name that none can have."""
    try:
        policy = find_policy(name, folder)
    except BadInput as error:
        _checked(name)
        return PolicySummary(name, fault=str(error))
    if not isinstance(policy, FilePolicy):
        return PolicySummary(name, policy.version, policy.categories, {str(group): None for group in policy.groups()})
    counts = {str(group): sum(by_split.values()) for group, by_split in policy.counts().items()}
    return PolicySummary(name, policy.version, policy.categories, counts)


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the folder, made if missing, against every other writer."""
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        yield


@lru_cache(maxsize=READ)
def _read(path: Path, stamps: tuple[tuple[int, ...], ...]) -> FilePolicy:
    """The policy of a file; `stamps` tell when it is another one."""
    return FilePolicy.read(path)


def _stamps(path: Path) -> tuple[tuple[int, ...], ...]:
    """Inode, size and time of a policy's files; () for one that is missing."""
    return tuple(_stamp(path.with_name(path.stem + suffix)) for suffix in (path.suffix, *BENIGN_SUFFIXES))


def _stamp(path: Path) -> tuple[int, ...]:
    with naming(path), suppress(FileNotFoundError):
        stat = path.stat()
        return stat.st_ino, stat.st_size, stat.st_mtime_ns
    return ()


def _existing(name: str, folder: Path) -> Path:
    path = _file(_checked(name), folder)
    if path is None:
        raise NotFound(f"no file of a policy {name!r}; there are {', '.join(_names(folder)) or 'none'}")
    return path


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        with naming(folder / name), suppress(FileNotFoundError):
            (folder / name).unlink()


def _checked(name: str) -> str:
    if not NAME.fullmatch(name):
        raise BadInput("policy", name, "1 to 64 of the characters a to z, 0 to 9 and -")
    return name


def _names(folder: Path) -> list[str]:
    stems = {name.rpartition(".")[0] for name in list_folder(folder) if name.endswith(SUFFIXES)}
    return sorted(stem for stem in stems if NAME.fullmatch(stem) and stem not in installed_policies())


def _file(name: str, folder: Path) -> Path | None:
    """The file of a policy; the newer one where a crash has left two."""
    ages: dict[int, Path] = {}
    for suffix in (*SUFFIXES, SUFFIXES[0]):  # the first again: it may have taken the other's place in between
        path = folder / (name + suffix)
        with naming(path), suppress(FileNotFoundError):
            ages[path.stat().st_mtime_ns] = path
    return ages[max(ages)] if ages else None
