"""The chains through time of a second derivative, in torch's operations: any cell on any device.

They are for layers with a projection and for GPUs; ``_engine_chains`` has the others.
``_second_order`` says what they are. The output of every step being known, all maths of the cell is
done for all steps at once, and what remains to be done in order is linear: the derivative of the
states, the gradients of the states where the engine did not keep them, and the derivative of these.
The cell enters by its reference step alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from ._problem import Layer, Weights

Gradients = tuple[Tensor | None, ...]


@dataclass
class Direction:
    """What is known of one direction of a layer; its rows are (N, features), step by step.

    ``previous`` are the states before each row's step, ``wx`` and ``rh`` the products with weights,
    biases included.
    """

    layer: Layer
    weights: Weights
    spans: list[tuple[int, int]]
    x: Tensor
    previous: list[Tensor]
    wx: Tensor
    rh: Tensor

    def gates(self, rows: Tensor) -> Tensor:
        """Return (N, G*H) as (N, G, H)."""
        return rows.view(rows.shape[0], self.layer.spec.gates, self.layer.hidden_size)


@dataclass
class First:
    """The first backward pass: what it began with, and gradients of wx, rh and the states.

    ``states`` are those after each step, the output's before a projection; empty if not kept.
    """

    dy: Tensor | None
    final: Sequence[Tensor]
    wx: Tensor
    rh: Tensor
    states: Sequence[Tensor]


@dataclass
class Change:
    """A direction in the space of a layer's inputs, as the chains need it.

    ``wx`` is the derivative of the input product; ``rh`` that of the recurrent product, were the
    output before each step fixed; ``through`` what the change of ``w_hh`` adds to the derivative of
    the gradient of that output. ``None`` is zero.
    """

    wx: Tensor | None
    rh: Tensor | None
    w_hr: Tensor | None
    initial: Sequence[Tensor]
    through: Tensor | None


@dataclass
class Found:
    """What the chains give.

    Derivatives of the output ``before`` each step, of each step's output ``y`` and of the ``final``
    states; then those of the gradients of ``wx``, ``rh``, the ``initial`` states and ``w_hr``.
    """

    before: Tensor
    y: Tensor
    final: Sequence[Tensor]
    wx: Tensor
    rh: Tensor
    initial: Sequence[Tensor]
    w_hr: Tensor | None


@dataclass
class _Maths:
    """The cell's maths of every step, recorded.

    ``jacobian[s]`` has the derivative of state s after the step (before a projection) with respect
    to wx, rh and the states before it, elementwise; ``None`` where it is zero.
    """

    leaves: list[Tensor]
    after: tuple[Tensor, ...]
    jacobian: list[list[Tensor | None]]


def run(own: Direction, first: First, change: Change) -> Found:
    """Differentiate the forward pass, and then the backward pass, in a direction."""
    maths = _linearize(own)
    tangents, vout, vy, vfinal = _tangents(own, maths, change)
    dh, *others = first.states or _state_gradients(own, maths, first)
    w_hr = own.weights[4]
    results = dh if w_hr is None else _output_gradients(own, first)
    second = _adjoints(
        own,
        maths,
        [torch.zeros_like(d) for d in first.final],
        _sources(maths, [dh, *others], tangents),
        change.through,
        None if change.w_hr is None else results @ change.w_hr,
    )
    before = tangents[2]
    assert before is not None
    g_hr = None
    if w_hr is not None:
        g_hr = second.results.T @ maths.after[0].detach() + results.T @ vout
    return Found(before, vy, vfinal, second.wx, second.rh, second.initial, g_hr)


def _linearize(own: Direction) -> _Maths:
    leaves = [t.detach().requires_grad_() for t in (own.wx, own.rh, *own.previous)]
    with torch.enable_grad():
        after = own.layer.spec.maths(leaves[0], leaves[1], leaves[2:], own.layer.activation)
        jacobian: list[list[Tensor | None]] = [
            list(torch.autograd.grad(state.sum(), leaves, retain_graph=True, allow_unused=True))
            for state in after
        ]
    return _Maths(leaves, after, jacobian)


def _times(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Return a * b; b (N, H) is used for every gate of an a of (N, G, H)."""
    if a is None or b is None:
        return None
    return a * (b.unsqueeze(1) if a.dim() > b.dim() else b)


def added(terms: Iterable[Tensor | None]) -> Tensor | None:
    found = None
    for term in terms:
        if term is not None:
            found = term if found is None else found + term
    return found


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
    own: Direction, maths: _Maths, change: Change
) -> tuple[list[Tensor | None], Tensor, Tensor, list[Tensor]]:
    """Differentiate the forward pass in a direction.

    Returns:
        The derivatives of wx, rh and the states before each step; of each step's output before a
        projection; of its output; and of the final states.
    """
    _, w_hh, _, _, w_hr = own.weights
    assert w_hh is not None
    dwx, fixed = change.wx, change.rh
    coefficients = [own.gates(row[1]) if row[1] is not None else None for row in maths.jacobian]
    given = [
        added(
            None if a is None or b is None else (own.gates(a) * own.gates(b)).sum(1)
            for a, b in ((row[0], dwx), (row[1], fixed))
        )
        for row in maths.jacobian
    ]
    projected = None if change.w_hr is None else linear(maths.after[0].detach(), change.w_hr)
    chain = _Chain(change.initial)
    before: list[list[Tensor]] = [[] for _ in change.initial]
    recurrent, outputs, results = [], [], []
    for begin, end in own.spans:
        states = chain.read(end - begin)
        drh = linear(states[0], w_hh)
        new = []
        for s, row in enumerate(maths.jacobian):
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


def _in_order(own: Direction, parts: list[Tensor]) -> Tensor:
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
    own: Direction,
    maths: _Maths,
    dfinal: Sequence[Tensor],
    sources: Sequence[Tensor | None],
    through: Tensor | None,
    outputs: Tensor | None,
) -> _Adjoints:
    """Propagate gradients from the last step to the first.

    Args:
        own: the direction.
        maths: the cell's maths of every step.
        dfinal: gradients of the final states.
        sources: what to add to the gradients of wx, rh and the states before each step.
        through: what to add to the gradient of the output before each step.
        outputs: what to add to the gradient of the output before a projection.
    """
    _, w_hh, _, _, w_hr = own.weights
    assert w_hh is not None
    extra = added((through, sources[2]))
    recurrent = [None if row[1] is None else own.gates(row[1]) for row in maths.jacobian]
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
        drh = added(
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
        for row, d in zip(maths.jacobian, after, strict=True):
            for i, a in enumerate(row[2:]):
                if a is not None:
                    new[i] = _plus(new[i], a[begin:end], d)
        before.append(dh)
        for kept, d in zip(further, ds, strict=True):
            kept.append(d)
        chain.write(new)
    dout, dresult, *dstates = (_in_order(own, part[::-1]) for part in (before, results, *further))
    drh = _in_order(own, found[::-1])
    dwx = added(
        _times(None if row[0] is None else own.gates(row[0]), d)
        for row, d in zip(maths.jacobian, [dout, *dstates], strict=True)
    )
    assert dwx is not None
    dwx = dwx.flatten(1)
    if sources[0] is not None:
        dwx = dwx + sources[0]
    return _Adjoints(dwx, drh, dout, dresult, dstates, chain.states)


def _output_gradients(own: Direction, first: First) -> Tensor:
    """Return the gradient of every step's output after a projection."""
    w_hh = own.weights[1]
    assert w_hh is not None
    sent, ends = (
        first.rh @ w_hh,
        first.final[0].clone(),
    )  # to the output of the step before; of the last steps
    gradients = torch.empty_like(sent)
    for begin, end in reversed(own.spans):
        gradients[begin:end] = ends[: end - begin]
        ends[: end - begin] = sent[begin:end]
    return gradients if first.dy is None else gradients + first.dy


def _state_gradients(own: Direction, maths: _Maths, first: First) -> list[Tensor]:
    """Return the gradient of every step's output before a projection, and of further states."""
    _, w_hh, _, _, w_hr = own.weights
    assert w_hh is not None
    sent = first.rh @ w_hh  # to the output of the step before
    chain = _Chain(first.final)
    found: list[list[Tensor]] = [[] for _ in first.final]
    for begin, end in reversed(own.spans):
        dh, *ds = chain.read(end - begin)
        dh = dh if first.dy is None else dh + first.dy[begin:end]
        after = [dh if w_hr is None else dh @ w_hr, *ds]
        new = [sent[begin:end], *(torch.zeros_like(d) for d in ds)]
        for row, d in zip(maths.jacobian, after, strict=True):
            for i, a in enumerate(row[2:]):
                if a is not None:
                    new[i] = _plus(new[i], a[begin:end], d)
        for kept, d in zip(found, after, strict=True):
            kept.append(d)
        chain.write(new)
    return [_in_order(own, part[::-1]) for part in found]


def _sources(maths: _Maths, states: Sequence[Tensor], tangents: list[Tensor | None]) -> Gradients:
    """Return how the gradients of each step's maths change, those of its results staying."""
    with torch.enable_grad():
        total = added((state * d).sum() for state, d in zip(maths.after, states, strict=True))
        assert total is not None
        slopes = torch.autograd.grad(total, maths.leaves, create_graph=True, allow_unused=True)
        change = added(
            (slope * tangent).sum()
            for slope, tangent in zip(slopes, tangents, strict=True)
            if tangent is not None and slope is not None and slope.requires_grad  # type: ignore[redundant-expr]
        )
    if change is None:
        return tuple(None for _ in maths.leaves)
    return torch.autograd.grad(change, maths.leaves, allow_unused=True)
