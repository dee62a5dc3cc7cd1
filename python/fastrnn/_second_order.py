r"""The backward pass of the backward pass, with the chains through time as the only loops.

Let J be the Jacobian of a layer and v the incoming gradients of the first backward pass's results.
Then the gradient of :math:`\langle v, J^T dy \rangle` is

- with respect to dy: :math:`J v`, the derivative of the forward pass in direction v;
- with respect to the inputs: the derivative of the backward pass in direction v, since second
  derivatives are symmetric.

The output of every step being known, all maths of the cell is done for all steps at once, and what
remains to be done in order is three linear recurrences per direction: the derivative of the states,
the gradients of the states, and the derivative of these. The cell enters by its reference step in
plain torch alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from . import _cuda_device, _ops, _reference
from ._checks import value_dtype
from ._problem import Layer, Ragged, Weights

Gradients = tuple[Tensor | None, ...]


@dataclass
class _Direction:
    """One direction of a layer; its rows are (N, features), step by step.

    ``previous`` are the states before each row's step, ``initial`` those before the first step.
    ``jacobian[s]`` has the derivative of state s after the step (before a projection) with respect
    to wx, rh and the states before it, elementwise; ``None`` where it is zero.
    """

    layer: Layer
    weights: Weights
    spans: list[tuple[int, int]]
    x: Tensor
    previous: list[Tensor]
    leaves: list[Tensor]
    after: tuple[Tensor, ...]
    jacobian: list[list[Tensor | None]]

    def gates(self, rows: Tensor) -> Tensor:
        """Return (N, G*H) as (N, G, H)."""
        return rows.view(rows.shape[0], self.layer.spec.gates, self.layer.hidden_size)


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
    """
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
    info = _ops.cell_info(layer.spec.name)
    rows, counts, batch = _reference.time_major(layer, x, ragged)
    vrows = None if vx is None else _reference.time_major(layer, vx, ragged)[0]
    y_rows = _reference.output_rows(layer, y, ragged)
    dy_rows = None if dy is None else _reference.output_rows(layer, dy, ragged)
    parts = []
    for d in range(layer.directions):
        own = _linearize(
            layer,
            rows,
            _reference.spans(counts, d == 1),
            _reference.initial_states(layer, x, (h0, c0), batch, d),
            _reference.own_weights(layer, weights, d),
            _reference.columns(layer, y_rows, d),
            None if reserve is None else reserve[d],
            info["state_slots"],
        )
        gates = [gate_rows(dgates[d], info[of]) for of in ("of_input", "of_recurrent")]
        dstates: Sequence[Tensor] = dgates[d][:, info["gradients"] :].unbind(1)
        if not dstates:
            ends = _reference.initial_states(layer, x, dfinal, batch, d)
            dy_own = None if dy_rows is None else _reference.columns(layer, dy_rows, d)
            dstates = _state_gradients(own, gates[1], dy_own, ends)
        parts.append(
            _differentiate(
                own,
                (gates[0], gates[1]),
                dstates,
                None if dy_rows is None else _reference.columns(layer, dy_rows, d),
                _reference.initial_states(layer, x, dfinal, batch, d),
                vrows,
                _reference.initial_states(layer, x, (vh0, vc0), batch, d),
                _reference.own_weights(layer, vweights, d),
            )
        )
    results = _joined(layer, x, ragged, parts)
    return tuple(None if t is None else t.to(storage) for t in results)


def new_dgates(layer: Layer, x: Tensor, ragged: Ragged | None) -> Tensor:
    """Allocate what ``_ops.backward`` leaves the gradients of the pre-activations in."""
    info = _ops.cell_info(layer.spec.name)
    # The CUDA engine keeps those of the pre-activations only.
    count = info["gradients"] + (0 if _cuda_device.takes(x) else info["states"])
    rows = math.prod(x.shape[:-1]) if ragged is None else ragged.N
    shape = (layer.directions, rows, count, layer.hidden_size)
    return x.new_empty(shape, dtype=value_dtype(x.dtype))


def gate_rows(dgates: Tensor, numbers: Sequence[int]) -> Tensor:
    """Return the gradients of some gates, (N, G*H), of one direction's; a view where it can be."""
    first, last = numbers[0], numbers[-1]
    if list(numbers) == list(range(first, last + 1)):
        return dgates[:, first : last + 1].flatten(1)
    return dgates[:, numbers].flatten(1)


def _linearize(
    layer: Layer,
    x: Tensor,
    spans: list[tuple[int, int]],
    initial: Sequence[Tensor],
    weights: Weights,
    y: Tensor,
    reserve: Tensor | None,
    state_slots: Sequence[int],
) -> _Direction:
    """Compute the derivatives of every step's maths."""
    w_ih, w_hh, b_ih, b_hh, _ = weights
    assert w_ih is not None
    assert w_hh is not None
    spec = layer.spec
    previous = [_reference.rows_before(spans, initial[0], y)]
    wx, rh = linear(x, w_ih, b_ih), linear(previous[0], w_hh, b_hh)
    if spec.states > 1:
        if reserve is not None:
            kept = reserve[:, state_slots[1]]
            previous.append(_reference.rows_before(spans, initial[1], kept))
        else:
            previous.append(_replayed(layer, spans, initial, wx, rh, previous[0]))
    leaves = [t.detach().requires_grad_() for t in (wx, rh, *previous)]
    with torch.enable_grad():
        after = spec.maths(leaves[0], leaves[1], leaves[2:], layer.activation)
        jacobian: list[list[Tensor | None]] = [
            list(torch.autograd.grad(state.sum(), leaves, retain_graph=True, allow_unused=True))
            for state in after
        ]
    return _Direction(layer, weights, spans, x, previous, leaves, after, jacobian)


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


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a * b; b (N, H) is used for every gate of an a of (N, G, H)."""
    if a is None or b is None:
        return None
    return a * (b.unsqueeze(1) if a.dim() > b.dim() else b)


def _sum(terms: Iterable[Tensor | None]) -> Tensor | None:
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def _plus(total: Tensor, a: Tensor | None, b: Tensor) -> Tensor:
    return total if a is None else torch.addcmul(total, a, b)


class _Chain:
    """The states of all sequences, of which a step reads and writes the first ones."""

    def __init__(self, states: Sequence[Tensor]) -> None:
        self.states = list(states)

    def read(self, count: int) -> list[Tensor]:
        return [s if count == s.shape[0] else s[:count] for s in self.states]

    def write(self, states: Sequence[Tensor]) -> None:
        # Never in place: what was read before is kept.
        self.states = [
            new if len(new) == len(old) else torch.cat((new, old[len(new) :]))
            for new, old in zip(states, self.states, strict=True)
        ]


def _tangents(
    own: _Direction, vx: Tensor | None, vinitial: Sequence[Tensor], vweights: Weights
) -> tuple[list[Tensor | None], Tensor, Tensor, list[Tensor]]:
    """Differentiate the forward pass in a direction.

    Returns:
        The derivatives of wx, rh and the states before each step; of each step's output before a
        projection; of its output; and of the final states.
    """
    w_ih, w_hh, _, _, w_hr = own.weights
    v_ih, v_hh, vb_ih, vb_hh, v_hr = vweights
    assert w_hh is not None
    dwx = _sum(
        (
            None if vx is None else linear(vx, w_ih),  # type: ignore[arg-type]
            None if v_ih is None else linear(own.x, v_ih),
            vb_ih,
        )
    )
    fixed = _sum((None if v_hh is None else linear(own.previous[0], v_hh), vb_hh))
    n = len(own.x)
    dwx, fixed = (None if t is None else t.expand(n, -1) for t in (dwx, fixed))
    coefficients = [own.gates(row[1]) if row[1] is not None else None for row in own.jacobian]
    given = [
        _sum(
            None if a is None or b is None else (own.gates(a) * own.gates(b)).sum(1)
            for a, b in ((row[0], dwx), (row[1], fixed))
        )
        for row in own.jacobian
    ]
    projected = None if v_hr is None else linear(own.after[0].detach(), v_hr)
    chain = _Chain(vinitial)
    before: list[list[Tensor]] = [[] for _ in vinitial]
    recurrent, outputs, results = [], [], []
    for begin, end in own.spans:
        states = chain.read(end - begin)
        drh = linear(states[0], w_hh)
        new = []
        for s, row in enumerate(own.jacobian):
            a = coefficients[s]
            assert a is not None
            total = (a[begin:end] * own.gates(drh)).sum(1)
            if given[s] is not None:
                total = total + given[s][begin:end]  # type: ignore[index]
            for old, b in zip(states, row[2:], strict=True):
                if b is not None:
                    total = _plus(total, b[begin:end], old)
            new.append(total)
        recurrent.append(drh)
        outputs.append(new[0])
        if w_hr is not None:
            new[0] = linear(new[0], w_hr)
            if projected is not None:
                new[0] = new[0] + projected[begin:end]
        results.append(new[0])
        for kept, state in zip(before, states, strict=True):
            kept.append(state)
        chain.write(new)
    drh = _in_order(own, recurrent)
    drh = drh if fixed is None else drh + fixed
    leaves = [dwx, drh, *(_in_order(own, kept) for kept in before)]
    return leaves, _in_order(own, outputs), _in_order(own, results), chain.states


def _in_order(own: _Direction, parts: list[Tensor]) -> Tensor:
    """Join what belongs to each step, in the order of time."""
    return torch.cat(parts if own.spans[0][0] == 0 else parts[::-1])


@dataclass
class _Adjoints:
    """Gradients of wx, rh, each step's output (before and after a projection) and further state."""

    wx: Tensor
    rh: Tensor
    outputs: Tensor
    results: Tensor
    states: list[Tensor]
    initial: list[Tensor]


def _adjoints(
    own: _Direction,
    dfinal: Sequence[Tensor],
    sources: Sequence[Tensor | None],
    through: Tensor | None,
    outputs: Tensor | None,
) -> _Adjoints:
    """Propagate gradients from the last step to the first.

    Args:
        own: the direction.
        dfinal: gradients of the final states.
        sources: what to add to the gradients of wx, rh and the states before each step.
        through: what to add to the gradient of the output before each step.
        outputs: what to add to the gradient of the output before a projection.
    """
    _, w_hh, _, _, w_hr = own.weights
    assert w_hh is not None
    extra = _sum((through, sources[2]))
    recurrent = [None if row[1] is None else own.gates(row[1]) for row in own.jacobian]
    chain = _Chain(dfinal)
    found: list[Tensor] = []
    before: list[Tensor] = []
    results: list[Tensor] = []
    further: list[list[Tensor]] = [[] for _ in dfinal[1:]]
    for begin, end in reversed(own.spans):
        dh, *ds = chain.read(end - begin)
        results.append(dh)
        if w_hr is not None:
            dh = dh @ w_hr
            if outputs is not None:
                dh = dh + outputs[begin:end]
        after = [dh, *ds]
        drh = _sum(
            _times(None if a is None else a[begin:end], d)
            for a, d in zip(recurrent, after, strict=True)
        )
        assert drh is not None
        drh = drh.flatten(1)
        if sources[1] is not None:
            drh = drh + sources[1][begin:end]
        found.append(drh)
        new = [drh @ w_hh if extra is None else torch.addmm(extra[begin:end], drh, w_hh)]
        new += [
            torch.zeros_like(d) if s is None else s[begin:end]
            for d, s in zip(ds, sources[3:], strict=True)
        ]
        for row, d in zip(own.jacobian, after, strict=True):
            for i, a in enumerate(row[2:]):
                if a is not None:
                    new[i] = _plus(new[i], a[begin:end], d)
        before.append(dh)
        for kept, d in zip(further, ds, strict=True):
            kept.append(d)
        chain.write(new)
    dout, dresult, *dstates = (_in_order(own, part[::-1]) for part in (before, results, *further))
    drh = _in_order(own, found[::-1])
    dwx = _sum(
        _times(None if row[0] is None else own.gates(row[0]), d)
        for row, d in zip(own.jacobian, [dout, *dstates], strict=True)
    )
    assert dwx is not None
    dwx = dwx.flatten(1)
    if sources[0] is not None:
        dwx = dwx + sources[0]
    return _Adjoints(dwx, drh, dout, dresult, dstates, chain.states)


def _output_gradients(own: _Direction, rh: Tensor, dy: Tensor | None, dh_n: Tensor) -> Tensor:
    """Return the gradient of every step's output after a projection."""
    w_hh = own.weights[1]
    assert w_hh is not None
    sent, ends = rh @ w_hh, dh_n.clone()  # to the output of the step before; of the last steps
    gradients = torch.empty_like(sent)
    for begin, end in reversed(own.spans):
        gradients[begin:end] = ends[: end - begin]
        ends[: end - begin] = sent[begin:end]
    return gradients if dy is None else gradients + dy


def _state_gradients(
    own: _Direction, rh: Tensor, dy: Tensor | None, dfinal: Sequence[Tensor]
) -> list[Tensor]:
    """Return the gradient of every step's output before a projection, and of further states."""
    _, w_hh, _, _, w_hr = own.weights
    assert w_hh is not None
    sent = rh @ w_hh  # to the output of the step before
    chain = _Chain(dfinal)
    found: list[list[Tensor]] = [[] for _ in dfinal]
    for begin, end in reversed(own.spans):
        dh, *ds = chain.read(end - begin)
        dh = dh if dy is None else dh + dy[begin:end]
        after = [dh if w_hr is None else dh @ w_hr, *ds]
        new = [sent[begin:end], *(torch.zeros_like(d) for d in ds)]
        for row, d in zip(own.jacobian, after, strict=True):
            for i, a in enumerate(row[2:]):
                if a is not None:
                    new[i] = _plus(new[i], a[begin:end], d)
        for kept, d in zip(found, after, strict=True):
            kept.append(d)
        chain.write(new)
    return [_in_order(own, part[::-1]) for part in found]


def _sources(own: _Direction, first: _Adjoints, tangents: list[Tensor | None]) -> Gradients:
    """Return how the gradients of each step's maths change, those of its results staying."""
    weighted = zip(own.after, [first.outputs, *first.states], strict=True)
    with torch.enable_grad():
        total = _sum((state * d).sum() for state, d in weighted)
        assert total is not None
        slopes = torch.autograd.grad(total, own.leaves, create_graph=True, allow_unused=True)
        change = _sum(
            (slope * tangent).sum()
            for slope, tangent in zip(slopes, tangents, strict=True)
            if tangent is not None and slope is not None and slope.requires_grad  # type: ignore[redundant-expr]
        )
    if change is None:
        return tuple(None for _ in own.leaves)
    return torch.autograd.grad(change, own.leaves, allow_unused=True)


def _differentiate(
    own: _Direction,
    gates: tuple[Tensor, Tensor],
    dstates: Sequence[Tensor],
    dy: Tensor | None,
    dfinal: Sequence[Tensor],
    vx: Tensor | None,
    vinitial: Sequence[Tensor],
    vweights: Weights,
) -> tuple[Tensor, list[Tensor], Tensor, list[Tensor], Gradients]:
    """Return the gradients of dy, of the final states' gradients, x, initial states, weights."""
    w_ih, _, b_ih, _, w_hr = own.weights
    v_ih, v_hh, _, _, v_hr = vweights
    assert w_ih is not None
    tangents, vout, vy, vfinal = _tangents(own, vx, vinitial, vweights)
    dh, *others = dstates
    results = dh if w_hr is None else _output_gradients(own, gates[1], dy, dfinal[0])
    first = _Adjoints(*gates, dh, results, others, [])
    second = _adjoints(
        own,
        [torch.zeros_like(d) for d in dfinal],
        _sources(own, first, tangents),
        None if v_hh is None else first.rh @ v_hh,
        None if v_hr is None else first.results @ v_hr,
    )
    vh = tangents[2]
    assert vh is not None
    gx = second.wx @ w_ih
    if v_ih is not None:
        gx = gx + first.wx @ v_ih
    g_ih = second.wx.T @ own.x
    if vx is not None:
        g_ih = g_ih + first.wx.T @ vx
    g_hh = second.rh.T @ own.previous[0] + first.rh.T @ vh
    biases = (None, None) if b_ih is None else (second.wx.sum(0), second.rh.sum(0))
    g_hr = None
    if w_hr is not None:
        g_hr = second.results.T @ own.after[0].detach() + first.results.T @ vout
    return vy, vfinal, gx, second.initial, (g_ih, g_hh, *biases, g_hr)


def _joined(layer: Layer, x: Tensor, ragged: Ragged | None, parts: Sequence[Any]) -> Gradients:
    """Put the directions together, in the layout of the caller."""
    vys, vfinal, gx, ginitial, gweights = zip(*parts, strict=True)
    vy = torch.cat(vys, dim=-1)
    y = _reference.caller_layout(layer, vy, x, ragged, layer.y_batch_first)
    dx = _sum(gx)
    assert dx is not None
    dx = _reference.caller_layout(layer, dx, x, ragged, layer.x_batch_first)
    if layer.step:
        states = [list(vfinal[0]), list(ginitial[0])]
    else:
        states = [[torch.stack(s) for s in zip(*own, strict=True)] for own in (vfinal, ginitial)]
    pairs = [(*s, None)[:2] for s in states]
    return (y, *pairs[0], dx, *pairs[1], *(g for own in gweights for g in own))
