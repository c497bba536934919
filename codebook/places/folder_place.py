"""Place of a store on one machine: a folder of plain files and a lock.

    root/model.json      the identity of the model that every version must match
    root/versions/vN/    one published version; a folder with such a name is complete (see codebook/folder.py)
    root/numbers.json    the highest number assigned to a version
    root/fences.json     the highest fencing token of each job
    root/ACTIVE          the active alias (see file_pointer.py)
    root/audit.jsonl     all its activations
    root/.lock           held by every writer

Any number of processes may read and write; readers take no lock, since files are immutable or replaced atomically. The
number of a folder that was deleted is not assigned again. Knows nothing of what a version contains.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codebook.folder import new_version
from codebook.identity import Identity, IdentityFile
from codebook.numbers import NAME, Numbers, number_of
from codebook.places.fences import Fences
from codebook.places.file_pointer import FilePointer
from core.atomic import list_folder, locked
from core.errors import NotFound
from core.storage import naming, probe


class FolderPlace:
    """The store in the folder `root`. See Place for its methods."""

    def __init__(self, root: Path) -> None:
        self.root, self.pointer = root, FilePointer(root)
        self._versions = root / "versions"
        self._identity = IdentityFile(root / "model.json")
        self._fences, self._numbers = Fences(root / "fences.json"), Numbers(root / "numbers.json")

    @property
    def name(self) -> str:
        """See Place."""
        return str(self.root)

    @property
    def remedy(self) -> str:
        """See Place."""
        return f"cd {shlex.quote(self.name)} && mkdir -p damaged && mv ACTIVE audit.jsonl damaged"

    def prepare(self) -> None:
        """See Place."""
        with naming(self.root):
            self._versions.mkdir(parents=True, exist_ok=True)

    def is_whole(self) -> bool:
        """See Place."""
        folders = (self._versions / "v0", self.root / "ACTIVE")
        return self._identity.is_there and self._numbers.is_there and all(path.exists() for path in folders)

    def identity(self) -> Identity | None:
        """See Place."""
        return self._identity.read() if self._identity.is_there else None

    def identify(self, identity: Identity) -> None:
        """See Place."""
        self._identity.write(identity)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See Place: the lock."""
        with locked(self.root / ".lock"), naming(self.root):
            if not self._numbers.is_there:  # a store of older code
                self._numbers.note(self.highest())
            yield

    def names(self) -> list[str]:
        """See Place."""
        return sorted(filter(NAME.fullmatch, list_folder(self._versions)), key=number_of)

    def folder(self, version: str, *, is_whole: bool = False) -> Path:
        """See Place."""
        folder = self._versions / version
        if not NAME.fullmatch(version) or not folder.is_dir():
            raise NotFound(f"there is no codebook version {version!r}")
        return folder

    def reserve(self, once: str) -> str:
        """See Place; under the lock whoever publishes the same twice finds the first."""
        return f"v{self.highest() + 1}"

    @contextmanager
    def adding(self, version: str) -> Iterator[Path]:
        """See Place."""
        with new_version(self._versions, version) as hidden:
            yield hidden
            # Before the version becomes visible: it may then be deleted, and a crash may come in between.
            self._numbers.note(number_of(version))

    def admit(self, job: str, fence: int) -> None:
        """See Place."""
        self._fences.admit(job, fence)

    def push(self, version: str, file: str) -> None:
        """See Place: the folder is the version."""

    def renew(self, version: str) -> bool:
        """See Place: the folder is the version."""
        return False

    def check_writable(self) -> None:
        """See Place."""
        for path in (self.root, self._versions, self.root / ".lock"):
            probe(path)
        self.pointer.check_writable()

    def highest(self) -> int:
        """Return the highest number of a version that exists, was ever active, or was assigned and deleted."""
        names = [*self.names(), *filter(NAME.fullmatch, self.pointer.mentioned())]
        return max(self._numbers.highest() if self._numbers.is_there else 0, *map(number_of, names), 0)
