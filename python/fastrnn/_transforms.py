"""One layer under ``torch.func``'s transforms, and the derivatives of its gradients.

``vmap`` over data widens the batch of one call of the engine. ``vmap`` over weights calls it once
for each of them. Gradients of each sample's own weights (``vmap(grad(f))``) come from one backward
pass for all samples, which leaves the gradients of the pre-activations, and one batched product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _ops, _reference
from ._problem import Layer, Ragged
from ._second_order import gate_rows, new_dgates

Gradients = tuple[Tensor | None, ...]

NUMBERS = 3
"""Inputs before the weights: x, h0 and c0."""


def gradients_of_gradients(
    layer: Layer,
    ragged: Ragged | None,
    wanted: Sequence[bool],
    gradients: Sequence[Tensor | None],
    inputs: Sequence[Tensor | None],
    incoming: Sequence[Tensor | None],
) -> Gradients:
    """Differentiate the backward pass of a layer, differentiably, by the reference.

    Args:
        layer: as in ``_ops.backward``.
        ragged: as in ``_ops.backward``.
        wanted: which gradients the backward pass gave.
        gradients: dy, dh_n, dc_n, what the backward pass began with.
        inputs: x, h0, c0 and the weights.
        incoming: the gradients of the gradients that it gave.

    Returns:
        The gradients with respect to ``gradients`` and ``inputs``.
    """
    sources = [*gradients, *inputs]
    at = [i for i, t in enumerate(sources) if t is not None]
    count = len(gradients)
    used = [i for i, v in enumerate(incoming) if v is not None and wanted[i]]
    if not used:
        return (None,) * len(sources)

    def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(at, tensors, strict=True))
        dys = [given.get(i) for i in range(count)]
        targets = [i for i in used if inputs[i] is not None]

        def forward(*own: Tensor) -> tuple[Tensor, ...]:
            values = {i: given.get(count + i) for i in range(len(inputs))}
            values.update(zip(targets, own, strict=True))
            x, h0, c0, *weights = values.values()
            assert x is not None
            outputs = _reference.run(layer, x, ragged, h0, c0, weights)
            return tuple(
                o for o, d in zip(outputs, dys, strict=True) if d is not None and o is not None
            )

        pull = torch.func.vjp(forward, *(given[count + i] for i in targets))[1]
        results: tuple[Tensor, ...] = pull(tuple(d for d in dys if d is not None))
        return results

    pull = torch.func.vjp(backward, *(t for t in sources if t is not None))[1]
    pulled = pull(tuple(v for i, v in enumerate(incoming) if i in used))
    results: list[Tensor | None] = [None] * len(sources)
    for i, gradient in zip(at, pulled, strict=True):
        results[i] = gradient
    return tuple(results)


class TransformedRecurrence(Function):
    """One layer, differentiable and vectorisable; the outputs are those of ``_ops.forward``."""

    @staticmethod
    def forward(
        layer: Layer,
        ragged: Ragged | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor | None,
    ) -> _ops.Outputs:
        """Run the layer."""
        return _ops.forward(layer, x, ragged, h0, c0, weights, training=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _ops.Outputs) -> None:
        """Save what backward needs."""
        ctx.layer, ctx.ragged, *tensors = inputs
        y, _, _, reserve = output
        if reserve is not None:
            ctx.mark_non_differentiable(reserve)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, reserve, *tensors)

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None, _: Any
    ) -> tuple[Any, ...]:
        """Return the gradients that are asked for, and ``None`` for the others."""
        y, reserve, *inputs = ctx.saved_tensors
        wanted = tuple(ctx.needs_input_grad[2:])
        if dy is None and dh_n is None and dc_n is None:
            return (None, None, *(None for _ in wanted))
        results = TransformedBackward.apply(  # type: ignore[no-untyped-call]
            ctx.layer, ctx.ragged, wanted, dy, dh_n, dc_n, y, reserve, *inputs
        )
        return (None, None, *results)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Widen the batch, or call the layer once for each set of weights."""
        layer, ragged, *tensors = args
        dims = in_dims[2:]
        if any(d is not None for d in dims[NUMBERS:]):
            return _each(
                info.batch_size,
                dims,
                tensors,
                lambda own: TransformedRecurrence.apply(layer, ragged, *own),  # type: ignore[no-untyped-call]
            )
        size = info.batch_size
        wide = [
            _widened(t, d, size, _batch_axis(layer, ragged, i))
            for i, (t, d) in enumerate(zip(tensors[:NUMBERS], dims[:NUMBERS], strict=True))
        ]
        outputs = TransformedRecurrence.apply(  # type: ignore[no-untyped-call]
            layer, _widened_ragged(ragged, size), *wide, *tensors[NUMBERS:]
        )
        y, h_n, c_n, reserve = outputs
        axes = (_output_axis(layer, ragged), *(_state_axis(layer),) * 2, 1)
        narrow = [_narrowed(t, size, a) for t, a in zip((y, h_n, c_n, reserve), axes, strict=True)]
        return tuple(narrow), tuple(
            None if t is None else a + 1 for t, a in zip(narrow, axes, strict=True)
        )


class TransformedBackward(Function):
    """The gradients of one layer, differentiable and vectorisable."""

    @staticmethod
    def forward(
        layer: Layer,
        ragged: Ragged | None,
        wanted: Sequence[bool],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        y: Tensor,
        reserve: Tensor | None,
        *inputs: Any,
    ) -> Gradients:
        """Propagate gradients through the layer."""
        return _ops.backward(layer, ragged, wanted, (dy, dh_n, dc_n), (y, reserve), *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        """Save what a second backward pass needs."""
        ctx.layer, ctx.ragged, ctx.wanted, dy, dh_n, dc_n, _, _, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, dh_n, dc_n, *tensors)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the gradients."""
        dy, dh_n, dc_n, *inputs = ctx.saved_tensors
        ddy, ddh_n, ddc_n, *rest = gradients_of_gradients(
            ctx.layer, ctx.ragged, ctx.wanted, (dy, dh_n, dc_n), inputs, incoming
        )
        return (None, None, None, ddy, ddh_n, ddc_n, None, None, *rest)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        """Widen the batch; the gradients of weights are those of each sample."""
        layer, ragged, wanted, *tensors = args
        dims = in_dims[3:]
        first_weight = 5 + NUMBERS
        weights = tensors[first_weight:]
        want_weights = any(wanted[NUMBERS:])
        # A projection's gradients are not among those of the pre-activations.
        alone = any(d is not None for d in dims[first_weight:]) or layer.proj_size > 0
        if alone or (want_weights and _recorded(tensors)):
            return _each(
                info.batch_size,
                dims,
                tensors,
                lambda own: TransformedBackward.apply(layer, ragged, wanted, *own),  # type: ignore[no-untyped-call]
            )
        size, state = info.batch_size, _state_axis(layer)
        output = _output_axis(layer, ragged)
        axes = (output, state, state, output, 1, *(_batch_axis(layer, ragged, i) for i in range(3)))
        wide = [_widened(t, d, size, a) for t, d, a in zip(tensors, dims, axes, strict=False)]
        wide_ragged = _widened_ragged(ragged, size)
        if not want_weights:
            results = TransformedBackward.apply(  # type: ignore[no-untyped-call]
                layer, wide_ragged, wanted, *wide, *weights
            )
        else:
            results = _sample_gradients(layer, wide_ragged, wanted, size, wide, weights)
        numbers = [_narrowed(t, size, a) for t, a in zip(results[:NUMBERS], axes[5:], strict=True)]
        return (*numbers, *results[NUMBERS:]), (
            *(None if t is None else a + 1 for t, a in zip(numbers, axes[5:], strict=True)),
            *(None if t is None else 0 for t in results[NUMBERS:]),
        )


def _recorded(tensors: Sequence[Tensor | None]) -> bool:
    """Tell whether another transform, or autograd, watches what is done to the tensors."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _each(
    size: int,
    dims: Sequence[int | None],
    tensors: Sequence[Tensor | None],
    call: Callable[[list[Tensor | None]], Sequence[Tensor | None]],
) -> tuple[Gradients, tuple[int | None, ...]]:
    """Make one call for each index of the mapped dimension."""
    results = []
    for i in range(size):
        own = [
            t if t is None or d is None else t.select(d, i)
            for t, d in zip(tensors, dims, strict=True)
        ]
        results.append(call(own))
    stacked = [None if rs[0] is None else torch.stack(rs) for rs in zip(*results, strict=True)]
    return tuple(stacked), tuple(None if t is None else 0 for t in stacked)


def _batch_axis(layer: Layer, ragged: Ragged | None, which: int) -> int:
    """Return which dimension of x (0), h0 (1) or c0 (2) numbers the sequences."""
    if which:
        return _state_axis(layer)
    return 0 if layer.step or layer.x_batch_first or _packed(ragged) else 1


def _packed(ragged: Ragged | None) -> bool:
    return ragged is not None and ragged.rows is None


def _output_axis(layer: Layer, ragged: Ragged | None) -> int:
    return 0 if layer.step or layer.y_batch_first or _packed(ragged) else 1


def _state_axis(layer: Layer) -> int:
    return 0 if layer.step else 1


def _widened(tensor: Tensor | None, dim: int | None, size: int, axis: int) -> Tensor | None:
    """Return a tensor with the mapped dimension as the inner part of the batch."""
    if tensor is None:
        return None
    if dim is None:
        tensor, dim = tensor.unsqueeze(0).expand(size, *tensor.shape), 0
    return tensor.movedim(dim, axis + 1).flatten(axis, axis + 1)


def _narrowed(tensor: Tensor | None, size: int, axis: int) -> Tensor | None:
    """Return a tensor whose mapped dimension comes just after the batch."""
    return None if tensor is None else torch.unflatten(tensor, axis, (-1, size))


def _widened_ragged(ragged: Ragged | None, size: int) -> Ragged | None:
    if ragged is None:
        return None
    rows = ragged.rows
    if rows is not None:
        rows = (rows.unsqueeze(1) * size + torch.arange(size)).flatten()
    return replace(
        ragged,
        offsets=ragged.offsets * size,
        B=ragged.B * size,
        N=ragged.N * size,
        rows=rows,
        padded=(ragged.padded[0], ragged.padded[1] * size),
    )


def _sample_gradients(
    layer: Layer,
    ragged: Ragged | None,
    wanted: Sequence[bool],
    size: int,
    tensors: Sequence[Tensor | None],
    weights: Sequence[Tensor | None],
) -> Gradients:
    """Return the gradients of the numbers for all samples together, of the weights for each."""
    dy, dh_n, dc_n, y, reserve, *numbers = tensors
    x, h0, c0 = numbers
    assert x is not None
    assert y is not None
    info = _ops.cell_info(layer.spec.name)
    rows, counts, batch = _reference.time_major(layer, x, ragged)
    dgates = new_dgates(layer, x, ragged)
    numbers_only = [*wanted[:NUMBERS], *(False for _ in weights)]
    results = _ops.backward(
        layer,
        ragged,
        numbers_only,
        (dy, dh_n, dc_n),
        (y, reserve),
        x,
        h0,
        c0,
        *weights,
        dgates=dgates,
    )
    y_rows = _reference.output_rows(layer, y, ragged)
    gradients: list[Tensor | None] = []
    for d in range(layer.directions):
        h = _reference.columns(layer, y_rows, d)
        initial = _reference.initial_states(layer, x, (h0, c0), batch, d)
        previous = _reference.rows_before(_reference.spans(counts, d == 1), initial[0], h)
        wx, rh = (gate_rows(dgates[d], info[of]) for of in ("of_input", "of_recurrent"))
        same = info["of_input"] == info["of_recurrent"]
        bias = _outer(wx, None, size)
        gradients += [
            _outer(wx, rows, size),
            _outer(rh, previous, size),
            bias,
            bias.clone() if same else _outer(rh, None, size),
            None,
        ]
    kept = [
        g if w is not None and want else None
        for g, w, want in zip(gradients, weights, wanted[NUMBERS:], strict=True)
    ]
    return (*results[:NUMBERS], *(None if g is None else g.to(x.dtype) for g in kept))


def _outer(left: Tensor, right: Tensor | None, size: int) -> Tensor:
    """Sum left x right, or left, over the rows of each sample; row i is of sample i % size."""
    left = torch.unflatten(left, 0, (-1, size)).transpose(0, 1)
    if right is None:
        return left.sum(1)
    right = torch.unflatten(right.to(left.dtype), 0, (-1, size)).transpose(0, 1)
    return left.transpose(1, 2) @ right
