"""Small calls of every kind on a device, each held against torch.nn in float64.

`make gpu-check` runs it alone and under compute-sanitizer, which needs few and short kernels.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import _cuda_emulated
import fastrnn
from tolerances import eps

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "tanh": ("RNN", {}),
    "relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "projected lstm": ("LSTM", {"proj_size": 7}),
    "gru": ("GRU", {}),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
T, B, I, H = 3, 5, 4, 19  # a few steps and odd sizes: more is for the tests
LENGTHS = torch.tensor([3, 3, 2, 1, 1])
# Largest error allowed, over the array's largest number, in units of rounding of the dtype: sums of
# some twenty numbers, and each step's output is rounded.
UNITS = 10


def results(module: Any, x: Tensor, dy: Tensor, packed: bool) -> list[Tensor]:
    """Return output, final states, and the gradients of the input and the parameters."""
    x = x.detach().requires_grad_()
    y, states = module(pack_padded_sequence(x, LENGTHS) if packed else x)
    y = y.data if packed else y
    states = states if isinstance(states, tuple) else (states,)
    loss = (y * dy).sum() + sum(s.square().sum() for s in states)
    gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    return [tensor.detach().cpu().double() for tensor in (y, *states, *gradients)]


def error(cell: str, dtype: torch.dtype, packed: bool, device: torch.device) -> float:
    """Return the largest error against torch.nn in float64, in units of rounding of the dtype."""
    name, options = CELLS[cell]
    torch.manual_seed(0)
    theirs = getattr(nn, name)(I, H, bidirectional=True, **options).to(dtype)
    ours = getattr(fastrnn, name)(I, H, bidirectional=True, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    outputs = 2 * options.get("proj_size", H)
    x = torch.randn(T, B, I).to(dtype)
    dy = torch.randn(int(LENGTHS.sum()), outputs) if packed else torch.randn(T, B, outputs)
    exact = results(theirs.double(), x.double(), dy.double(), packed)
    found = results(ours.to(device), x.to(device), dy.to(device), packed)
    errors = [(a - b).abs().max() / b.abs().max() for a, b in zip(found, exact, strict=True)]
    return float(torch.stack(errors).max()) / eps(dtype)


def main() -> int:
    """Run every case on the device that is named; print each one's error."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "emulated"), default="cuda")
    options = parser.parse_args()
    wrong = 0
    device = torch.device("cpu" if options.device == "emulated" else "cuda")
    with pytest.MonkeyPatch.context() as patch:
        _cuda_emulated.set_tf32(patch, False)
        if options.device == "emulated":
            _cuda_emulated.install(patch)
        for cell, dtype, packed in itertools.product(CELLS, DTYPES, (False, True)):
            if cell == "relu" and dtype.itemsize == 2:
                continue  # rounding takes outputs near zero across the kink, to another gradient
            units = error(cell, dtype, packed, device)
            good = units <= UNITS  # NaN is not
            wrong += not good
            label = f"{cell} {str(dtype).removeprefix('torch.')} {'packed' if packed else 'dense'}"
            print(f"{label}: error {units:.2f} units{'' if good else ', WRONG'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
