"""Automatic mixed precision: what the layers compute in under ``torch.autocast``, and return.

Inputs, states and weights are cast to autocast's dtype, as torch does for its products, and the
whole layer runs in it. What comes back has the dtype that torch.nn returns there, which depends on
the cell:

- a state that is carried beside the products (``CellSpec.carries``) keeps the precision of the
  initial state (by default the input's), so float32 stays float32;
- what comes out of a product, as with a projection, or of nothing but products has autocast's;
- padded batches of cells with two states, which torch hands to oneDNN, have autocast's; so has
  everything on CUDA.

float64 is left alone, by torch too. Casts are made anew at each call: nothing is cached, nothing is
left over when the weights or the context change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from ._problem import Layer, Weights


def applies(input: object) -> bool:
    """Tell whether the input is on a device that autocast is enabled for."""
    x = input[0] if isinstance(input, PackedSequence) else input
    if not isinstance(x, Tensor):
        return False
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return x.is_cuda and torch.is_autocast_enabled("cuda")


def sequences(
    call: Callable[[Any, Any, Sequence[Weights]], tuple[Any, Any]],
    layer: Layer,
    input: Tensor | PackedSequence,
    hx: Any,
    weights: Sequence[Weights],
) -> tuple[Any, Any]:
    """Run ``call(input, hx, weights)`` in autocast's dtype, on sequences.

    Args:
        call: what to run.
        layer: the first one.
        input: as modules take it, and so are the others.
        hx: see there.
        weights: see there.

    Returns:
        The output and the final states, in torch's dtypes.
    """
    packed = isinstance(input, PackedSequence)
    x = input[0] if isinstance(input, PackedSequence) else input
    low = _dtype(layer, x)
    with torch.autocast(x.device.type, enabled=False):
        y, states = call(_cast(input, low), _cast(hx, low), [_cast(own, low) for own in weights])
    output, first, second = result_dtypes(layer, x, hx, low, packed)
    if isinstance(states, tuple):
        states = _raised(states[0], low, first), _raised(states[1], low, second)
    else:
        states = _raised(states, low, first)
    return _raised(y, low, output), states


def step(
    call: Callable[[Any, Any, Weights], Any], layer: Layer, input: Tensor, hx: Any, weights: Weights
) -> Any:
    """Do the same for a single time step.

    Returns:
        The new states, in torch's dtypes.
    """
    low = _dtype(layer, input)
    with torch.autocast(input.device.type, enabled=False):
        states = call(_cast(input, low), _cast(hx, low), _cast(weights, low))
    _, first, second = result_dtypes(layer, input, hx, low, False)
    if isinstance(states, tuple):
        return _raised(states[0], low, first), _raised(states[1], low, second)
    return _raised(states, low, first)


def result_dtypes(
    layer: Layer, x: Tensor, hx: Any, low: torch.dtype, packed: bool
) -> tuple[torch.dtype, torch.dtype, torch.dtype]:
    """Return the dtypes of output, h_n and c_n, which are computed in ``low``."""
    in_onednn = layer.spec.states > 1 and not (
        layer.step or packed or layer.proj_size or x.dtype is torch.float16
    )
    if x.is_cuda or layer.quantized or in_onednn or not layer.spec.carries:
        return low, low, low
    last = hx[-1] if isinstance(hx, tuple | list) else hx
    carried = torch.promote_types(x.dtype if last is None else last.dtype, low)
    h = low if layer.proj_size else carried
    return h, h, carried


def _dtype(layer: Layer, x: Tensor) -> torch.dtype:
    return torch.float32 if layer.quantized else torch.get_autocast_dtype(x.device.type)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Cast tensors, and those in a list or tuple; leave all else to the checks that follow."""
    if isinstance(value, PackedSequence):
        return PackedSequence(_cast(value[0], dtype), *value[1:])
    if isinstance(value, list | tuple):
        return [_cast(item, dtype) for item in value]
    if isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64:
        return value.to(dtype)
    return value


def _raised(value: Any, low: torch.dtype, dtype: torch.dtype) -> Any:
    """Cast a result that was computed in ``low``."""
    if isinstance(value, PackedSequence):
        return PackedSequence(_raised(value[0], low, dtype), *value[1:])
    return value.to(dtype) if value.dtype == low else value
