"""Version numbers: each is assigned once, even if the folder of its version is deleted later.

Knows one number in a file. Knows nothing of versions. The caller holds the lock.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from core.atomic import replace_file
from core.errors import BadCodebook
from core.json_records import decode, encode

NAME = re.compile(r"v(0|[1-9][0-9]{0,8})")  # of a version


def number_of(version: str) -> int:
    """Return the number in the name of a version."""
    return int(version.removeprefix("v"))


@dataclass(frozen=True)
class _Mark:
    highest: int


class Numbers:
    """The highest number assigned so far, in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether a number was ever recorded."""
        return self._path.exists()

    def highest(self) -> int:
        """Return the highest number recorded, 0 if none was. Raises BadCodebook (numbers) if the file is damaged."""
        try:
            return decode(_Mark, self._path.read_bytes()).highest
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            detail = f"{self._path} is damaged: {error}; move it away: it is rebuilt from the store"
            raise BadCodebook("store", "numbers", detail) from None

    def note(self, number: int) -> None:
        """Record `number` unless a higher one is recorded; to be called before its version becomes visible."""
        if number > self.highest():
            replace_file(self._path, encode(_Mark(number)))
