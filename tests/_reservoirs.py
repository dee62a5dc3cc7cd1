"""The reservoir's equation in plain torch, and modules of every layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn.reservoir import Reservoir, _layer
from fastrnn.reservoir._layer import PackedMatrix, ReservoirLayer

LAYOUTS = ("strips", "rows", "panels", "windows")
ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda v: v,
    "sigmoid": torch.sigmoid,
}


def with_layout(layout: str, monkeypatch: Any, *sizes: int, **options: Any) -> Reservoir:
    """Build a reservoir whose matrices are stored in the given way, whatever is cheapest."""
    with monkeypatch.context() as patch:
        patch.setattr(_layer, "STRIP_COST", 0.0 if layout == "strips" else 1e9)
        patch.setattr(_layer, "ENTRY_COST", 0.0 if layout == "rows" else 1e9)
        for name in ("WINDOW_COST", "SLOW_WINDOW_COST"):
            patch.setattr(_layer, name, 0.0 if layout == "windows" else 1e9)
        res = Reservoir(*sizes, **options)
    assert all(m.layout == layout for m in res.modules() if isinstance(m, PackedMatrix))
    return res


def layer_reference(
    layer: ReservoirLayer,
    x: Tensor,  # (T, B, I)
    h0: Tensor | None = None,  # (B, N)
    feedback: Tensor | None = None,
    lengths: Tensor | None = None,
    reverse: bool = False,
    noise: Tensor | None = None,
    member: int = 0,
) -> tuple[Tensor, Tensor]:
    """Return y (T, B, N) and h (B, N) in float64."""
    T, B = x.shape[:2]
    x, unit, sequence = x.double(), layer.bias.shape[1], torch.arange(B)
    w, w_ih, w_fb = (
        layer.recurrent.entries(member).dense(),
        layer.weight_ih[member].double(),
        layer.weight_fb[member].double(),
    )
    bias, leak = layer.bias[member].double(), layer.leak[member].double()
    carry = None if layer.carry is None else layer.carry.entries(member).dense()
    f = ACTIVATIONS[layer.activation]
    state = x.new_zeros(B, unit) if h0 is None else h0.double()
    lengths = torch.full((B,), T) if lengths is None else lengths
    states = [state]
    for step in range(T):
        alive = (step < lengths)[:, None]
        t = (lengths - 1 - step).clamp(min=0) if reverse else torch.full((B,), step)
        total = state @ w.T + x[t, sequence] @ w_ih.T + bias
        if feedback is not None:
            total = total + feedback[t, sequence].double() @ w_fb.T
        if noise is not None:
            total = total + noise[t, sequence].double()
        kept = state if carry is None else state @ carry.T
        state = torch.where(alive, (1 - leak) * kept + leak * f(total), state)
        states.append(state)
    t = torch.arange(T)[:, None]
    after = (lengths - t).clamp(min=0) if reverse else (t + 1).expand(T, B)
    y = torch.stack(states)[after, sequence]
    return torch.where((t < lengths)[..., None], y, torch.zeros_like(y)), state


def reference(
    res: Reservoir,
    x: Tensor,
    h0: Tensor | None = None,
    feedback: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what a reservoir must for x (T, B, I): all layers and directions."""
    below, outputs, states = x.double(), [], []
    for level in range(res.num_layers):
        parts = []
        for direction in range(res.directions):
            slot = level * res.directions + direction
            y, h = layer_reference(
                res.layers[slot],
                below,
                None if h0 is None else h0[slot],
                None if level else feedback,
                lengths,
                direction == 1,
            )
            parts.append(y)
            states.append(h)
        below = torch.cat(parts, -1)
        outputs.append(below)
    return torch.cat(outputs, -1), torch.stack(states)
