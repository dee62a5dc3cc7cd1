"""Looking at reservoirs and adapting them: intrinsic plasticity and the echo state index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import _inputs
from ._layer import ReservoirLayer
from ._run import run_layers
from .matrices import Entries

if TYPE_CHECKING:
    from .reservoir import Reservoir


@torch.no_grad()
def fit_intrinsic_plasticity(
    res: Reservoir, x: Tensor, mean: float, std: float, learning_rate: float, epochs: int
) -> None:
    """Adapt gains and biases in place; see ``Reservoir.fit_intrinsic_plasticity``."""
    owner = "fit_intrinsic_plasticity"
    if res.activation != "tanh":
        raise ValueError(f"{owner}: activation must be tanh, got {res.activation}")
    if res.feedback_size:
        raise ValueError(f"{owner}: feedback_size must be 0, got {res.feedback_size}")
    if not -1 < mean < 1:
        raise ValueError(f"{owner}: mean must be in (-1, 1), got {mean}")
    for name, value in (("std", std), ("learning_rate", learning_rate), ("epochs", epochs)):
        if not value > 0:
            raise ValueError(f"{owner}: {name} must be positive, got {value}")
    batch = _inputs.read(owner, x, None, res.input_size, res.batch_first, res.dtype)
    below = batch.x
    for level in range(res.num_layers):
        start = level * res.directions
        layers = [res.layers[start + d] for d in range(res.directions)]
        for direction, layer in enumerate(layers):
            assert isinstance(layer, ReservoirLayer)
            seen = below.flip(0) if direction else below
            _adapt(layer, seen.double(), mean, std, learning_rate, epochs)
        below = run_layers(layers, res.directions, below[None], None, None, None, 0.0, False)[0][0]


def _adapt(
    layer: ReservoirLayer, x: Tensor, mean: float, std: float, rate: float, epochs: int
) -> None:
    leak, w_ih = layer.leak[0].double(), layer.weight_ih[0].double()
    recurrent = _sparse(layer.recurrent.entries())
    carry = None if layer.carry is None else layer.carry.entries().dense().T
    gain, shift = torch.ones_like(leak), layer.bias[0].double()
    variance = std * std
    for _ in range(epochs):
        state = x.new_zeros(x.shape[1], len(leak))
        for u in x:
            net = u @ w_ih.T + torch.sparse.mm(recurrent, state.T).T
            y = torch.tanh(gain * net + shift)
            slope = y / variance * (2 * variance + 1 - y * y + mean * y) - mean / variance
            step = -rate * slope
            kept = state if carry is None else state @ carry
            state = (1 - leak) * kept + leak * y
            gain = gain + rate / gain + (step * net).mean(0)
            shift = shift + step.mean(0)
    dtype = layer.bias.dtype
    layer.recurrent.multiply_rows(gain.to(dtype))
    layer.weight_ih[0] *= gain[:, None].to(dtype)
    layer.bias[0] = shift.to(dtype)


def _sparse(matrix: Entries) -> Tensor:
    """Return a sparse tensor that multiplies a state column: rows are units."""
    indices = torch.stack([matrix.rows, matrix.columns])
    size = (matrix.size, matrix.size)
    return torch.sparse_coo_tensor(indices, matrix.values, size, check_invariants=False).coalesce()


@torch.no_grad()
def echo_state_index(res: Reservoir, x: Tensor, washout: int, trials: int, seed: int) -> float:
    """Return the mean distance of trajectories; see ``Reservoir.echo_state_index``."""
    owner = "echo_state_index"
    if res.feedback_size:
        raise ValueError(f"{owner}: feedback_size must be 0, got {res.feedback_size}")
    if trials < 1:
        raise ValueError(f"{owner}: trials must be at least 1, got {trials}")
    batch = _inputs.read(owner, x, None, res.input_size, res.batch_first, res.dtype)
    T, B = batch.x.shape[:2]
    end = T - washout if res.bidirectional else T  # backwards, the first steps are the last
    if not 0 <= washout < end:
        raise ValueError(
            f"{owner}: washout must be in [0, T) = [0, {T}), or less than T / 2 if bidirectional, "
            f"got {washout}"
        )
    slots = len(res.layers)
    generator = torch.Generator().manual_seed(seed)
    h0 = torch.zeros(1, slots, (trials + 1) * B, res.hidden_size, dtype=res.dtype)
    drawn = torch.rand(slots, trials * B, res.hidden_size, generator=generator) * 2 - 1
    h0[0, :, B:] = drawn.to(res.dtype)
    total, before = 0.0, h0
    steps = T if res.bidirectional else max(1, (1 << 20) // h0.numel())
    for start in range(0, T, steps):
        part = batch.x[start : start + steps].repeat(1, trials + 1, 1)
        y, before = run_layers(
            res.layers, res.directions, part[None], before, None, None, 0.0, False
        )
        states = y[0].reshape(len(part), trials + 1, B, -1).double()
        distances = (states[:, 1:] - states[:, :1]).norm(dim=-1).mean((1, 2))
        total += float(distances[max(0, washout - start) : max(0, end - start)].sum())
    return total / (end - washout)
