"""One layer under ``torch.func``'s transforms, and the derivatives of its gradients.

``vmap`` over data widens the batch of one call of the engine. ``vmap`` over weights calls it once
for each of them. Gradients of each sample's own weights (``vmap(grad(f))``) come from one backward
pass for all samples, which adds them up apart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from . import _cuda_device, _ops, _plans, _reference
from ._engine_chains import gate_rows
from ._problem import Layer, Ragged
from ._second_order import new_dgates

Gradients = tuple[Tensor | None, ...]

NUMBERS = 3
"""Inputs before the weights: x, h0 and c0."""

GRADIENTS = 5
"""What a backward pass has before the inputs: dy, dh_n, dc_n, y and the reserve."""


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


@dataclass(frozen=True, eq=False)
class _Call:
    """What a call of the engine is about, apart from its tensors; of these, only those are passed.

    torch's transforms look at every argument of a Function some ten times, in Python: it is worth
    having few. To them, this is one.

    Args:
        layer: as in ``_ops.forward``.
        ragged: as in ``_ops.forward``.
        given: of all tensors that a call can have, whether it has them.
        wanted: of a backward pass, for each input, whether its gradient is.
    """

    layer: Layer
    ragged: Ragged | None
    given: tuple[bool, ...]
    wanted: tuple[bool, ...] = ()

    def all(self, passed: Sequence[Any]) -> list[Any]:
        """Return what was passed, or something about each of it, among ``None`` for the others."""
        rest = iter(passed)
        return [next(rest) if given else None for given in self.given]

    def results(self) -> list[int]:
        """Return the numbers of the inputs whose gradients a backward pass returns."""
        given = self.given[GRADIENTS:]
        return [i for i, want in enumerate(self.wanted) if want and given[i]]


def _apply(function: type[Function], call: _Call, tensors: Sequence[Tensor | None]) -> Any:
    """Call a Function with those of its tensors that are there, or its maths alone."""
    call = replace(call, given=tuple(t is not None for t in tensors))
    passed = [t for t in tensors if t is not None]
    if not _recorded(passed):
        return function.forward(call, *passed)
    return function.apply(call, *passed)  # type: ignore[no-untyped-call]


def recurrence(
    layer: Layer, ragged: Ragged | None, tensors: Sequence[Tensor | None]
) -> _ops.Outputs:
    """Run one layer under transforms; ``tensors`` are x, h0, c0 and the weights."""
    outputs: _ops.Outputs = _apply(TransformedRecurrence, _Call(layer, ragged, ()), tensors)
    return outputs


class TransformedRecurrence(Function):
    """One layer, differentiable and vectorisable; the outputs are those of ``_ops.forward``."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> _ops.Outputs:
        """Run the layer."""
        x, h0, c0, *weights = call.all(tensors)
        return _ops.forward(call.layer, x, call.ragged, h0, c0, weights, training=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: _ops.Outputs) -> None:
        """Save what backward needs."""
        ctx.call, *tensors = inputs
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
        y, reserve, *tensors = ctx.saved_tensors
        given = [i for i, is_given in enumerate(ctx.call.given) if is_given]
        if dy is None and dh_n is None and dc_n is None:
            return (None, *(None for _ in given))
        inputs = ctx.call.all(tensors)
        wanted = tuple(want is True for want in ctx.call.all(ctx.needs_input_grad[1:]))
        call = replace(ctx.call, wanted=wanted)
        results = _apply(TransformedBackward, call, (dy, dh_n, dc_n, y, reserve, *inputs))
        gradients = iter(results)
        return (None, *(next(gradients) if wanted[i] else None for i in given))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: _Call, *args: Any) -> tuple[Any, Any]:
        """Widen the batch, or call the layer once for each set of weights."""
        layer, ragged = call.layer, call.ragged
        tensors, dims = call.all(args), call.all(in_dims[1:])
        if any(d is not None for d in dims[NUMBERS:]):
            return _each(
                info.batch_size,
                dims,
                tensors,
                lambda own: _apply(TransformedRecurrence, call, own),
            )
        size = info.batch_size
        wide = [
            _widened(t, d, size, _batch_axis(layer, ragged, i))
            for i, (t, d) in enumerate(zip(tensors[:NUMBERS], dims[:NUMBERS], strict=True))
        ]
        outputs = recurrence(layer, _widened_ragged(ragged, size), [*wide, *tensors[NUMBERS:]])
        axes = (_output_axis(layer, ragged), *(_state_axis(layer),) * 2, 1)
        narrow = [_narrowed(t, size, a) for t, a in zip(outputs, axes, strict=True)]
        return tuple(narrow), tuple(
            None if t is None else a + 1 for t, a in zip(narrow, axes, strict=True)
        )


class TransformedBackward(Function):
    """The gradients of one layer, differentiable and vectorisable: those of ``_Call.results``."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> Gradients:
        """Propagate gradients through the layer."""
        dy, dh_n, dc_n, y, reserve, *inputs = call.all(tensors)
        results = _ops.backward(
            call.layer, call.ragged, call.wanted, (dy, dh_n, dc_n), (y, reserve), *inputs
        )
        return tuple(results[i] for i in call.results())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        """Save what a second backward pass needs."""
        ctx.call, *tensors = inputs
        ctx.set_materialize_grads(False)
        dy, dh_n, dc_n, _, _, *others = ctx.call.all(tensors)
        ctx.save_for_backward(dy, dh_n, dc_n, *others)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Any, ...]:
        """Differentiate the gradients."""
        call: _Call = ctx.call
        dy, dh_n, dc_n, *inputs = ctx.saved_tensors
        asked = dict(zip(call.results(), incoming, strict=True))
        directions = [asked.get(i) for i in range(len(inputs))]
        ddy, ddh_n, ddc_n, *rest = gradients_of_gradients(
            call.layer, call.ragged, call.wanted, (dy, dh_n, dc_n), inputs, directions
        )
        results = (ddy, ddh_n, ddc_n, None, None, *rest)
        return (None, *(r for r, given in zip(results, call.given, strict=True) if given))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], call: _Call, *args: Any) -> tuple[Any, Any]:
        """Widen the batch; the gradients of weights are those of each sample."""
        layer, ragged, size = call.layer, call.ragged, info.batch_size
        tensors, dims = call.all(args), call.all(in_dims[1:])
        first_weight = GRADIENTS + NUMBERS
        weights, want_weights = tensors[first_weight:], any(call.wanted[NUMBERS:])
        on_gpu = _cuda_device.takes(tensors[GRADIENTS])
        alone = any(d is not None for d in dims[first_weight:])
        # There a projection's gradients are not among those of the pre-activations.
        alone = alone or (on_gpu and layer.proj_size > 0)
        if alone or (want_weights and _recorded(tensors)):
            return _each(size, dims, tensors, lambda own: _apply(TransformedBackward, call, own))
        state, output = _state_axis(layer), _output_axis(layer, ragged)
        axes = (output, state, state, output, 1, *(_batch_axis(layer, ragged, i) for i in range(3)))
        wide = [_widened(t, d, size, a) for t, d, a in zip(tensors, dims, axes, strict=False)]
        wider = replace(call, ragged=_widened_ragged(ragged, size))
        if not want_weights:
            results = _apply(TransformedBackward, wider, [*wide, *weights])
        else:
            gradients = _sample_gradients(wider, size, wide, weights, on_gpu)
            results = tuple(gradients[i] for i in call.results())
        is_number = [i < NUMBERS for i in call.results()]
        at = [axes[GRADIENTS + i] if i < NUMBERS else 0 for i in call.results()]
        return tuple(
            _narrowed(t, size, a) if number else t
            for t, a, number in zip(results, at, is_number, strict=True)
        ), tuple(a + 1 if number else 0 for a, number in zip(at, is_number, strict=True))


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
    call: _Call,
    size: int,
    tensors: Sequence[Any],
    weights: Sequence[Tensor | None],
    on_gpu: bool,
) -> Gradients:
    """Return the gradients of the numbers for all samples together, of the weights for each."""
    dy, dh_n, dc_n, y, reserve, x, h0, c0 = tensors
    gradients, outputs, inputs = (dy, dh_n, dc_n), (y, reserve), (x, h0, c0, *weights)
    if not on_gpu:
        return _ops.backward(
            call.layer, call.ragged, call.wanted, gradients, outputs, *inputs, samples=size
        )
    dgates = new_dgates(call.layer, x, call.ragged)
    numbers_only = [*call.wanted[:NUMBERS], *(False for _ in weights)]
    results = _ops.backward(
        call.layer, call.ragged, numbers_only, gradients, outputs, *inputs, dgates=dgates
    )
    products = _products(call.layer, call.ragged, size, dgates, y, (x, h0, c0))
    kept = [
        g if w is not None and want else None
        for g, w, want in zip(products, weights, call.wanted[NUMBERS:], strict=True)
    ]
    return (*results[:NUMBERS], *(None if g is None else g.to(x.dtype) for g in kept))


def _products(
    layer: Layer,
    ragged: Ragged | None,
    size: int,
    dgates: Tensor,
    y: Tensor,
    numbers: tuple[Tensor, Tensor | None, Tensor | None],
) -> list[Tensor | None]:
    """Return each sample's gradients of the weights, from those of the pre-activations."""
    x, *states = numbers
    info = _plans.cell_info(layer.spec.name)
    rows, counts, batch = _reference.time_major(layer, x, ragged)
    y_rows = _reference.output_rows(layer, y, ragged)
    gradients: list[Tensor | None] = []
    for d in range(layer.directions):
        h = _reference.columns(layer, y_rows, d)
        initial = _reference.initial_states(layer, x, states, batch, d)
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
    return gradients


def _outer(left: Tensor, right: Tensor | None, size: int) -> Tensor:
    """Sum left x right, or left, over the rows of each sample; row i is of sample i % size."""
    left = torch.unflatten(left, 0, (-1, size)).transpose(0, 1)
    if right is None:
        return left.sum(1)
    right = torch.unflatten(right.to(left.dtype), 0, (-1, size)).transpose(0, 1)
    return left.transpose(1, 2) @ right
