"""Store of codebook versions: immutable, numbered, checked whenever they are read; one of them is active.

Any number of processes may read and write: on one machine in a folder, on several in a bucket (codebook/places). Knows
nothing of Redis: the store is the source of truth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

from codebook.folder import (
    SIGNATURE,
    NewVersion,
    check_images,
    list_images,
    read_image,
    read_manifest,
    read_report,
    read_version,
    sign_version,
    write_version,
)
from codebook.identity import Identity
from codebook.manifest import Manifest, Origin
from codebook.mode import Mode
from codebook.moves import BASE
from codebook.numbers import NAME, number_of
from codebook.places.bucket_place import BucketPlace
from codebook.places.folder_place import FolderPlace
from codebook.places.place import Place
from codebook.pointer import ActiveRecord, Moved
from codebook.signature import UNSIGNED, Signatures
from codebook.tensors import check_codebook, codebook_hash
from codebook.trials.trial_moves import TrialMoves
from codebook.value import Codebook
from core.bucket.bucket import Bucket
from core.errors import BadCodebook, BadInput, Conflict, NotFound
from core.json_records import plain
from core.settings import Settings

__all__ = ["ActiveRecord", "CodebookStore", "Manifest", "Moved", "codebook_hash"]

_OF_FILES = ("manifest", "file", "sha256", "content")  # checks that a damaged copy fails
_NO_IMAGES: Mapping[str, bytes] = MappingProxyType({})


class CodebookStore(TrialMoves):
    """The versions of one model's codebook in a place, or in a folder. Safe to share between threads and processes.

    Until `initialise` has run once for the place, every other method but `names` and `versions` raises NotFound. Where
    the place is a bucket, every use raises NoBucket while its server does not answer.
    """

    def __init__(self, place: Place | Path, signatures: Signatures = UNSIGNED) -> None:
        self.place: Place = FolderPlace(place) if isinstance(place, Path) else place
        self._signatures, self._pointer = signatures, self.place.pointer
        self._model: Codebook | None = None  # the codebook that `initialise` was given

    @classmethod
    def of(cls, settings: Settings, patience: float = 0.0) -> CodebookStore:
        """Return the store of the settings, with their keys. Raises BadSetting as Signatures.of.

        patience: seconds for which a use waits for a bucket whose server does not answer.
        """
        bucket = None if settings.bucket is None else Bucket(settings.bucket, patience)
        place = settings.store if bucket is None else BucketPlace(bucket, settings.store)
        return cls(place, Signatures.of(settings))

    def initialise(self, base: Codebook, facts: Mapping[str, Any]) -> None:
        """Create the store of a model, with its own codebook `base` as the active v0. Idempotent.

        facts: JSON, for people; `feature_dim`, if present, is the width that every head edit must have.
        Raises BadCodebook (model_hash, family, shape, ...) if the store is another model's, or if `base` or the stored
        v0 fails a check.
        """
        if base.version != BASE:
            raise BadInput("base", base.version, f"the model's own codebook, {BASE}")
        self._model = base
        self.place.prepare()
        # Nothing is held if there is nothing to create: a read-only store can be served.
        with nullcontext() if self.place.is_whole() else self.place.writing():
            is_new = self.place.identity() is None
            identity = Identity.of(base, plain("facts", facts)) if is_new else self._identity()
            check_codebook(identity, base)
            if is_new:
                self.place.identify(identity)
            if BASE in self.names():
                self._check_base()
            else:
                self._add(identity, NewVersion(base, _origin(None), identity.facts), base)
            self._pointer.start(BASE, "initialise")

    def check_writable(self) -> None:
        """Raise NoStorage if a version could not be published or activated."""
        self.place.check_writable()

    def names(self) -> list[str]:
        """Return the names of all versions, oldest first, including those that would be refused."""
        return self.place.names()

    def versions(self, most: int | None = None, before: str | None = None) -> list[Manifest]:
        """Return the manifests, oldest first, without damaged ones; `manifest` has the reason.

        most, before: the newest `most` alone, of those that are older than `before`. Raises NotFound for a `before`
        that is not the name of a version.
        """
        if before is not None and not NAME.fullmatch(before):
            raise NotFound(f"there is no codebook version {before!r}")
        names = [name for name in self.names() if before is None or number_of(name) < number_of(before)]
        return [*islice(self._sound_manifests(names[::-1]), most)][::-1]

    def manifest(self, version: str) -> Manifest:
        """Return the manifest of a version. Raises NotFound, or BadCodebook (manifest) if it is damaged."""
        return read_manifest(self.place.folder(version), version)

    def load(self, version: str) -> Codebook:
        """Return a version after every check. Raises NotFound, or BadCodebook as folder.read_version does."""
        own = self._model if version == BASE else None
        # Nobody signs v0. Without a model to compare it with, it is for whoever serves it to check.
        signatures = UNSIGNED if version == BASE and own is None else self._signatures
        identity = self._identity()
        try:
            return read_version(self.place.folder(version, is_whole=True), version, identity, signatures, own)
        except BadCodebook as error:
            if error.check not in _OF_FILES or not self.place.renew(version):  # of a copy the original may be sound
                raise
        return read_version(self.place.folder(version, is_whole=True), version, identity, signatures, own)

    def sign(self, version: str) -> None:
        """Sign a version that was published without a key, after every other check. Raises as `load`."""
        with self._writing() as identity:
            folder = self.place.folder(version, is_whole=True)
            if sign_version(folder, version, identity, self._signatures):
                self.place.push(version, SIGNATURE)

    def report(self, version: str) -> dict[str, Any]:
        """Return the report of a version (of v0: the model's facts). Raises NotFound."""
        return read_report(self.place.folder(version))

    def images(self, version: str) -> list[str]:
        """Return the file names of the PNGs of a version's report, sorted. Raises NotFound."""
        return list_images(self.place.folder(version, is_whole=True))

    def image(self, version: str, name: str) -> bytes:
        """Return a PNG of a version's report by its file name. Raises NotFound."""
        return read_image(self.place.folder(version, is_whole=True), name)

    def publish(
        self,
        draft: Codebook,
        *,
        parent: str,
        job: str,
        round: int,
        figures: Mapping[str, Any],
        gates: Mapping[str, Any],
        report: Mapping[str, Any],
        images: Mapping[str, bytes] = _NO_IMAGES,
        fence: int,
    ) -> Manifest:
        """Store `draft` under the next free name and return its manifest. Does not activate it.

        Idempotent per (job, round): a repeated call returns the manifest of the first. `draft.version` is for errors.
        fence: the attempt of the job. images: PNG bytes by file name. A crash leaves all of a version or none.

        Raises Conflict for a stale fence or a (job, round) published with other content, NotFound for an unknown
        parent, BadCodebook if the draft fails a check, BadInput for values that are not JSON and bad file names.
        """
        check_images(images)
        figures, gates = plain("figures", figures), plain("gates", gates)
        origin = Origin(parent=parent, job=job, round=round, figures=figures, gates=gates)
        new = NewVersion(draft, origin, plain("report", report), images)
        with self._writing() as identity:
            check_codebook(identity, draft)
            self.place.admit(job, fence)
            manifest = self._published(job, round) or self._add_next(identity, new, f"{job}/{round}")
            if manifest.content_hash != codebook_hash(draft):
                raise Conflict(f"round {round} of job {job} is published as {manifest.version}, with other content")
        return manifest

    def derive(self, version: str, mode: Mode) -> Manifest:
        """Store a version of the same tables in another mode, and return its manifest. Does not activate it.

        It is a child of `version`, without figures and gates: those of `version` are of its edit. If there is a version
        of that content, it is returned. Raises NotFound, BadInput for a version without a router, which fires for
        nothing or everything, and for "rewrite" where the model's facts say that it does not, Conflict where either is
        revoked, and BadCodebook as `load`.
        """
        facts = self._identity().facts
        if mode == "rewrite" and not facts.get("rewrites", True):  # a store of an earlier release does not say
            raise BadInput(
                "mode", mode, f"edit, redraw or refuse: {facts.get('model_id', 'the model')} rewrites no prompts"
            )
        codebook = self.load(version)
        if codebook.output is None or codebook.output.router is None:
            raise BadInput("version", version, "a version whose edit of the image head has a router")
        draft = codebook.in_mode(mode)
        new = NewVersion(draft, _origin(version), {"derived_from": version, "mode": mode})
        with self._writing() as identity:
            self._refuse_revoked(version)
            same = [manifest for manifest in self.versions() if manifest.content_hash == codebook_hash(draft)]
            if same:
                self._refuse_revoked(same[0].version)
            return same[0] if same else self._add_next(identity, new, f"content/{codebook_hash(draft)}")

    def _identity(self) -> Identity:
        if (identity := self.place.identity()) is None:
            raise NotFound(f"there is no codebook store in {self.place.name}: it is not initialised")
        if self._model is not None:  # the folder may have been replaced by another model's store
            identity.check(BASE, self._model.family, self._model.model_hash)
        return identity

    def _check_base(self) -> None:
        try:
            self.load(BASE)
        except BadCodebook as error:
            again = f"move {self.place.name}/versions/{BASE} away and start again: it is written again from the model"
            raise BadCodebook(BASE, error.check, f"{error.detail}; {again}") from None

    def _known(self, version: str) -> None:
        self.place.folder(version)

    @contextmanager
    def _writing(self) -> Iterator[Identity]:
        identity = self._identity()
        with self.place.writing():
            yield identity

    def _sound_manifests(self, versions: Sequence[str]) -> Iterator[Manifest]:
        for version in versions:
            with suppress(BadCodebook, NotFound):
                yield self.manifest(version)

    def _add_next(self, identity: Identity, new: NewVersion, once: str) -> Manifest:
        self.manifest(str(new.origin["parent"]))
        base = self.load(BASE)
        fresh = replace(new.codebook, version=self.place.reserve(once))
        return self._add(identity, replace(new, codebook=fresh), base)

    def _add(self, identity: Identity, new: NewVersion, base: Codebook) -> Manifest:
        """Write the checked version; its files are read back and checked before they are visible.

        Return its manifest: another's, where another was first to publish the same.
        """
        version = new.codebook.version
        with self.place.adding(version) as hidden:
            write_version(hidden, new, base.pixel, self._signatures, identity.revision)
            read_version(hidden, version, identity, self._signatures, new.codebook if version == BASE else None)
        return self.manifest(version)

    def _published(self, job: str, round: int) -> Manifest | None:
        return next((m for m in self.versions() if (m.job, m.round) == (job, round)), None)


def _origin(parent: str | None) -> Origin:
    """The origin of a version that no job made."""
    return Origin(parent=parent, job=None, round=None, figures={}, gates={})
