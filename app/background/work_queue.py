"""Work queue: hands items to a thread of its own, so that no answer waits for what is done with them.

The thread begins with the first item and ends when none has come for a while. Knows threads. Knows nothing of items.
"""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, Full, Queue
from threading import Lock, Thread
from typing import Generic, TypeVar

WAITING = 64  # items that may wait
IDLE_S = 30.0  # after which the thread ends

Item = TypeVar("Item")


class WorkQueue(Generic[Item]):
    """Items in the order of `put`, each given to `work`, which must not raise; thread-safe."""

    def __init__(self, name: str, work: Callable[[Item], None]) -> None:
        """name: of the thread."""
        self._name, self._work, self._lock = name, work, Lock()
        self._waiting: Queue[Item] = Queue(WAITING)
        self._thread: Thread | None = None

    def put(self, item: Item) -> None:
        """Hand over an item; it is dropped if too many wait."""
        with self._lock:
            try:
                self._waiting.put_nowait(item)
            except Full:
                return
            if self._thread is None:
                self._thread = Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        """Work on what waits: the body of the thread."""
        while True:
            try:
                self._work(self._waiting.get(timeout=IDLE_S))
            except Empty:
                with self._lock:
                    if self._waiting.empty():
                        self._thread = None
                        return
