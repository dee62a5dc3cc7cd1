"""One layer in plain torch: what the engine computes, differentiable any number of times.

It stands in for the engine where torch needs to see every operation: in forward-mode
differentiation, and in derivatives of the second derivatives. A step of it takes as long as torch's
operations do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

from ._checks import value_dtype
from ._problem import Layer, Ragged, Weights

States = tuple[Tensor, ...]


def run(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one layer over a batch of sequences.

    The arguments are those of ``_ops.forward``. Of reduced numbers, products and maths are done in
    float32 and h is rounded at each step, as the engine does.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state).
    """
    rows, counts, batch = time_major(layer, x, ragged)
    values = value_dtype(x.dtype)
    outputs, finals = [], []
    for d in range(layer.directions):
        initial = initial_states(layer, x, (h0, c0), batch, d)
        y, states = _run_direction(
            layer,
            rows.to(values),
            counts,
            tuple(s.to(values) for s in initial),
            [None if w is None else w.to(values) for w in own_weights(layer, weights, d)],
            reverse=d == 1,
            storage=x.dtype,
        )
        outputs.append(y)
        finals.append(states)
    y_rows = torch.cat(outputs, dim=-1).to(x.dtype)
    y = caller_layout(layer, y_rows, x, ragged, layer.y_batch_first)
    if layer.step:
        return y, None, finals[0][1].to(x.dtype) if layer.spec.states > 1 else None
    h_n, *others = (torch.stack(states).to(x.dtype) for states in zip(*finals, strict=True))
    return y, h_n, others[0] if others else None


def time_major(layer: Layer, x: Tensor, ragged: Ragged | None) -> tuple[Tensor, list[int], int]:
    """Return the rows of x, (N, I), step by step; the rows of each step; and the batch."""
    if ragged is not None:
        offsets = ragged.offsets.tolist()
        if ragged.rows is not None:
            x = (x.transpose(0, 1) if layer.x_batch_first else x).flatten(0, 1)
            x = x.index_select(0, ragged.rows.to(x.device))
        return x, [b - a for a, b in itertools.pairwise(offsets)], ragged.B
    if layer.step:
        return x, [x.shape[0]], x.shape[0]
    if layer.x_batch_first:
        x = x.transpose(0, 1)
    T, B = x.shape[:2]
    return x.reshape(T * B, x.shape[2]), [B] * T, B


def caller_layout(
    layer: Layer, rows: Tensor, x: Tensor, ragged: Ragged | None, batch_first: bool
) -> Tensor:
    """Return rows (N, features), step by step, as y is laid out, or as x if so ``batch_first``."""
    if layer.step or (ragged is not None and ragged.rows is None):
        return rows
    T, B = (x.shape[1], x.shape[0]) if layer.x_batch_first else x.shape[:2]
    if ragged is not None and ragged.rows is not None:
        padding = rows.new_zeros(T * B, rows.shape[-1])
        rows = padding.index_copy(0, ragged.rows.to(rows.device), rows)
    y = rows.view(T, B, rows.shape[-1])
    return y.transpose(0, 1) if batch_first else y


def initial_states(
    layer: Layer, x: Tensor, states: Sequence[Tensor | None], batch: int, direction: int
) -> States:
    """Return h0 and, of a cell with two states, c0 of one direction, zeros for what is absent."""
    widths = (layer.output_size, layer.hidden_size)[: layer.spec.states]
    return tuple(
        x.new_zeros(batch, width) if s is None else s if layer.step else s[direction]
        for s, width in zip(states, widths, strict=False)
    )


def own_weights(layer: Layer, weights: Sequence[Tensor | None], direction: int) -> Weights:
    """Return the five weights of one direction."""
    each = len(weights) // layer.directions
    return list(weights[direction * each : (direction + 1) * each])


def output_rows(layer: Layer, y: Tensor, ragged: Ragged | None) -> Tensor:
    """Return the rows of y, or of its gradient, step by step: what ``caller_layout`` undoes."""
    if layer.step or (ragged is not None and ragged.rows is None):
        return y
    rows = (y.transpose(0, 1) if layer.y_batch_first else y).reshape(-1, layer.width)
    if ragged is not None and ragged.rows is not None:
        return rows.index_select(0, ragged.rows.to(rows.device))
    return rows


def columns(layer: Layer, rows: Tensor, direction: int) -> Tensor:
    """Return the part of the rows of y that belongs to one direction."""
    size = layer.output_size
    return rows[:, direction * size : (direction + 1) * size]


def spans(counts: Sequence[int], reverse: bool) -> list[tuple[int, int]]:
    """Return where the rows of each step begin and end, in the order a direction takes them."""
    ends = list(itertools.accumulate(counts))
    found = [(end - count, end) for count, end in zip(counts, ends, strict=True)]
    return found[::-1] if reverse else found


def rows_before(spans: Sequence[tuple[int, int]], initial: Tensor, after: Tensor) -> Tensor:
    """Return each row's state before its step, from those ``after`` each step and the initial."""
    B = len(initial)
    if len(after) == len(spans) * B:  # no sequence ends early
        forwards = spans[0][0] == 0
        return torch.cat((initial, after[:-B]) if forwards else (after[B:], initial))
    parts: dict[int, Tensor] = {}
    state = initial
    for begin, end in spans:
        count = end - begin
        parts[begin] = state[:count]
        own = after[begin:end]
        state = own if count == state.shape[0] else torch.cat((own, state[count:]))
    return torch.cat([parts[begin] for begin in sorted(parts)])


def _run_direction(
    layer: Layer,
    x: Tensor,
    counts: Sequence[int],
    initial: States,
    weights: Weights,
    reverse: bool,
    storage: torch.dtype,
) -> tuple[Tensor, States]:
    """Return y, (N, O), and the final states of one direction."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    assert w_ih is not None
    assert w_hh is not None
    wx = torch.split(linear(x, w_ih, b_ih), list(counts))
    batch = initial[0].shape[0]
    # Of the reverse direction, sequences join as time runs back; of the other, they end.
    alive = counts[-1] if reverse else batch
    states = tuple(s[:alive] for s in initial)
    ended: list[States] = []
    outputs: list[Tensor] = []
    steps = range(len(counts))
    for t in reversed(steps) if reverse else steps:
        count = counts[t]
        if count < alive:
            ended.append(tuple(s[count:] for s in states))
            states = tuple(s[:count] for s in states)
        elif count > alive:
            joining = (i[alive:count] for i in initial)
            states = tuple(torch.cat(pair) for pair in zip(states, joining, strict=True))
        alive = count
        rh = linear(states[0], w_hh, b_hh)
        h, *others = layer.spec.maths(wx[t], rh, states, layer.activation)
        if w_hr is not None:
            h = linear(h, w_hr)
        h = h.to(storage).to(h.dtype)
        states = (h, *others)
        outputs.append(h)
    if reverse:
        outputs.reverse()
        ended = [tuple(i[alive:] for i in initial)] if alive < batch else []
    finals = tuple(torch.cat(parts) for parts in zip(states, *reversed(ended), strict=True))
    return torch.cat(outputs), finals
