"""fastrnn held to one thread: the ratio to it is the gain of the others."""

from __future__ import annotations

from typing import Any

import torch

from registry import Case, Data

from . import Side
from .fastrnn_modules import build as build_threaded


def build(case: Case, data: Data, threads: int) -> Side:
    side = build_threaded(case, data, threads)

    def step() -> Any:
        torch.set_num_threads(1)
        try:
            return side.step()
        finally:
            torch.set_num_threads(threads)

    return Side(step, side.arrays)
