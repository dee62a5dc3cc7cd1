"""How one layer takes part in torch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _errors, _library, _ops, _plans, _reference, _transforms
from ._problem import Layer, Ragged
from ._second_order import double_backward, new_dgates
from ._transforms import gradients_of_gradients

_is_compiling = torch.compiler.is_compiling
_dispatch_modes = torch._C._len_torch_dispatch_stack
_transform = torch._C._functorch.peek_interpreter_stack
_trace = torch._C._get_tracing_state
_key_included = torch._C._dispatch_tls_is_dispatch_key_included
_PRE_DISPATCH = torch._C.DispatchKey.PreDispatch  # make_fx(..., pre_dispatch=True)

_no_inputs = (None, None)
"""What backward returns for ``layer`` and ``ragged``."""


class Recurrence(Function):
    """One layer, differentiable.

    The outputs are y, h_n (``None`` for a single step) and c_n (``None`` if the cell has one
    state).
    """

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        ragged: Ragged | None,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """Run the layer and save what backward needs."""
        y, h_n, c_n, reserve = _ops.forward(layer, x, ragged, h0, c0, weights, training=True)
        ctx.layer, ctx.ragged = layer, ragged
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, reserve, x, h0, c0, *weights)
        return y, h_n, c_n

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, dh_n: Tensor | None, dc_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients that are asked for, and ``None`` for the others."""
        gradients = (dy, dh_n, dc_n)
        y, reserve, *inputs = ctx.saved_tensors
        wanted = _wanted(ctx, inputs)
        if dy is None and dh_n is None and dc_n is None:
            return (*_no_inputs, *(None for _ in wanted))
        arguments = (ctx.layer, ctx.ragged, wanted, gradients, (y, reserve), *inputs)
        results: tuple[Tensor | None, ...]
        if torch._C._len_torch_dispatch_stack() or any(map(_batched, gradients)):
            results = _library.backward(*arguments)
        elif torch.is_grad_enabled():
            results = RecurrenceBackward.apply(  # type: ignore[no-untyped-call]
                ctx.layer, ctx.ragged, wanted, *gradients, y, reserve, *inputs
            )
        else:
            results = _ops.backward(*arguments)
        return (*_no_inputs, *results)


def _batched(tensor: Tensor | None) -> bool:
    """Tell whether it is many gradients in one, as ``is_grads_batched`` hands them over."""
    return tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor)


CHEAP = 1_000_000
"""Multiply-adds of gradients that take less time than to ask whether they are wanted."""


def _wanted(ctx: Any, inputs: Sequence[Tensor | None]) -> Sequence[bool]:
    """Tell for each input whether this backward pass will use its gradient.

    ``ctx.needs_input_grad`` alone would ask for those of all weights when
    ``torch.autograd.grad(loss, x)`` needs none of them. Within ``torch.autograd.grad`` torch
    answers for a wanted leaf with an error, which takes 20 us to make, and to find the nodes takes
    as long: where gradients cost less nobody asks whether they are wanted.
    """
    needed: tuple[bool, ...] = ctx.needs_input_grad[2:]
    x, w_ih, w_hh = inputs[0], inputs[3], inputs[4]
    assert x is not None
    assert w_ih is not None
    assert w_hh is not None
    rows = x.numel() // max(x.shape[-1], 1)
    if rows * (w_ih.numel() + w_hh.numel()) < CHEAP:
        return needed
    nodes = (node for node, _ in ctx.next_functions)  # of the inputs that are tensors
    wanted = []
    for tensor in inputs:
        node = None if tensor is None else next(nodes)
        if tensor is None or node is None:
            wanted.append(False)
        elif tensor.is_leaf and rows * (w_ih if tensor is x else tensor).numel() < CHEAP:
            wanted.append(True)
        else:
            try:
                wanted.append(torch._C._will_engine_execute_node(node))
            except RuntimeError:  # so it says of a leaf whose gradient is to be returned
                wanted.append(True)
    return wanted


class RecurrenceBackward(Function):
    """The gradients of one layer, as functions of what they were computed from."""

    @staticmethod
    def forward(
        ctx: Any,
        layer: Layer,
        ragged: Ragged | None,
        wanted: Sequence[bool],
        dy: Tensor | None,
        dh_n: Tensor | None,
        dc_n: Tensor | None,
        y: Tensor,
        reserve: Tensor | None,
        *inputs: Any,
    ) -> tuple[Tensor | None, ...]:
        """Propagate gradients through the layer."""
        ctx.layer, ctx.ragged, ctx.wanted = layer, ragged, wanted
        ctx.set_materialize_grads(False)
        dgates = new_dgates(layer, inputs[0], ragged)
        # Detached, y does not refer to the node that will hold this one: no cycle, no leak.
        ctx.save_for_backward(dy, dh_n, dc_n, y.detach(), reserve, dgates, *inputs)
        gradients = (dy, dh_n, dc_n)
        return _ops.backward(layer, ragged, wanted, gradients, (y, reserve), *inputs, dgates=dgates)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor | None) -> Any:
        """Differentiate the gradients."""
        dy, dh_n, dc_n, y, reserve, dgates, *inputs = ctx.saved_tensors
        layer, ragged, gradients = ctx.layer, ctx.ragged, (dy, dh_n, dc_n)
        asked = [v if want else None for v, want in zip(incoming, ctx.wanted, strict=True)]
        if all(v is None for v in asked):
            return (None,) * (8 + len(inputs))
        if (
            torch.is_grad_enabled()
            or torch._C._len_torch_dispatch_stack()
            or any(map(_batched, incoming))
        ):
            results = gradients_of_gradients(layer, ragged, ctx.wanted, gradients, inputs, asked)
        else:
            outputs = (y, reserve)
            results = double_backward(layer, ragged, gradients, outputs, inputs, asked, dgates)
        ddy, ddh_n, ddc_n, *rest = (
            None if t is None else r for t, r in zip((*gradients, *inputs), results, strict=True)
        )
        return (None, None, None, ddy, ddh_n, ddc_n, None, None, *rest)


def needs_grad(
    x: Tensor, h0: Tensor | None, c0: Tensor | None, weights: Sequence[Tensor | None]
) -> bool:
    """Tell whether autograd has to record the call."""
    if not torch.is_grad_enabled():
        return False
    for weight in weights:
        if weight is not None and weight.requires_grad:
            return True
    return (
        x.requires_grad
        or (h0 is not None and h0.requires_grad)
        or (c0 is not None and c0.requires_grad)
    )


def recurrence(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
    cache: _plans.PackedCache | None = None,
    out: _ops.FinalStates | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one layer, through autograd if a gradient can be asked for.

    The arguments are those of ``_ops.forward``; ``out`` must be absent where a gradient is needed,
    and is not used where torch traces or transforms the call.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state).
    """
    if torch.compiler.is_compiling():
        recorded = needs_grad(x, h0, c0, weights)
        return _library.forward(layer, x, ragged, h0, c0, weights, recorded)
    if watched():
        result = _surrounded(layer, x, ragged, h0, c0, weights)
        if result is not None:
            return result
    if needs_grad(x, h0, c0, weights):
        if layer.quantized:
            raise _errors.quantized_gradient(layer.owner)
        y, h_n, c_n = Recurrence.apply(layer, ragged, x, h0, c0, *weights)  # type: ignore[no-untyped-call]
        return y, h_n, c_n
    return _ops.forward(layer, x, ragged, h0, c0, weights, cache=cache, out=out)[:3]


def watched() -> bool:
    """Tell whether anything may trace or transform calls, so that a call has to find out more."""
    return (
        _is_compiling()
        or _dispatch_modes() > 0
        or _transform() is not None
        or _trace() is not None
        or _key_included(_PRE_DISPATCH)
        or forward_ad._current_level >= 0
    )


def _surrounded(
    layer: Layer,
    x: Tensor,
    ragged: Ragged | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor | None],
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Run the layer under what traces or transforms calls; return ``None`` if it need not know."""
    if torch._C._get_tracing_state() is not None:
        raise _errors.transform(layer.owner, "torch.jit.trace")
    tensors = (x, h0, c0, *weights)
    if _transformed_forward() or any(map(_has_tangent, tensors)):
        _check_not_quantized(layer)
        return _reference.run(layer, x, ragged, h0, c0, weights)
    if torch._C._functorch.peek_interpreter_stack() is not None:
        _check_not_quantized(layer)
        ragged = _unwrapped(ragged)
        return _transforms.recurrence(layer, ragged, tensors)[:3]
    if _traced():
        recorded = needs_grad(x, h0, c0, weights)
        return _library.forward(layer, x, ragged, h0, c0, weights, recorded)
    return None


def _unwrapped(ragged: Ragged | None) -> Ragged | None:
    """Return the table of rows as plain tensors: transforms wrap what is made under them."""
    if ragged is None:
        return None
    offsets, rows = ragged.offsets, ragged.rows
    while torch._C._functorch.is_functorch_wrapped_tensor(offsets):
        offsets = torch._C._functorch.get_unwrapped(offsets)
    while rows is not None and torch._C._functorch.is_functorch_wrapped_tensor(rows):
        rows = torch._C._functorch.get_unwrapped(rows)
    return replace(ragged, offsets=offsets, rows=rows)


def _check_not_quantized(layer: Layer) -> None:
    if layer.quantized:
        raise _errors.quantized_gradient(layer.owner)


def _transformed_forward() -> bool:
    """Tell whether a transform differentiates forwards."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


def _has_tangent(tensor: Tensor | None) -> bool:
    if tensor is None or forward_ad._current_level < 0:
        return False
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def _traced() -> bool:
    """Tell whether a mode other than that for fake tensors, which are known, sees all calls."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

    modes = _get_current_dispatch_mode_stack()
    return _key_included(_PRE_DISPATCH) or any(not isinstance(m, FakeTensorMode) for m in modes)
