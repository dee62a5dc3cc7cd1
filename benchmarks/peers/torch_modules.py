"""torch.nn.RNN, LSTM and GRU; fastrnn's modules are called in the very same way."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from registry import Case, Data

from . import Side

CLASSES = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}


def build(case: Case, data: Data, threads: int) -> Side:
    torch.set_num_threads(threads)
    if case.mode == "streaming":
        return build_steps(case, data)
    return build_sequence(torch.nn, case, data)


def build_steps(case: Case, data: Data) -> Side:
    """Measure the cell module, the faster of torch's two ways to do a single step."""
    dtype = getattr(torch, case.dtype)
    cell = getattr(torch.nn, f"{CLASSES[case.cell]}Cell")(case.I, case.H, dtype=dtype)
    cell.load_state_dict(parameters(data, ""))
    rows = list(torch.from_numpy(data.x))

    def step() -> tuple[Tensor, ...]:
        state, outputs = None, []
        with torch.inference_mode():
            for row in rows:
                state = cell(row, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
        return tuple(outputs)

    return Side(step, stacked)


def stacked(outputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return {"y": torch.stack(outputs).numpy()}


def parameters(data: Data, suffix: str) -> dict[str, Tensor]:
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    return {f"{names[k]}{suffix}": torch.from_numpy(getattr(data, k)) for k in names}


def build_sequence(namespace: Any, case: Case, data: Data) -> Side:
    """Measure a module of ``namespace``, which follows torch.nn's interface."""
    dtype = getattr(torch, case.dtype)
    module = getattr(namespace, CLASSES[case.cell])(case.I, case.H, dtype=dtype)
    module.load_state_dict(parameters(data, "_l0"))
    x: Any = torch.from_numpy(data.x)
    dy: Any = torch.from_numpy(data.dy)
    if case.ragged:
        lengths = torch.from_numpy(case.lengths)
        x, dy = (pack_padded_sequence(tensor, lengths) for tensor in (x, dy))

    def forward() -> Tensor:
        y: Tensor = module(x)[0].data if case.ragged else module(x)[0]
        return y

    if case.mode == "inference":

        def infer() -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return (forward(),)

        return Side(infer, arrays)

    leaf = (x.data if case.ragged else x).requires_grad_()
    gradient = dy.data if case.ragged else dy
    wanted = [leaf, *module.parameters()]

    def train() -> tuple[Tensor, ...]:
        y = forward()
        return y, *torch.autograd.grad(y, wanted, gradient)

    return Side(train, arrays)


def arrays(results: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    names = ("y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh")
    return {name: t.detach().numpy() for name, t in zip(names, results, strict=False)}
