"""The numbers of versions: each is given once, even where the folder of its version is deleted later.

Knows one number in a file. Knows nothing of versions. The caller holds the lock.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.atomic import replace_file
from core.errors import BadCodebook
from core.json_records import decode, encode


@dataclass(frozen=True)
class _Mark:
    highest: int


class Numbers:
    """The highest number given so far, kept in the file `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def is_there(self) -> bool:
        """Whether a number was ever noted."""
        return self._path.exists()

    def highest(self) -> int:
        """Return the highest number noted, 0 where none was. Raises BadCodebook (numbers) where the file is damaged."""
        try:
            return decode(_Mark, self._path.read_bytes()).highest
        except FileNotFoundError:
            return 0
        except (OSError, ValueError) as error:
            detail = f"{self._path} is damaged: {error}; move it away: it is made anew from what the store holds"
            raise BadCodebook("store", "numbers", detail) from None

    def note(self, number: int) -> None:
        """Note `number`, unless a higher one was; to be called before anybody can see what has it."""
        if number > self.highest():
            replace_file(self._path, encode(_Mark(number)))
