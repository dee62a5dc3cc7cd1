"""torch.nn.RNN, LSTM and GRU; fastrnn's modules are called in the very same way."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from registry import Case, Data

from . import Side, UnsupportedError

CLASSES = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}


def build(case: Case, data: Data, threads: int) -> Side:
    torch.set_num_threads(threads)
    if case.mode == "streaming":
        return build_steps(case, data)
    return build_sequence(torch.nn, case, data)


def build_steps(case: Case, data: Data) -> Side:
    """Measure the cell module, the faster of torch's two ways to do a single step."""
    if case.dtype == "int8":
        raise UnsupportedError("its 8-bit cells are not measured")
    dtype = getattr(torch, case.dtype)
    cell = getattr(torch.nn, f"{CLASSES[case.cell]}Cell")(case.I, case.H, dtype=dtype)
    cell.load_state_dict(parameters(data, ""))
    rows = list(torch.from_numpy(data.x).to(dtype))

    def step() -> tuple[Tensor, ...]:
        state, outputs = None, []
        with torch.inference_mode():
            for row in rows:
                state = cell(row, state)
                outputs.append(state[0] if isinstance(state, tuple) else state)
        return tuple(outputs)

    return Side(step, stacked)


def stacked(outputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    return arrays((torch.stack(outputs),))


def parameters(data: Data, suffix: str) -> dict[str, Tensor]:
    names = {"w_ih": "weight_ih", "w_hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    return {f"{names[k]}{suffix}": torch.from_numpy(getattr(data, k)) for k in names}


def layer(namespace: Any, case: Case, data: Data, **options: Any) -> Any:
    """Return a module of ``namespace``, which follows torch.nn's interface."""
    dtype = getattr(torch, case.storage)
    module = getattr(namespace, CLASSES[case.cell])(case.I, case.H, dtype=dtype, **options)
    module.load_state_dict(parameters(data, "_l0"))
    if case.dtype != "int8":
        return module
    if namespace is not torch.nn:
        return namespace.quantize_dynamic(module)
    if case.cell == "elman":
        raise UnsupportedError("it has no such 8-bit layer")
    with warnings.catch_warnings(action="ignore"):  # deprecated, but what there is
        whole = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(module), {type(module)})
    return whole[0]


def build_sequence(namespace: Any, case: Case, data: Data, **options: Any) -> Side:
    """Measure a module of ``namespace``."""
    dtype = getattr(torch, case.storage)
    module = layer(namespace, case, data, **options)
    x: Any = torch.from_numpy(data.x).to(dtype)
    dy: Any = torch.from_numpy(data.dy).to(dtype)
    packed = case.ragged and not case.padded
    if packed:
        lengths = torch.from_numpy(case.lengths)
        x, dy = (pack_padded_sequence(tensor, lengths) for tensor in (x, dy))

    unsorted = torch.from_numpy(case.unsorted_lengths)

    def forward() -> Tensor:
        if case.padded:
            return padded(module, x, unsorted)
        y: Tensor = module(x)[0].data if packed else module(x)[0]
        return y

    if case.mode == "inference":

        def infer() -> tuple[Tensor, ...]:
            with torch.inference_mode():
                return (forward(),)

        return Side(infer, arrays)

    leaf = (x.data if packed else x).requires_grad_()
    gradient = dy.data if packed else dy
    wanted = [leaf, *module.parameters()]

    def train() -> tuple[Tensor, ...]:
        y = forward()
        return y, *torch.autograd.grad(y, wanted, gradient)

    return Side(train, arrays)


def padded(module: Any, x: Tensor, lengths: Tensor) -> Tensor:
    """Call a module on padded input: fastrnn's takes lengths, torch's are packed for it."""
    if not type(module).__module__.startswith("torch"):
        native: Tensor = module(x, lengths=lengths)[0]
        return native
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    y: Tensor = pad_packed_sequence(module(packed)[0], total_length=len(x))[0]
    return y


def arrays(results: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    names = ("y", "dx", "dw_ih", "dw_hh", "db_ih", "db_hh")
    tensors = zip(names, (t.detach() for t in results), strict=False)
    return {n: (t.float() if t.itemsize < 4 else t).numpy() for n, t in tensors}
