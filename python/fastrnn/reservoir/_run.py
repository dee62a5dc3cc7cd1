"""Stacked layers of one or many members on one batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from . import _engine
from ._layer import ReservoirLayer


def run_layers(
    layers: Iterable[nn.Module],
    directions: int,
    x: Tensor,
    h0: Tensor | None,
    feedback: Tensor | None,
    lengths: Tensor | None,
    noise: float,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """Run stacked layers of M members on x (M, T, B, I); h0 and the second result (M, L*D, B, N).

    Returns the states of all layers side by side, (M, T, B, L*D*N), and the last ones.
    """
    outputs: list[Tensor] = []
    states: list[Tensor] = []
    below = x
    for index, layer in enumerate(layers):
        assert isinstance(layer, ReservoirLayer)
        weights = layer.weights()
        level, direction = divmod(index, directions)
        if level and direction == 0:
            below = _side_by_side(outputs[-directions:])
        drawn = None
        if noise:
            M, T, B, _ = x.shape
            drawn = torch.randn(M, T, B, weights.hidden_size, dtype=x.dtype) * noise
        settings = _engine.Run(weights, lengths, drawn, direction == 1, batch_first)
        given = None if h0 is None else h0[:, index]
        y, h = _engine.run(below, feedback if level == 0 else None, given, settings)
        outputs.append(y)
        states.append(h)
    return _side_by_side(outputs), states[0][:, None] if len(states) == 1 else torch.stack(
        states, 1
    )


def _side_by_side(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
