"""Memory for the engine: in large pages, and scratch that threads keep between calls."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        "fastrnn: the compiled module fastrnn._core cannot be loaded; install the package with "
        f"`pip install .` rather than import its source folder ({error})"
    ) from error

core = _core

LARGE = 4 << 20
"""Bytes from which memory is worth large pages, as NumPy has it."""

KEPT_SCRATCH = 16 << 20
"""Bytes of scratch memory that a thread keeps for its next call."""


def large_pages(memory: Tensor) -> Tensor:
    """Return memory that is about to be written for the first time, in large pages if it is large.

    Where pages are small, a fault for each takes longer than writing what it holds.
    """
    if memory.nbytes >= LARGE and memory.is_cpu:
        _core.advise_huge_pages(memory.data_ptr(), memory.nbytes)
    return memory


def allocate(size: int) -> Tensor:
    """Return that many bytes on the CPU, whatever torch's default device is."""
    return large_pages(torch.empty(size, dtype=torch.uint8, device=torch.device("cpu")))


class Scratch(threading.local):
    """Memory that a thread needs during a call, kept for its next one: allocating takes time.

    Nothing is kept during a call: a signal's handler may make another one on the same thread.
    """

    def __init__(self) -> None:
        self.kept: tuple[int, int, Tensor | None] = (0, 0, None)

    def take(self, size: int) -> tuple[int, int, Tensor | None]:
        """Return the address of at least ``size`` bytes, their number and what holds them."""
        kept = self.kept
        if size <= min(kept[1], KEPT_SCRATCH):
            self.kept = (0, 0, None)
            return kept
        buffer = allocate(size)
        return buffer.data_ptr(), size, buffer

    def give_back(self, taken: tuple[int, int, Tensor | None]) -> None:
        """Keep what ``take`` returned."""
        if self.kept[1] <= taken[1] <= KEPT_SCRATCH:
            self.kept = taken
