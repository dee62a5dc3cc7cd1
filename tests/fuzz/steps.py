"""Recurrent layers as a loop over steps in float64: what modules and streams are held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
States = list[list[Tensor]]  # by layer and direction: h, and c of an LSTM; each (B, F)


def product(rows: Tensor, weights: Tensors, name: str) -> Tensor:
    """Multiply rows with a matrix; of 8-bit weights, the rows are rounded to 8 bits as well."""
    weight, scale = weights[f"weight_{name}"], weights.get(f"scale_{name}")
    if scale is None:
        return rows @ weight.T
    step = rows.abs().amax(-1, keepdim=True) / 127
    return torch.where(step > 0, rows / step, 0).round() @ weight.T * step * scale


def one_step(module: Any, weights: Tensors, tail: str, x: Tensor, state: list[Tensor]) -> Any:
    """Return the states after a step."""
    h = state[0]
    wx, rh = product(x, weights, f"ih_{tail}"), product(h, weights, f"hh_{tail}")
    if module.bias:
        wx, rh = wx + weights[f"bias_ih_{tail}"], rh + weights[f"bias_hh_{tail}"]
    if module.mode.startswith("RNN"):
        return [(wx + rh).relu() if module.mode == "RNN_RELU" else (wx + rh).tanh()]
    if module.mode == "GRU":
        (xr, xz, xn), (hr, hz, hn) = wx.chunk(3, -1), rh.chunk(3, -1)
        r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
        return [(1 - z) * (xn + r * hn).tanh() + z * h]
    i, f, g, o = (wx + rh).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return [product(h, weights, f"hr_{tail}") if module.proj_size else h, c]


def states_by_layer(module: Any, given: Tensors, batch: int) -> States:
    """Take initial states (L*D, B, F) apart; those that are not given are zeros."""
    widths = {"h0": module.proj_size or module.hidden_size}
    if module.mode == "LSTM":
        widths["c0"] = module.hidden_size
    slots = module.num_layers * (2 if module.bidirectional else 1)
    zeros = {n: torch.zeros(slots, batch, w, dtype=torch.float64) for n, w in widths.items()}
    return [[given.get(n, zeros[n])[slot] for n in widths] for slot in range(slots)]


def sweep(
    module: Any,
    weights: Tensors,
    x: Tensor,
    states: States,
    lengths: Sequence[int],
    resets: Tensor,
) -> dict[str, Tensor]:
    """Run all layers over x, (T, B, I), by the definition of lengths and resets.

    Returns:
        y, (T, B, D*O) with zeros in the padding, h_n and, of an LSTM, c_n.
    """
    T, directions = x.shape[0], 2 if module.bidirectional else 1
    there = torch.arange(T).unsqueeze(1) < torch.tensor(lengths, dtype=torch.int64)
    final: States = []
    for layer in range(module.num_layers):
        x = torch.where(there.unsqueeze(-1), x, 0.0)
        sides = []
        for d in range(directions):
            tail, outputs = f"l{layer}" + "_reverse" * d, [x.new_empty(0)] * T
            state = states[layer * directions + d]
            for t in reversed(range(T)) if d else range(T):
                cut = torch.zeros_like(there[0])
                if not d:
                    cut = resets[t]
                elif t + 1 < T:
                    cut = resets[t + 1] & there[t + 1]
                entered = [torch.where(cut.unsqueeze(-1), 0.0, s) for s in state]
                left, on = one_step(module, weights, tail, x[t], entered), there[t].unsqueeze(-1)
                outputs[t] = torch.where(on, left[0], 0.0)
                state = [torch.where(on, new, old) for new, old in zip(left, state, strict=True)]
            final.append(state)
            sides.append(torch.stack(outputs))
        x = torch.cat(sides, -1)
    names = ("h_n", "c_n") if module.mode == "LSTM" else ("h_n",)
    kinds = [torch.stack(kind) for kind in zip(*final, strict=True)]
    return {"y": x, **dict(zip(names, kinds, strict=True))}
