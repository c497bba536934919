"""Folder of small files that all machines of a deployment have: kept equal to the objects of a bucket, if there is one.

Knows names and bytes. Knows nothing of what the files mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from core.atomic import list_folder, locked, read_file, replace_file
from core.bucket.bucket import Bucket
from core.errors import NoBucket
from core.json_records import from_json, to_json
from core.settings import Settings
from core.storage import naming

PULLED = ".pulled"  # file


class SharedFolder:
    """The files of a local folder, and of the folder `name` of a bucket. Thread-safe.

    Where two machines change one file in the same moment the later write counts.
    """

    def __init__(self, folder: Path, bucket: Bucket | None, name: str) -> None:
        self._folder, self._bucket, self._name = folder, bucket, f"{name}/"
        self._tags: dict[str, str] = {}  # of the objects that the local files equal
        self._lock = RLock()

    @classmethod
    def policies(cls, settings: Settings, patience: float = 0.0) -> SharedFolder:
        """Return the folder of the uploaded policies. patience: seconds of waiting for a bucket that is away."""
        bucket = None if settings.bucket is None else Bucket(settings.bucket, patience)
        return cls(settings.policies, bucket, "policies")

    def read(self) -> Path:
        """Return the local folder as the bucket has it, or as it last had it while the bucket does not answer.

        Raises NoBucket where it was never read.
        """
        if self._bucket is None:
            return self._folder
        with self._held():
            try:
                self._pull(self._bucket)
            except NoBucket:
                if not (self._folder / PULLED).exists():
                    raise
            return self._folder

    @contextmanager
    def changing(self) -> Iterator[Path]:
        """Give the local folder to change files in; what changed is in the bucket after the block. Raises NoBucket."""
        if self._bucket is None:
            yield self._folder
            return
        with self._held():
            self._pull(self._bucket)
            before = self._content()
            self._tags = {}  # what is changed here and does not reach the bucket is pulled again
            yield self._folder
            after = self._content()
            replace_file(self._folder / PULLED, to_json("names", {"names": sorted({*before, *after})}))
            for name in before.keys() - after.keys():
                self._bucket.delete(self._name + name)
            for name, data in after.items():
                if before.get(name) != data:
                    self._bucket.write(self._name + name, data)

    def adopt(self) -> None:
        """Put the local files into the bucket, where it has none of their names. Raises NoBucket."""
        if self._bucket is not None and self._folder.exists():
            with self._held():
                for name, data in self._content().items():
                    self._bucket.create(self._name + name, data)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the folder against the other threads, and the other processes of its home."""
        with naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        with self._lock, locked(self._folder / ".shared.lock"):
            yield

    def _pull(self, bucket: Bucket) -> None:
        """Make the local files the bucket's; those that were never its stay."""
        tags = bucket.names(self._name)
        for name, tag in tags.items():
            is_here = (self._folder / name).exists() and self._tags.get(name) == tag
            if not is_here and (data := bucket.read(self._name + name, is_large=True)) is not None:
                replace_file(self._folder / name, data)
        for name in self._pulled() - tags.keys():
            with naming(self._folder / name):
                (self._folder / name).unlink(missing_ok=True)
        replace_file(self._folder / PULLED, to_json("names", {"names": sorted(tags)}))
        self._tags = tags

    def _pulled(self) -> set[str]:
        """The names that were the bucket's when it was last read."""
        try:
            return set(from_json(read_file(self._folder / PULLED))["names"])
        except FileNotFoundError:
            return set()

    def _content(self) -> dict[str, bytes]:
        names = [name for name in list_folder(self._folder) if not name.startswith(".")]
        return {name: read_file(self._folder / name) for name in names}
