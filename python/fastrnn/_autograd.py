"""How one layer takes part in torch's autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import _errors, _ops
from ._problem import Layer, Ragged

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
        if all(gradient is None for gradient in gradients):
            return (*_no_inputs, *(None for _ in wanted))
        if torch.is_grad_enabled():
            results = RecurrenceBackward.apply(  # type: ignore[no-untyped-call]
                ctx.layer, ctx.ragged, wanted, *gradients, y, reserve, *inputs
            )
        else:
            results = _ops.backward(ctx.layer, ctx.ragged, wanted, gradients, (y, reserve), *inputs)
        return (*_no_inputs, *results)


def _wanted(ctx: Any, inputs: Sequence[Tensor | None]) -> list[bool]:
    """Tell for each input whether this backward pass will use its gradient.

    ``ctx.needs_input_grad`` alone would ask for those of all weights when
    ``torch.autograd.grad(loss, x)`` needs none of them.
    """
    nodes = (node for node, _ in ctx.next_functions)  # of the inputs that are tensors
    return [tensor is not None and _will_execute(next(nodes)) for tensor in inputs]


def _will_execute(node: Any) -> bool:
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # so it says of a leaf whose gradient is to be returned
        return True


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
        ctx.layer = layer
        return _ops.backward(layer, ragged, wanted, (dy, dh_n, dc_n), (y, reserve), *inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        """Raise: there are no second derivatives yet."""
        raise _errors.transform(ctx.layer.owner, "double backward")


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
    cache: _ops.PackedCache | None = None,
    out: _ops.FinalStates | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one layer, through autograd if a gradient can be asked for.

    The arguments are those of ``_ops.forward``; ``out`` must be absent where a gradient is needed.

    Returns:
        y, h_n (``None`` for a single step), c_n (``None`` if the cell has one state).
    """
    if (
        torch._C._len_torch_dispatch_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or forward_ad._current_level >= 0
    ):
        _check_surroundings(layer, (x, h0, c0, *weights))
    if needs_grad(x, h0, c0, weights):
        if layer.quantized:
            raise _errors.quantized_gradient(layer.owner)
        y, h_n, c_n = Recurrence.apply(layer, ragged, x, h0, c0, *weights)  # type: ignore[no-untyped-call]
        return y, h_n, c_n
    return _ops.forward(layer, x, ragged, h0, c0, weights, cache=cache, out=out)[:3]


def _tangent(tensor: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(tensor).tangent  # type: ignore[no-untyped-call]
    return tangent


def _check_surroundings(layer: Layer, tensors: Sequence[Tensor | None]) -> None:
    """Raise under transforms and tracers that would miss what the engine does."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise _errors.transform(layer.owner, "a torch.func transform")
    if torch._C._get_tracing_state() is not None:
        raise _errors.transform(layer.owner, "torch.jit.trace")
    if forward_ad._current_level >= 0:
        for tensor in tensors:
            if tensor is not None and _tangent(tensor) is not None:
                raise _errors.transform(layer.owner, "forward-mode differentiation")
    if torch._C._len_torch_dispatch_stack():
        from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, ProxyTorchDispatchMode):
                raise _errors.transform(layer.owner, "tracing with make_fx")
