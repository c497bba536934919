"""Place of a store for several machines: a bucket, of whose versions each machine keeps local copies.

    model.json                 the identity of the model, created once
    numbers/000000000          one object a number of a version, so that none is assigned twice
    published/ONCE             the version of one round of one job, or of one content: published once
    fences/JOB/000000          the attempts of a job that published
    blobs/SHA256               files of versions, by their content
    versions/vN/index.json     the files of a version; created last, so that a version is there whole or not at all
    versions/vN/manifest.sig   a signature that was made later
    active/000000000000        the active alias (see bucket_pointer.py)

Nothing is overwritten and nothing is locked: each step is the creation of an object, which one caller wins. A local
copy is compared with the bucket when it is used and ten seconds have passed; while the bucket does not answer, the copy
serves.

Knows objects and files. Knows nothing of what they contain.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from codebook.folder import SIGNATURE, is_light
from codebook.identity import Identity
from codebook.numbers import NAME, number_of
from codebook.places.bucket_pointer import BucketPointer
from core.atomic import locked, read_file, replace_file
from core.bucket.bucket import Bucket
from core.bucket.race import check_races
from core.errors import BadCodebook, Conflict, NoBucket, NotFound
from core.json_records import encode, from_json, to_json

TRUSTED_S = 10.0  # how long a local copy counts as equal to the bucket's version
RENEW_EVERY_S = 300.0
INDEX = "index.json"


class BucketPlace:
    """The store in a bucket, with copies in the local folder `copies`. See Place for its methods."""

    def __init__(self, bucket: Bucket, copies: Path) -> None:
        self._bucket, self._copies = bucket, copies
        self.pointer = BucketPointer(bucket)
        self._identity: Identity | None = None
        self._compared: dict[str, float] = {}  # version -> monotonic seconds
        self._renewed: dict[str, float] = {}  # likewise
        self._is_trusted = False

    @property
    def name(self) -> str:
        """See Place."""
        return self._bucket.url

    @property
    def remedy(self) -> str:
        """See Place."""
        return "safecb codebooks rollback --to v0 --offline"

    def prepare(self) -> None:
        """See Place: races creations in the bucket, once a process."""
        if not self._is_trusted:
            check_races(self._bucket)
            self._is_trusted = True

    def is_whole(self) -> bool:
        """See Place."""
        return True  # nobody waits for a lock

    def identity(self) -> Identity | None:
        """See Place; read once: it never changes."""
        if self._identity is None and (data := self._bucket.read("model.json")) is not None:
            try:
                self._identity = Identity.parse(f"{self.name}/model.json", data)
            except ValueError as error:
                detail = f"{self.name}/model.json is damaged: {error}; restore it from a backup"
                raise BadCodebook("store", "model", detail) from None
        return self._identity

    def identify(self, identity: Identity) -> None:
        """See Place. Raises Conflict where another server has created another store here in the same moment."""
        if not self._bucket.create("model.json", encode(identity)) and self.identity() != identity:
            raise Conflict(f"{self.name} was made another model's store in the same moment")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """See Place: one state of the active alias."""
        with self.pointer.held():
            yield

    def names(self) -> list[str]:
        """See Place."""
        listed = self._bucket.names("versions/")
        versions = {name.partition("/")[0] for name in listed if name.endswith(f"/{INDEX}")}
        return sorted(filter(NAME.fullmatch, versions), key=number_of)

    def folder(self, version: str, *, is_whole: bool = False) -> Path:
        """See Place. Raises NoBucket where the bucket does not answer and there is no copy."""
        if not NAME.fullmatch(version):
            raise NotFound(f"there is no codebook version {version!r}")
        copy = self._copies / version
        self._copies.mkdir(parents=True, exist_ok=True)
        try:
            self._compare(version, copy)
        except NoBucket:
            if not (copy / INDEX).exists():
                raise
            self._compared[version] = time.monotonic()  # the copy serves, and is compared later
        self._fill(copy, is_whole)
        return copy

    def reserve(self, once: str) -> str:
        """See Place: the number is created, and whoever creates `published/ONCE` first decides its name."""
        if (data := self._bucket.read(f"published/{once}")) is not None:
            return str(from_json(data)["version"])
        numbers = [int(name) for name in self._bucket.names("numbers/")]
        number = max([0, *numbers, *map(number_of, self.names())]) + 1
        while not self._bucket.create(f"numbers/{number:09d}", secrets.token_bytes(8)):
            number += 1
        version = f"v{number}"
        if self._bucket.create(f"published/{once}", to_json("version", {"version": version})):
            return version
        return self.reserve(once)  # another was first: its name

    def leave_out(self, number: int) -> None:
        """Let no version get a number up to this one."""
        self._bucket.create(f"numbers/{number:09d}", secrets.token_bytes(8))

    @contextmanager
    def adding(self, version: str) -> Iterator[Path]:
        """See Place."""
        self._copies.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._copies, prefix=".new-") as name:
            hidden = Path(name)
            yield hidden
            files = {path.name: self._blob(path.read_bytes()) for path in sorted(hidden.iterdir())}
            self._bucket.create(f"versions/{version}/{INDEX}", to_json("files", files, indent=2))
        self._compared.pop(version, None)

    def admit(self, job: str, fence: int) -> None:
        """See Place."""
        highest = max(map(int, self._bucket.names(f"fences/{job}/")), default=fence)
        if fence < highest:
            raise Conflict(f"attempt {fence} of job {job} is stale: attempt {highest} has taken over")
        self._bucket.create(f"fences/{job}/{fence:06d}", b"{}")

    def push(self, version: str, file: str) -> None:
        """See Place."""
        self._bucket.write(f"versions/{version}/{file}", read_file(self._copies / version / file))

    def renew(self, version: str) -> bool:
        """See Place; once in some minutes, or a version that is damaged in the bucket would be fetched for ever."""
        now = time.monotonic()
        if now - self._renewed.get(version, -RENEW_EVERY_S) < RENEW_EVERY_S:
            return False
        self._renewed[version] = now
        with locked(self._copies / ".lock"):
            shutil.rmtree(self._copies / version, ignore_errors=True)
            self._compared.pop(version, None)
        return True

    def check_writable(self) -> None:
        """See Place."""
        self._bucket.write("writable", b"{}")

    def _blob(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self._bucket.create(f"blobs/{sha256}", data)
        return sha256

    def _compare(self, version: str, copy: Path) -> None:
        """Make the copy's index the bucket's, without files of another version of that name.

        The lock is held for files alone, never while the bucket is asked. Raises NotFound, and removes the copy, if the
        bucket has no such version.
        """
        if time.monotonic() - self._compared.get(version, -TRUSTED_S) < TRUSTED_S:
            return
        index = self._bucket.read(f"versions/{version}/{INDEX}")
        signature = None
        if index is not None and not (copy / SIGNATURE).exists():
            signature = self._bucket.read(f"versions/{version}/{SIGNATURE}")
        with locked(self._copies / ".lock"):
            if index is None or not (copy / INDEX).exists() or read_file(copy / INDEX) != index:
                shutil.rmtree(copy, ignore_errors=True)
            if index is None:
                raise NotFound(f"there is no codebook version {version!r}")
            if not copy.exists():
                copy.mkdir()
                replace_file(copy / INDEX, index)
            if signature is not None:
                replace_file(copy / SIGNATURE, signature)
        self._compared[version] = time.monotonic()

    def _fill(self, copy: Path, is_whole: bool) -> None:
        """Fetch the files of the index that the copy lacks."""
        for name, sha256 in from_json(read_file(copy / INDEX)).items():
            if (copy / name).exists() or not (is_whole or is_light(name)):
                continue
            data = self._bucket.read(f"blobs/{sha256}", is_large=True)
            if data is None or hashlib.sha256(data).hexdigest() != sha256:
                raise BadCodebook(copy.name, "file", f"{name} is missing in the bucket, or damaged there")
            with locked(self._copies / ".lock"):
                if copy.exists():
                    replace_file(copy / name, data)
