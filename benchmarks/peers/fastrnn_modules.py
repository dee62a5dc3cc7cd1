"""fastrnn.RNN, LSTM and GRU, and their streams."""

from __future__ import annotations

import torch
from torch import Tensor

import fastrnn
from registry import Case, Data

from . import Side
from .torch_modules import build_sequence, layer, stacked


def build(case: Case, data: Data, threads: int) -> Side:
    torch.set_num_threads(threads)
    if case.mode == "streaming":
        return build_steps(case, data)
    return build_sequence(fastrnn, case, data)


def build_steps(case: Case, data: Data) -> Side:
    module = layer(fastrnn, case, data)
    stream = module.stream(case.B)
    rows = list(torch.from_numpy(data.x).to(getattr(torch, case.storage)))

    def step() -> tuple[Tensor, ...]:
        stream.reset()
        return tuple([stream.step(row) for row in rows])

    return Side(step, stacked)
