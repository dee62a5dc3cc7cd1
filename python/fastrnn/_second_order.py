r"""The backward pass of the backward pass, with the chains through time as the only loops.

Let J be the Jacobian of a layer and v the incoming gradients of the first backward pass's results.
Then the gradient of :math:`\langle v, J^T dy \rangle` is

- with respect to dy: :math:`J v`, the derivative of the forward pass in direction v;
- with respect to the inputs: the derivative of the backward pass in direction v, since second
  derivatives are symmetric.

What goes through time of both is the engine's, which runs the cell's own maths in dual numbers
(``csrc/cpu/second_order.h``); of layers with a projection, and on a GPU, it is ``_chains``'. All
products but those with ``w_hh`` are made here, for all steps at once. A second state that forward
did not keep, because of checkpoints, is computed again step by step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _chains, _checks, _cuda_device, _engine_chains, _ops, _plans, _reference
from ._chains import Change, Direction, First, Found, added
from ._checks import value_dtype
from ._engine_chains import gate_rows
from ._problem import Layer, Ragged, Weights

Gradients = tuple[Tensor | None, ...]


def double_backward(
    layer: Layer,
    ragged: Ragged | None,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    dgates: Tensor | None = None,
) -> Gradients:
    """Differentiate the first backward pass.

    Args:
        layer: as in ``_ops.backward``.
        ragged: as in ``_ops.backward``.
        gradients: dy, dh_n and dc_n, what the first backward pass began with.
        outputs: y and the reserve.
        inputs: x, h0, c0 and the weights.
        directions: the incoming gradients, of the gradients of ``inputs``.
        dgates: the gradients of the pre-activations, if ``_ops.backward`` was told to keep them.

    Returns:
        The gradients with respect to dy, dh_n, dc_n, and x, h0, c0 and the weights.

    Raises:
        RuntimeError, ValueError, TypeError: if a hook has handed back another kind of tensor.
    """
    x = inputs[0]
    assert x is not None
    directions = [None if t is None else v for t, v in zip(inputs, directions, strict=True)]
    saved = _plans.saved_values(layer)
    if not _checks.second_backward(layer, ragged, saved, gradients, outputs, inputs, directions):
        return tuple(None if t is None else torch.empty_like(t) for t in (*gradients, *inputs))
    if dgates is not None:
        like = x.new_empty(0, dtype=value_dtype(x.dtype))
        _checks.alike(layer, "the saved gradients", dgates, like, _dgates_shape(layer, x, ragged))
        _checks.address(layer, "the saved gradients", dgates)
    # Products that the engine reads are of its own dtype.
    with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
        return _double_backward(layer, ragged, gradients, outputs, inputs, directions, dgates)


def _double_backward(
    layer: Layer,
    ragged: Ragged | None,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    inputs: Sequence[Tensor | None],
    directions: Sequence[Tensor | None],
    dgates: Tensor | None,
) -> Gradients:
    given, *others = inputs
    assert given is not None
    storage, values = given.dtype, value_dtype(given.dtype)

    def widened(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
        return [None if t is None else t.to(values) for t in tensors]

    x, h0, c0, *weights = widened(inputs)
    dy, *dfinal = widened(gradients)
    vx, vh0, vc0, *vweights = widened(directions)
    assert x is not None
    if dgates is None:
        dgates = new_dgates(layer, given, ragged)
        nothing = [False] * len(inputs)
        _ops.backward(layer, ragged, nothing, gradients, outputs, given, *others, dgates=dgates)
    y, reserve = outputs[0].to(values), outputs[1]
    if layer.checkpoint_every:
        reserve = None  # it does not hold every step
    info = _plans.cell_info(layer.spec.name)
    rows, counts, batch = _reference.time_major(layer, x, ragged)
    vrows = None if vx is None else _reference.time_major(layer, vx, ragged)[0]
    y_rows = _reference.output_rows(layer, y, ragged)
    parts = []
    for d in range(layer.directions):
        own = _known(
            layer,
            rows,
            _reference.spans(counts, d == 1),
            _reference.initial_states(layer, x, (h0, c0), batch, d),
            _reference.own_weights(layer, weights, d),
            _reference.columns(layer, y_rows, d),
            None if reserve is None else reserve[d],
            info["state_slots"],
        )
        dwx, drh = (gate_rows(dgates[d], info[of]) for of in ("of_input", "of_recurrent"))
        vinitial = _reference.initial_states(layer, x, (vh0, vc0), batch, d)
        vown = _reference.own_weights(layer, vweights, d)
        change = _change(own, drh, vrows, vinitial, vown)
        if _engine_chains.takes(layer, x):
            found = _engine_chains.run(own, ragged, batch, d == 1, dgates[d], change)
        else:
            dy_rows = None if dy is None else _reference.output_rows(layer, dy, ragged)
            first = First(
                None if dy_rows is None else _reference.columns(layer, dy_rows, d),
                _reference.initial_states(layer, x, dfinal, batch, d),
                dwx,
                drh,
                dgates[d][:, info["gradients"] :].unbind(1),
            )
            found = _chains.run(own, first, change)
        parts.append((found, *_products(own, (dwx, drh), found, vrows, vown)))
    results = _joined(layer, x, ragged, parts)
    return tuple(None if t is None else t.to(storage) for t in results)


def new_dgates(layer: Layer, x: Tensor, ragged: Ragged | None) -> Tensor:
    """Allocate what ``_ops.backward`` leaves the gradients of the pre-activations in."""
    return x.new_empty(_dgates_shape(layer, x, ragged), dtype=value_dtype(x.dtype))


def _dgates_shape(layer: Layer, x: Tensor, ragged: Ragged | None) -> tuple[int, ...]:
    info = _plans.cell_info(layer.spec.name)
    # The CUDA engine keeps those of the pre-activations only.
    count = info["gradients"] + (0 if _cuda_device.takes(x) else info["states"])
    rows = math.prod(x.shape[:-1]) if ragged is None else ragged.N
    return layer.directions, rows, count, layer.hidden_size


def _known(
    layer: Layer,
    x: Tensor,
    spans: list[tuple[int, int]],
    initial: Sequence[Tensor],
    weights: Weights,
    y: Tensor,
    reserve: Tensor | None,
    state_slots: Sequence[int],
) -> Direction:
    """Find what went into every step's maths."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    assert w_ih is not None
    assert w_hh is not None
    previous = [_reference.rows_before(spans, initial[0], y)]
    wx, rh = linear(x, w_ih, b_ih), linear(previous[0], w_hh, b_hh)
    if layer.spec.states > 1:
        if reserve is not None:
            kept = reserve[:, state_slots[1]]
            previous.append(_reference.rows_before(spans, initial[1], kept))
        else:
            previous.append(_replayed(layer, spans, initial, wx, rh, previous[0]))
    return Direction(layer, weights, spans, x, previous, wx, rh)


def _replayed(
    layer: Layer,
    spans: Sequence[tuple[int, int]],
    initial: Sequence[Tensor],
    wx: Tensor,
    rh: Tensor,
    h: Tensor,
) -> Tensor:
    """Return the second state before each step, when forward did not keep it."""
    state = initial[1].clone()
    before = (
        torch.empty_like(h) if h.shape[1] == state.shape[1] else h.new_empty(len(h), state.shape[1])
    )
    for begin, end in spans:
        old = before[begin:end] = state[: end - begin]
        own = (wx[begin:end], rh[begin:end], (h[begin:end], old))
        state[: end - begin] = layer.spec.maths(*own, layer.activation)[1]
    return before


def _change(
    own: Direction,
    drh: Tensor,
    vx: Tensor | None,
    vinitial: Sequence[Tensor],
    vweights: Weights,
) -> Change:
    """Make the products that the chains need of a direction."""
    w_ih = own.weights[0]
    v_ih, v_hh, vb_ih, vb_hh, v_hr = vweights
    dwx = added(
        (
            None if vx is None else linear(vx, w_ih),  # type: ignore[arg-type]
            None if v_ih is None else linear(own.x, v_ih),
            vb_ih,
        )
    )
    fixed = added((None if v_hh is None else linear(own.previous[0], v_hh), vb_hh))
    dwx, fixed = (None if t is None else t.expand(len(own.x), -1) for t in (dwx, fixed))
    return Change(dwx, fixed, v_hr, vinitial, None if v_hh is None else drh @ v_hh)


def _products(
    own: Direction,
    gradients: tuple[Tensor, Tensor],
    found: Found,
    vx: Tensor | None,
    vweights: Weights,
) -> tuple[Tensor, Gradients]:
    """Return the gradients of x and of the weights; ``gradients`` are those of wx and rh."""
    dwx, drh = gradients
    w_ih, _, b_ih, _, _ = own.weights
    v_ih = vweights[0]
    assert w_ih is not None
    gx = found.wx @ w_ih
    if v_ih is not None:
        gx = torch.addmm(gx, dwx, v_ih)
    g_ih = found.wx.T @ own.x
    if vx is not None:
        g_ih = torch.addmm(g_ih, dwx.T, vx)
    g_hh = torch.addmm(found.rh.T @ own.previous[0], drh.T, found.before)
    biases = (None, None) if b_ih is None else (found.wx.sum(0), found.rh.sum(0))
    return gx, (g_ih, g_hh, *biases, found.w_hr)


def _joined(layer: Layer, x: Tensor, ragged: Ragged | None, parts: Sequence[Any]) -> Gradients:
    """Put the directions together, in the layout of the caller."""
    found, gx, gweights = zip(*parts, strict=True)
    vfinal, ginitial = [f.final for f in found], [f.initial for f in found]
    vy = torch.cat([f.y for f in found], dim=-1)
    y = _reference.caller_layout(layer, vy, x, ragged, layer.y_batch_first)
    dx = added(gx)
    assert dx is not None
    dx = _reference.caller_layout(layer, dx, x, ragged, layer.x_batch_first)
    if layer.step:
        states = [list(vfinal[0]), list(ginitial[0])]
    else:
        states = [[torch.stack(s) for s in zip(*own, strict=True)] for own in (vfinal, ginitial)]
    pairs = [(*s, None)[:2] for s in states]
    return (y, *pairs[0], dx, *pairs[1], *(g for own in gweights for g in own))
