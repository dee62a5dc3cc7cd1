"""Scratch memory that threads keep between calls."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor

KEPT_SCRATCH = 16 << 20
"""Bytes of scratch memory that a thread keeps for its next call."""


class Scratch(threading.local):
    """Memory that a thread needs during a call, kept for its next one: allocating takes time.

    Nothing is kept during a call: a signal's handler may make another one on the same thread.
    """

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self.kept: tuple[int, int, Tensor | None] = (0, 0, None)

    def take(self, size: int) -> tuple[int, int, Tensor | None]:
        """Return the address of at least ``size`` bytes, their number and what holds them."""
        kept = self.kept
        if size <= min(kept[1], KEPT_SCRATCH):
            self.kept = (0, 0, None)
            return kept
        buffer = self._allocate(size)
        return buffer.data_ptr(), size, buffer

    def give_back(self, taken: tuple[int, int, Tensor | None]) -> None:
        """Keep what ``take`` returned."""
        if self.kept[1] <= taken[1] <= KEPT_SCRATCH:
            self.kept = taken
