"""Copying of a store: all that lies in a folder, into a bucket that holds no store yet.

Knows files and records. Checks nothing that the versions contain: whoever loads them does.
"""

from __future__ import annotations

import shutil

from codebook.places.bucket_place import BucketPlace
from codebook.places.folder_place import FolderPlace
from core.errors import Conflict, NotFound


def copy_store(source: FolderPlace, target: BucketPlace) -> list[str]:
    """Copy the identity, the versions with their reports and the history of moves; return the names of the versions.

    A copy that was broken off is ended by the next one; no server may start on the bucket before. Raises NotFound where
    the folder holds no store, Conflict where the bucket holds one already.
    """
    if (identity := source.identity()) is None:
        raise NotFound(f"there is no codebook store in {source.name}")
    target.prepare()
    target.identify(identity)
    with source.writing():
        for version in source.names():
            with target.adding(version) as copy:
                shutil.copytree(source.folder(version), copy, dirs_exist_ok=True)
        target.leave_out(source.highest())
        if not target.pointer.adopt(source.pointer.audit()):
            raise Conflict(f"{target.name} holds this store already")
    return source.names()
