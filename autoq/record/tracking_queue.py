"""A queue in front of a server that may be away: nothing is lost, and nobody waits for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")

# After a failed attempt the server is left alone this long (seconds), twice as long after each further one.
FIRST_PAUSE, LONGEST_PAUSE = 2.0, 60.0


class PatientQueue(Generic[Item]):
    """Items in the order they came, written by ``write``; what fails stays and is tried again later.

    ``write`` raises when it fails. ``lasting`` says of such an error that every other attempt would fail alike: that
    item is given up, and the queue behind it goes on. ``failed`` is told of every failure. ``clock`` is in seconds.
    """

    def __init__(
        self,
        write: Callable[[Item], None],
        *,
        lasting: Callable[[Exception], bool],
        failed: Callable[[Item, Exception], None],
        clock: Callable[[], float],
    ) -> None:
        self._write = write
        self._lasting = lasting
        self._failed = failed
        self._clock = clock
        self._items: deque[Item] = deque()
        self._pause = FIRST_PAUSE
        self._not_before = float("-inf")

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Item) -> None:
        """Add an item, and write what can be written unless a pause is on."""
        self._items.append(item)
        if self._clock() >= self._not_before:
            self.flush()

    def flush(self) -> None:
        """Write items, pause or not, until none is left or the server fails."""
        while self._items:
            try:
                self._write(self._items[0])
            except Exception as error:  # a client lets through whatever its database or HTTP library raises
                self._failed(self._items[0], error)
                if not self._lasting(error):
                    self._not_before = self._clock() + self._pause
                    self._pause = min(2 * self._pause, LONGEST_PAUSE)
                    return
            else:
                self._pause, self._not_before = FIRST_PAUSE, float("-inf")
            self._items.popleft()
