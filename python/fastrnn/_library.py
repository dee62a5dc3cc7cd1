"""The layers as operators of torch's dispatcher, for all that traces or intercepts calls.

``torch.compile``, ``torch.export``, ``make_fx`` and torch-dispatch modes see one operator for the
forward pass of a layer, one for its backward pass and one for the backward pass of that. Operators
have a fixed number of arguments and results: there are always the weights of two directions, and
absent results are empty tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from . import _ops
from ._problem import Layer, Ragged, layer_of
from ._second_order import double_backward
from ._transforms import gradients_of_gradients

WEIGHTS = 10
"""Weights of two directions."""

GRADIENTS = 3
"""Gradients of y, h_n and c_n."""

NUMBERS = 3
"""Inputs before the weights: x, h0 and c0."""

Tensors = tuple[Tensor, ...]


def _padded(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [*tensors, *(None,) * (WEIGHTS - len(tensors))]


def _filled(like: Tensor, tensors: Sequence[Tensor | None], count: int) -> Tensors:
    """Return ``count`` tensors, empty ones for what is absent."""
    given = (*tensors, *(None,) * (count - len(tensors)))
    return tuple(like.new_empty(0) if t is None else t for t in given)


Table = tuple[Tensor | None, Tensor | None, int, int, int]
"""What operators take for a ``Ragged``: offsets, rows, B, and the padded T and B."""


def _table(ragged: Ragged | None) -> Table:
    if ragged is None:
        return None, None, 0, 0, 0
    return ragged.offsets, ragged.rows, ragged.B, *ragged.padded


def _ragged(x: Tensor, table: Table) -> Ragged | None:
    offsets, rows, batch, *padded = table
    if offsets is None:
        return None
    N = (x if rows is None else rows).shape[0]
    return Ragged(offsets, offsets.shape[0] - 1, batch, N, rows, (padded[0], padded[1]))


def _kept(reserve: Tensor) -> Tensor | None:
    return reserve if reserve.dim() > 1 else None


def _forward(
    x: Tensor,
    offsets: Tensor | None,
    rows: Tensor | None,
    batch: int,
    padded_steps: int,
    padded_batch: int,
    key: str,
    training: bool,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights: Tensor | None,
) -> Tensors:
    layer, ragged = layer_of(key), _ragged(x, (offsets, rows, batch, padded_steps, padded_batch))
    own = weights[: len(layer.shapes)]
    return _filled(x, _ops.forward(layer, x, ragged, h0, c0, own, training), 4)


def _backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    offsets: Tensor | None,
    rows: Tensor | None,
    batch: int,
    padded_steps: int,
    padded_batch: int,
    key: str,
    wanted: Sequence[bool],
    x: Tensor,
    *inputs: Tensor | None,
) -> Tensors:
    layer, ragged = layer_of(key), _ragged(x, (offsets, rows, batch, padded_steps, padded_batch))
    count = NUMBERS + len(layer.shapes)
    own = inputs[: count - 1]
    outputs = (y, _kept(reserve))
    results = _ops.backward(layer, ragged, wanted[:count], (dy, dh_n, dc_n), outputs, x, *own)
    return _filled(x, results, NUMBERS + WEIGHTS)


def _double_backward(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    offsets: Tensor | None,
    rows: Tensor | None,
    batch: int,
    padded_steps: int,
    padded_batch: int,
    key: str,
    incoming: Sequence[Tensor],
    asked: Sequence[bool],
    x: Tensor,
    *inputs: Tensor | None,
) -> Tensors:
    layer, ragged, gradients = (
        layer_of(key),
        _ragged(x, (offsets, rows, batch, padded_steps, padded_batch)),
        (dy, dh_n, dc_n),
    )
    own = (x, *inputs)[: NUMBERS + len(layer.shapes)]
    given = iter(incoming)
    directions = [next(given) if ask else None for ask in asked[: len(own)]]
    # It differentiates the cell's maths by autograd, which is off within an operator.
    with _autograd_on():
        results = double_backward(layer, ragged, gradients, (y, _kept(reserve)), own, directions)
    # An operator must not return a tensor twice, or a view: neither states nor gradients are big.
    copies = [
        None if r is None or t is None else r.clone()
        for r, t in zip(results, (*gradients, *own), strict=True)
    ]
    return _filled(x, copies, GRADIENTS + NUMBERS + WEIGHTS)


def _autograd_on() -> AbstractContextManager[None]:
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    guard: AbstractContextManager[None] = torch._C._ForceDispatchKeyGuard(
        torch._C._dispatch_tls_local_include_set(), excluded
    )
    return guard


def _double_backward_shapes(
    dy: Tensor | None,
    dh_n: Tensor | None,
    dc_n: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    offsets: Tensor | None,
    rows: Tensor | None,
    batch: int,
    padded_steps: int,
    padded_batch: int,
    key: str,
    incoming: Sequence[Tensor],
    asked: Sequence[bool],
    x: Tensor,
    *inputs: Tensor | None,
) -> Tensors:
    sources = (dy, dh_n, dc_n, x, *inputs)
    results = [None if t is None else t.new_empty(t.shape) for t in sources]
    return _filled(x, results, GRADIENTS + NUMBERS + WEIGHTS)


_INPUTS = "Tensor x, Tensor? h0, Tensor? c0, " + ", ".join(f"Tensor? w{i}" for i in range(WEIGHTS))
_OUTCOME = "Tensor? dy, Tensor? dh_n, Tensor? dc_n, Tensor y, Tensor reserve"
_PROBLEM = (
    "Tensor? offsets, Tensor? rows, SymInt batch, SymInt padded_steps, SymInt padded_batch, str key"
)


def _results(count: int) -> str:
    return f"({', '.join(['Tensor'] * count)})"


_forward_op = torch.library.custom_op(
    "fastrnn::forward",
    _forward,
    mutates_args=(),
    schema=f"(Tensor x, {_PROBLEM}, bool training, {_INPUTS[10:]}) -> {_results(4)}",
)
_backward_op = torch.library.custom_op(
    "fastrnn::backward",
    _backward,
    mutates_args=(),
    schema=f"({_OUTCOME}, {_PROBLEM}, bool[] wanted, {_INPUTS}) -> {_results(NUMBERS + WEIGHTS)}",
)
_double_backward_op = torch.library.custom_op(
    "fastrnn::double_backward",
    _double_backward,
    mutates_args=(),
    schema=f"({_OUTCOME}, {_PROBLEM}, Tensor[] incoming, bool[] asked, {_INPUTS}) -> "
    f"{_results(GRADIENTS + NUMBERS + WEIGHTS)}",
)
_forward_op.register_fake(_forward)
_backward_op.register_fake(_backward)
_double_backward_op.register_fake(_double_backward_shapes)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    x, offsets, rows, *sizes, key, training = inputs[:8]
    rest = inputs[8:]
    y, _, _, reserve = output
    layer = layer_of(key)
    if not training:
        raise RuntimeError(
            f"{layer.owner}: training must be true where a gradient is needed, got false; "
            "call the operator with training=True"
        )
    ctx.set_materialize_grads(False)
    ctx.layer, ctx.sizes = layer, sizes
    ctx.wanted = [t is not None and t.requires_grad for t in (x, *rest)]
    ctx.save_for_backward(y, reserve, offsets, rows, x, *rest)


def _differentiate_forward(
    ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: Tensor | None
) -> tuple[Any, ...]:
    y, reserve, offsets, rows, x, *rest = ctx.saved_tensors
    layer: Layer = ctx.layer
    gradients = (dy, None if layer.step else dh_n, dc_n if layer.spec.states > 1 else None)
    nothing = (None,) * 7
    if all(g is None for g in gradients):
        return (None, *nothing, *(None for _ in rest))
    results = torch.ops.fastrnn.backward(
        *gradients, y, reserve, offsets, rows, *ctx.sizes, layer.key, ctx.wanted, x, *rest
    )
    dx, *others = (t if want else None for t, want in zip(results, ctx.wanted, strict=True))
    return (dx, *nothing, *others)


def _save_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
    dy, dh_n, dc_n, y, reserve, offsets, rows, *sizes, key, wanted = inputs[:12]
    rest = inputs[12:]
    ctx.set_materialize_grads(False)
    ctx.layer, ctx.sizes, ctx.wanted = layer_of(key), sizes, wanted
    ctx.save_for_backward(dy, dh_n, dc_n, y, reserve, offsets, rows, *rest)


def _differentiate_backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
    dy, dh_n, dc_n, y, reserve, offsets, rows, *inputs = ctx.saved_tensors
    layer: Layer = ctx.layer
    gradients = (dy, dh_n, dc_n)
    asked = [v if want else None for v, want in zip(incoming, ctx.wanted, strict=True)]
    if torch._C._len_torch_dispatch_stack():
        results = torch.ops.fastrnn.double_backward(
            *(*gradients, y, reserve, offsets, rows, *ctx.sizes, layer.key),
            [v for v in asked if v is not None],
            [v is not None for v in asked],
            *inputs,
        )
    else:
        count = NUMBERS + len(layer.shapes)
        ragged = _ragged(inputs[0], (offsets, rows, *ctx.sizes))
        results = gradients_of_gradients(
            layer, ragged, ctx.wanted[:count], gradients, inputs[:count], asked[:count]
        )
        results = (*results, *(None for _ in inputs[count:]))
    sources = (*gradients, *inputs)
    given = [None if t is None else r for t, r in zip(sources, results, strict=True)]
    return (*given[:GRADIENTS], *(None,) * 9, *given[GRADIENTS:])


_forward_op.register_autograd(_differentiate_forward, setup_context=_save_forward)
_backward_op.register_autograd(_differentiate_backward, setup_context=_save_backward)


def forward(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    training: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one layer as an operator; see ``_ops.forward``.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state).
    """
    y, h_n, c_n, _ = torch.ops.fastrnn.forward(
        x, *_table(ragged), layer.key, training, h0, c0, *_padded(weights)
    )
    return y, None if layer.step else h_n, c_n if layer.spec.states > 1 else None


def backward(
    layer: Layer,
    ragged: Ragged | None,
    wanted: Sequence[bool],
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
    outputs: tuple[Tensor, Tensor | None],
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    *weights: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Propagate gradients through one layer as an operator; see ``_ops.backward``."""
    y, reserve = outputs
    absent = WEIGHTS - len(weights)
    results = torch.ops.fastrnn.backward(
        *gradients,
        *_filled(x, (y, reserve), 2),
        *(*_table(ragged), layer.key, [*wanted, *(False,) * absent]),
        *(x, h0, c0, *_padded(weights)),
    )
    return tuple(t if want else None for t, want in zip(results, wanted, strict=False))
