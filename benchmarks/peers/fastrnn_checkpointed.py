"""fastrnn with checkpoint_every="auto": the ratio to it is what the saved memory costs."""

from __future__ import annotations

import torch

import fastrnn
from registry import Case, Data

from . import Side, UnsupportedError
from .torch_modules import build_sequence


def build(case: Case, data: Data, threads: int) -> Side:
    if case.mode != "training":
        raise UnsupportedError("training only")
    torch.set_num_threads(threads)
    return build_sequence(fastrnn, case, data, checkpoint_every="auto")
