"""What is to be done when a time has come, unless it was taken back before.

gRPC ends a call at its deadline, but for one that it is writing to a connection whose peer takes nothing: that one it
lets wait until the connection is given up. So calls have a deadline here too.
"""

import heapq
import itertools
import threading
import time
from collections.abc import Callable

# How long gRPC's own end of a call may take to come, seconds.
GRACE_S = 0.05
# Of those taken back, as many may lie about before they are cleared away.
_MOST_REMOVED = 1_000


# The longest wait in one go; a thread can't wait for as long as a timeout may be.
_LONGEST_WAIT_S = 3_600.0


class Entry:
    """One that waits; `number` tells those of the same time apart. Without `passed` it was taken back."""

    __slots__ = ("due", "number", "passed")

    def __init__(self, due: float, number: int, passed: Callable[[], None]) -> None:
        self.due, self.number = due, number
        self.passed: Callable[[], None] | None = passed

    def __lt__(self, other: "Entry") -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Deadlines:
    """Thread-safe. Has one thread, from the first deadline on."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._heap: list[Entry] = []
        self._removed = 0  # of the heap's
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None

    def add(self, deadline: float, passed: Callable[[], None]) -> Entry:
        """Has `passed` run, on the thread, GRACE_S after `deadline`, of time.monotonic, unless it is removed before.

        `passed` must neither block nor raise.
        """
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
        """Takes it back, and lets go of `passed`; again, or once it has run: does nothing."""
        with self._changed:
            if entry.passed is None:
                return
            entry.passed = None
            self._removed += 1
            if self._removed > max(_MOST_REMOVED, len(self._heap) // 2):
                self._heap = [each for each in self._heap if each.passed is not None]
                heapq.heapify(self._heap)
                self._removed = 0

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._heap or (wait := self._heap[0].due - time.monotonic()) > 0:
                    self._changed.wait(min(wait, _LONGEST_WAIT_S) if self._heap else None)
                entry = heapq.heappop(self._heap)
                passed, entry.passed = entry.passed, None
                if passed is None:
                    self._removed -= 1
            if passed is not None:
                passed()
            del entry, passed  # not until the next one comes


DEADLINES = Deadlines()
