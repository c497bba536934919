"""Place of a store: where versions, the model's identity and the active alias lie, and how writers exclude each other.

Knows files and names of versions. Knows nothing of tensors, nor of what is checked before a version is written.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from codebook.identity import Identity
from codebook.pointer import Pointer


class Place(Protocol):
    """One store's place; safe to share between threads and processes."""

    @property
    def pointer(self) -> Pointer:
        """The active alias."""

    @property
    def name(self) -> str:
        """The folder or the URL, for people."""

    @property
    def remedy(self) -> str:
        """How an operator starts again from v0 where no version can be served."""

    def prepare(self) -> None:
        """Make the place ready for its first write. Raises NoStorage, and BadSetting for one that cannot be trusted."""

    def is_whole(self) -> bool:
        """Whether nothing is left to create, so that a place that cannot be written can be served."""

    def identity(self) -> Identity | None:
        """Return the identity of the store's model, None before the first start. Raises BadCodebook (format, model)."""

    def identify(self, identity: Identity) -> None:
        """Record the identity of the store's model, once."""

    def writing(self) -> AbstractContextManager[None]:
        """Hold what a writer needs: `reserve`, `adding` and the moves of the pointer are called within."""

    def names(self) -> list[str]:
        """Return the names of all versions, oldest first."""

    def folder(self, version: str, *, is_whole: bool = False) -> Path:
        """Return a local folder with the manifest and the report of a version; with all of its files if `is_whole`.

        Raises NotFound.
        """

    def reserve(self, once: str) -> str:
        """Return the name of the next version. once: what it is made of; the same again gives the same name."""

    def adding(self, version: str) -> AbstractContextManager[Path]:
        """Give an empty folder that atomically becomes the version unless the block raises, or there is one already."""

    def admit(self, job: str, fence: int) -> None:
        """Record the attempt of a job that publishes. Raises Conflict if a later one has published or begun to."""

    def push(self, version: str, file: str) -> None:
        """Keep a file that was added to the folder of a version."""

    def renew(self, version: str) -> bool:
        """Replace the local copy of a version; False where the folder is no copy."""

    def check_writable(self) -> None:
        """Raise NoStorage if a version could not be published or activated."""
