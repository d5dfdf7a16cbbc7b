"""What is to be done when a time has come, unless it was taken back before.

gRPC ends a call at its deadline, but for one that it is writing to a connection whose peer takes nothing: that one it
lets wait until the connection is given up. So calls have a deadline here too.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

# How long gRPC's own end of a call may take to come, seconds.
GRACE_S = 0.05
# Of those taken back, as many may lie about before they are cleared away.
_MOST_REMOVED = 1_000


class Entry(NamedTuple):
    """One that waits; its own by `number` among those of the same time."""

    due: float
    number: int
    passed: Callable[[], None]


class Deadlines:
    """Thread-safe. Has one thread, from the first deadline on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[Entry] = []
        self._removed: set[int] = set()
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, deadline: float, passed: Callable[[], None]) -> Entry:
        """Has `passed` run, on the thread, GRACE_S after `deadline`, of time.monotonic, unless it is removed before.

        `passed` must neither block nor raise."""
        with self._changed:
            entry = Entry(deadline + GRACE_S, next(self._numbers), passed)
            heapq.heappush(self._heap, entry)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="nsa-metadata-deadlines", daemon=True)
                self._thread.start()
            elif self._heap[0] is entry:
                self._changed.notify()
        return entry

    def remove(self, entry: Entry) -> None:
        """Takes it back; again, or once it has run: does nothing."""
        with self._changed:
            self._removed.add(entry.number)
            if len(self._removed) > max(_MOST_REMOVED, len(self._heap) // 2):
                self._heap = [each for each in self._heap if each.number not in self._removed]
                heapq.heapify(self._heap)
                self._removed.clear()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap or (wait := self._heap[0].due - time.monotonic()) > 0:
                    self._changed.wait(wait if self._heap else None)
                entry = heapq.heappop(self._heap)
                removed = entry.number in self._removed
                self._removed.discard(entry.number)
            if not removed:
                entry.passed()


DEADLINES = Deadlines()
